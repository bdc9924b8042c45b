"""What Neuron's compiler is given, computed by XLA on this CPU: *interpreted*, not executed.

neuronx-cc takes a component as a graph of fixed sizes, in the operators that it documents, and
casts float32 as ``--auto-cast`` says. Here that graph is lowered to StableHLO with the same sizes
and the same casts, and XLA's CPU client computes it. What Neuron's compiler and hardware make of it
can only be seen there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from perfuse.backend import (
    PRECISIONS,
    Backend,
    Component,
    Device,
    Options,
    Program,
    Request,
    Support,
    SupportLevel,
    Target,
)
from perfuse.errors import DeviceNotFoundError, InputError
from perfuse.sources import ArtifactStore, exported_weights
from perfuse_exporters.stablehlo.engine import import_jax
from perfuse_exporters.stablehlo.files import FORMAT
from perfuse_interpreters.stablehlo import OPTIMIZATIONS, compiled_in, prepared

__all__ = ["NeuronInterpreter"]

_CPU = "cpu"
_CASTINGS = {"auto_cast": ("none", "matmult", "all"), "auto_cast_type": ("bf16", "fp16")}
#: What a precision stands for, as optimum-neuron compiles Stable Diffusion: float32 weights, and
#: products of half-precision operands.
_CASTS: Mapping[str, Mapping[str, str]] = {
    "float32": {},
    "float16": {"auto_cast": "matmult", "auto_cast_type": "fp16"},
    "bfloat16": {"auto_cast": "matmult", "auto_cast_type": "bf16"},
}


class NeuronInterpreter(Backend):
    """Neuron's programs on XLA's CPU client."""

    name: ClassVar[str] = "neuron-interpreter"
    options: ClassVar[Options] = {**_CASTINGS, "optimization": OPTIMIZATIONS}

    def devices(self) -> Sequence[Device]:
        """The CPU, in the precisions that Neuron's products have."""
        return (
            Device(
                name=_CPU,
                description="interprets what Neuron's compiler is given, on XLA's CPU client",
                precisions=PRECISIONS,
            ),
        )

    def supports(self, request: Request) -> Support:
        """Any component with fixed sizes, as Neuron itself.

        Raises:
            DeviceNotFoundError: another device than the CPU was asked for.
        """
        _check_device(request.device)
        if request.precision not in PRECISIONS:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"Neuron runs {', '.join(PRECISIONS)} here, not {request.precision}.",
            )
        dims = [dim for dim in request.component.signature.dims if dim not in request.static]
        if dims:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason="Neuron compiles a program for one size, and needs that of "
                f"{', '.join(dims)}.",
            )
        return Support(level=SupportLevel.FULL)

    def weights(self, component: Component) -> Mapping[str, tuple[int, ...]] | None:
        """Those of a folder that has a weight map."""
        return exported_weights(component, FORMAT)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Export the component with the casts of its precision, and compile it for the CPU.

        Args:
            component: What to run.
            target: Options: ``auto_cast`` and ``auto_cast_type``, in place of the precision's; and
                ``optimization``, from 0 to 3, for XLA's own compiler.
            store: Where an export goes.

        Raises:
            InputError: an option is unknown, or the component is exported with its casts.
            DeviceNotFoundError: another device than the CPU was asked for.
            UnsupportedError: another precision, or a dimension without a size.
            ExportError: the component could not be lowered.
            ArtifactError: the files are missing, damaged, or of another component.
            ExecutionError: XLA could not compile it.
        """
        options = self.switches(target)
        self.check(component, target)
        own = {name: value for name, value in options.items() if name in _CASTINGS}
        if own and FORMAT in component.files:
            raise InputError(
                f"{component.name} was to run with {', '.join(own)}; its casts were written into it "
                "when it was exported. Leave the options out, or run the checkpoint."
            )
        given = {
            "operators": "neuron",
            **_CASTS[component.precision],
            **component.options,
            **own,
        }
        return prepared(
            component,
            store,
            lambda one: replace(one, precision="float32", options=given),
            device=import_jax().local_devices(backend=_CPU)[0],
            name=_CPU,
            cache=compiled_in(store),
            optimization=options.get("optimization"),
            details={"interprets": "neuron", "interpreted": True},
        )


def _check_device(device: str | None) -> None:
    if device is not None and device.lower() != _CPU:
        raise DeviceNotFoundError(
            f"neuron-interpreter:{device} was asked for; it computes on {_CPU} alone. For Neuron's "
            "own devices use the backend neuron, on an instance with its SDK."
        )
