"""Runs any size on an engine whose programs take one fixed size."""

from collections.abc import Callable, Mapping

from perfuse.contract.backend import ExecutionReport, Program
from perfuse.contract.spec import Array, ComponentSpec
from perfuse.errors import ExecutionError
from perfuse.progress import working

__all__ = ["PerSize"]


class PerSize(Program):
    """Prepares a fixed-size program for each new combination of sizes, and keeps the last few.

    Its signature has symbolic dimensions, the batch among them.
    """

    def __init__(
        self,
        spec: ComponentSpec,
        make: Callable[[Mapping[str, int]], Program],
        *,
        usual: Mapping[str, int],
        limit: int = 2,
    ) -> None:
        """Prepare nothing yet: compiling for one size may take minutes.

        Args:
            spec: The component.
            make: Prepares the program for one size of each of the signature's dimensions.
            usual: The sizes to prepare for if ``report`` is called before any call.
            limit: How many programs to keep. Each holds the weights, so only two by default: one
                for the batch with guidance, one for the batch without.
        """
        self.signature = spec.signature
        self._spec = spec
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
                program = self._make(dict(dims))
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

    def close(self) -> None:
        """Release every program."""
        self._closed = True
        for program in self._programs.values():
            program.close()
        self._programs.clear()


def _sizes(dims: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in dims.items())
