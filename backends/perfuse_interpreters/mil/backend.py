"""Core ML programs, interpreted: a backend for any machine, which claims no execution."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from perfuse.backend import (
    Backend,
    Component,
    Device,
    ExecutionReport,
    Options,
    Program,
    Request,
    Support,
    SupportLevel,
    Target,
)
from perfuse.errors import DeviceNotFoundError
from perfuse.run import exported
from perfuse.sources import ArtifactStore, exported_weights, tool_versions
from perfuse_exporters.coreml.exporter import OPTIONS

__all__ = ["CoreMLInterpreter"]

_CPU = "cpu"
_FORMAT = "coreml"
_PRECISIONS = ("float32", "float16")
_BFLOAT16 = "A Core ML program has no bfloat16. Use float16 or float32."
_ANY_SIZE = (
    "A Core ML program takes the sizes that it was made for. Fix a size, or give a list of sizes, "
    "when the model is exported: perfuse export --to coreml --size HxW."
)


class CoreMLInterpreter(Backend):
    """Exports a component to Core ML, and computes the saved file in PyTorch."""

    name: ClassVar[str] = "coreml-interpreter"
    #: The exporter's options, for components that have to be exported first.
    options: ClassVar[Options] = OPTIONS

    def devices(self) -> Sequence[Device]:
        """One device: the CPU of this machine."""
        return (
            Device(
                name=_CPU,
                description="interprets Core ML programs in PyTorch; nothing runs on Core ML",
                precisions=_PRECISIONS,
            ),
        )

    def supports(self, request: Request) -> Support:
        """Any component with fixed sizes, or a list of sizes.

        Raises:
            DeviceNotFoundError: another device than the CPU was asked for.
        """
        if request.device is not None and request.device.lower() != _CPU:
            raise DeviceNotFoundError(
                f"{self.name}:{request.device} was asked for; the interpreter runs on {_CPU}. For "
                f"Core ML's own devices use the backend coreml, on a Mac, or {self.name}:{_CPU}."
            )
        if request.precision not in _PRECISIONS:
            return Support(level=SupportLevel.UNSUPPORTED, reason=_BFLOAT16)
        if request.any_size:
            return Support(level=SupportLevel.UNSUPPORTED, reason=_ANY_SIZE)
        return Support(level=SupportLevel.FULL)

    def weights(self, component: Component) -> Mapping[str, tuple[int, ...]] | None:
        """Those of a package that has a weight map: of one with plain weights."""
        return exported_weights(component, _FORMAT)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Export the component if it is not exported yet, and read the saved model.

        Options: those of the Core ML exporter, for a component that comes from a checkpoint.

        Raises:
            DeviceNotFoundError: another device than the CPU was asked for.
            UnsupportedError: another precision, a size that is not fixed, or a program with an
                operation that the interpreter does not know.
            InputError: an option is unknown, or given for what is exported already.
            ExportError: the component could not be lowered.
            ArtifactError: the package is missing or damaged, or of another component.
        """
        self.check(component, target)
        component = component.with_options(self.switches(target))
        from perfuse_coreml.program import CoreMLProgram
        from perfuse_exporters.coreml.adapters import with_adapters
        from perfuse_exporters.coreml.mlpackage import parts_of
        from perfuse_interpreters.mil.interpreter import MilPredictor

        path = with_adapters(component, exported(component, _FORMAT, store, apart=True), store)
        parts = [MilPredictor(part) for part in parts_of(path)]
        return CoreMLProgram(component, parts, _report(component, [p.precision for p in parts]))


def _report(component: Component, precisions: Sequence[str]) -> ExecutionReport:
    """What was computed in: the coarsest that a part's operations give."""
    precision = max(precisions, key=_PRECISIONS.index)
    asked = component.precision
    version = tool_versions(("perfuse",))["perfuse"]
    return ExecutionReport(
        device=_CPU,
        precision=precision,
        engine=f"Core ML program, interpreted (perfuse {version})",
        fallbacks=(
            (f"a program in {asked} was asked for; the file computes in {precision}",)
            if precision != asked
            else ()
        ),
        details={"parts": len(precisions)},
    )
