"""Runs any size on an engine whose programs take one fixed size."""

import dataclasses
from collections.abc import Callable, Mapping

from perfuse.contract.backend import ExecutionReport, Program
from perfuse.contract.component import Component
from perfuse.contract.spec import Array
from perfuse.errors import ExecutionError
from perfuse.progress import working

__all__ = ["PerSize"]


class PerSize(Program):
    """Prepares a fixed-size program for each new combination of sizes, and keeps the last few.

    Its signature has symbolic dimensions, the batch among them.
    """

    def __init__(
        self,
        component: Component,
        make: Callable[[Component], Program],
        *,
        usual: Mapping[str, int],
        limit: int = 2,
    ) -> None:
        """Prepare nothing yet: compiling for one size may take minutes.

        Args:
            component: What to run, its dimensions not fixed.
            make: Prepares the program of the component with every dimension fixed.
            usual: The sizes to prepare for if ``report`` is called before any call.
            limit: How many programs to keep. Each holds the weights, so only two by default: one
                for the batch with guidance, one for the batch without.
        """
        self._component = component
        self._spec = component.spec
        self.signature = self._spec.signature
        self._make = make
        self._usual = dict(usual)
        self._limit = limit
        # By the sizes in the signature's order; the one used last is the last.
        self._programs: dict[tuple[int, ...], Program] = {}
        self._closed = False

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once, on a program for the sizes of these arrays.

        Raises:
            InputError: the arrays do not fit the signature, or a size is not one that the
                component takes.
            BackendError: the engine cannot take these sizes, or failed.
            ExportError: the component could not be lowered for these sizes.
        """
        dims = self.signature.bind(inputs, component=self._spec.name)
        self._spec.check_dims(dims)
        return self._program(dims)(**inputs)

    def _program(self, dims: Mapping[str, int]) -> Program:
        if self._closed:
            raise ExecutionError(f"{self._spec.name} was closed; prepare it again.")
        key = tuple(dims[name] for name in self.signature.dims)
        program = self._programs.pop(key, None)
        if program is None:
            # Close it before the new one is made: never more than ``limit`` are in memory.
            while len(self._programs) >= self._limit:
                self._programs.pop(next(iter(self._programs))).close()
            message = f"Preparing {self._spec.name} for {_sizes(dims)}"
            with working("prepare", message, subject=self._spec.name):
                program = self._make(_fixed(self._component, dims))
            self.torch_device = program.torch_device
        self._programs[key] = program
        return program

    def report(self) -> ExecutionReport:
        """The report of the program used last, with the sizes that are prepared.

        Only the engine knows what it executes: before the first call, this prepares the program for
        the usual sizes.
        """
        if not self._programs:
            self._program(self._usual)
        last = self._programs[next(reversed(self._programs))].report()
        names = self.signature.dims
        sizes = [dict(zip(names, key, strict=True)) for key in self._programs]
        return ExecutionReport(
            device=last.device,
            precision=last.precision,
            engine=last.engine,
            fallbacks=last.fallbacks,
            details={**last.details, "sizes": sizes},
        )

    def rebind(self, component: Component) -> bool:
        """Have every program take other adapters; ``False`` where one of them cannot."""
        names = self.signature.dims
        for key, program in self._programs.items():
            dims = dict(zip(names, key, strict=True))
            if not program.rebind(_fixed(component, dims)):
                return False
        self._component = component
        return True

    def close(self) -> None:
        """Release every program."""
        self._closed = True
        for program in self._programs.values():
            program.close()
        self._programs.clear()


def _fixed(component: Component, dims: Mapping[str, int]) -> Component:
    return dataclasses.replace(component, static=dims)


def _sizes(dims: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in dims.items())
