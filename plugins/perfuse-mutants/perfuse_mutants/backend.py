"""What every mutant is: the torch backend on the CPU, and one fault around the calls of a component."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from perfuse.backend import (
    PRECISIONS,
    Array,
    Backend,
    Component,
    Device,
    ExecutionReport,
    Program,
    Request,
    Support,
    Target,
)
from perfuse.plugins import host
from perfuse.sources import ArtifactStore

__all__ = [
    "Array",
    "Arrays",
    "Control",
    "Mutant",
    "Run",
    "Wrapped",
    "role_of",
    "scaling_factor",
    "torch_backend",
]

Arrays = dict[str, Array]
Run = Callable[[Arrays], Arrays]


def torch_backend() -> Backend:
    """The right backend, through the door that everyone uses."""
    return host().backend("torch")


def role_of(component: Component) -> str:
    """``"denoiser"``, ``"text"``, ``"decoder"`` or ``"encoder"``."""
    names = component.spec.signature.input_names
    for name, role in (("timestep", "denoiser"), ("input_ids", "text"), ("sample", "encoder")):
        if name in names:
            return role
    return "decoder"


class Wrapped(Program):
    """A program of torch's, called with numpy arrays and through a fault."""

    def __init__(self, component: Component, program: Program) -> None:
        self.signature = component.signature
        self.run: Run = lambda inputs: program(**inputs)
        self._component = component
        self._program = program

    def __call__(self, **inputs: Array) -> Arrays:
        # A fault may rely on what fits the signature; what does not is refused as torch refuses it.
        dims = self.signature.bind(inputs, component=self._component.name)
        self._component.spec.check_dims(dims)
        return self.run(inputs)

    def report(self) -> ExecutionReport:
        return self._program.report()

    def close(self) -> None:
        self._program.close()


class Mutant(Backend):
    """The torch backend on the CPU, right but for one thing."""

    #: The components that it is wrong in, by what they are for.
    roles: ClassVar[tuple[str, ...]] = ("denoiser",)
    program_type: ClassVar[type[Wrapped]] = Wrapped

    def spoil(self, component: Component, run: Run) -> Run:
        """What is called instead of ``run``; asked once for each program that is prepared."""
        return run

    def devices(self) -> Sequence[Device]:
        return [Device(name="cpu", description="CPU, with a fault", precisions=PRECISIONS)]

    def supports(self, request: Request) -> Support:
        return torch_backend().supports(request)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        wrapped = self.program_type(component, self.prepare_right(component, target, store))
        if role_of(component) in self.roles:
            wrapped.run = self.spoil(component, wrapped.run)
        return wrapped

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Torch's program, of any size, so that a fault may call it with another than was asked."""
        device = target.device if target.device is not None else "cpu"
        right = Target(backend="torch", device=device, options=target.options)
        return torch_backend().prepare(dataclasses.replace(component, static={}), right, store)


class Control(Mutant):
    """Right in everything: what the suite finds in a mutant is its fault, not the wrapping's."""

    name = "mutant-none"


def scaling_factor(component: Component) -> float:
    """What the latents of an autoencoder are multiplied with, 1 where its config has none."""
    factor = component.spec.config.get("scaling_factor")
    return float(factor) if factor is not None and math.isfinite(factor) else 1.0
