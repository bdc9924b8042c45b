"""The backend: which devices there are, what they can do, and how a component gets onto one."""

import re
from collections.abc import Sequence
from typing import ClassVar

from perfuse import (
    ArtifactStore,
    Backend,
    Component,
    Device,
    Program,
    Request,
    Support,
    SupportLevel,
    Target,
    exported,
)
from perfuse.backend import Options
from perfuse.errors import DeviceNotFoundError, InputError

from perfuse_openreg.hardware import HARDWARE, Hardware, readable

__all__ = ["OpenReg"]

_UNITS = {"kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


class OpenReg(Backend):
    """A simulated accelerator, in the spirit of PyTorch's OpenReg."""

    name: ClassVar[str] = "openreg"
    options: ClassVar[Options] = {"memory": None}

    def devices(self) -> Sequence[Device]:
        """What is there, without starting anything."""
        return [
            Device(
                name=one.name,
                description=f"simulated accelerator, {readable(one.memory)}",
                precisions=one.precisions,
            )
            for one in HARDWARE
        ]

    def supports(self, request: Request) -> Support:
        """A plain yes, or the reason why not: this is asked before anything is compiled.

        Raises:
            DeviceNotFoundError: there is no such device.
        """
        hardware = _find(request.device)
        if request.precision not in hardware.precisions:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"openreg:{hardware.name} computes in {', '.join(hardware.precisions)}, not "
                f"in {request.precision}.",
            )
        free = [dim for dim in request.component.signature.dims if dim not in request.static]
        if free:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"openreg compiles for one size; fix {', '.join(free)}.",
            )
        if request.precision == "float16":
            return Support(
                level=SupportLevel.CONDITIONAL,
                reason="every result is rounded to float16: a model whose activations exceed 65504 "
                "overflows.",
            )
        return Support(level=SupportLevel.FULL)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Compile the component if it is not a file yet, and load it into the device's memory.

        Options: ``memory=64MB`` gives the device another size of memory.

        Raises:
            DeviceNotFoundError: there is no such device.
            InputError: an option is unknown, or a size is not one that the component takes.
            UnsupportedError: what ``supports`` says no to.
            ArtifactError: the file is damaged.
            ExportError: the component could not be lowered.
            ExecutionError: it does not fit into the memory that is free.
        """
        hardware = _find(target.device)
        switches = self.switches(target)
        memory = _bytes(switches["memory"]) if "memory" in switches else hardware.memory
        self.check(component, target)
        path = exported(component, self.name, store)
        # The engine is imported where it is used: listing devices must not need it.
        from perfuse_openreg.driver import accelerator
        from perfuse_openreg.program import OpenRegProgram

        return OpenRegProgram(component, accelerator(hardware, memory), path)


def _find(name: str | None) -> Hardware:
    if name is None:
        return HARDWARE[0]
    for hardware in HARDWARE:
        if hardware.name == name:
            return hardware
    raise DeviceNotFoundError(
        f"Device {name!r} was asked for; openreg has {', '.join(one.name for one in HARDWARE)}. "
        "Write openreg:0."
    )


def _bytes(text: str) -> int:
    """Read a size.

    Raises:
        InputError: it is not written as one.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(kB|MB|GB)", text)
    if found is None or float(found[1]) == 0:
        raise InputError(f"The option memory is written like 64MB; got {text!r}.")
    return int(float(found[1]) * _UNITS[found[2]])
