"""XLA as a backend, on the devices that JAX lists. From an exported folder it needs no torch."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

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
)
from perfuse.backend import PRECISIONS, Options
from perfuse.errors import BackendError, DeviceNotFoundError
from perfuse.sources import exported_weights
from perfuse_exporters.stablehlo.engine import import_jax
from perfuse_exporters.stablehlo.files import FORMAT
from perfuse_interpreters.stablehlo import OPTIMIZATIONS, compiled_in, prepared

__all__ = ["Xla"]

#: Where it has been run. Elsewhere nobody has tried.
_EXECUTED = ("cpu",)


class Xla(Backend):
    """JAX's PJRT clients. A device is named ``cpu``, ``cuda:0``, ``rocm:0`` or ``tpu:0``."""

    name: ClassVar[str] = "xla"
    options: ClassVar[Options] = {"cache": ("true", "false"), "optimization": OPTIMIZATIONS}

    def devices(self) -> Sequence[Device]:
        """What JAX lists, its own default first; the CPU is always among them.

        Raises:
            BackendError: JAX cannot start a client, as where ``JAX_PLATFORMS`` names an absent one.
        """
        jax = import_jax()
        return [
            Device(
                name=name,
                description=f"{device.device_kind}, jax {jax.__version__}",
                precisions=PRECISIONS,
            )
            for name, device in _devices().items()
        ]

    def supports(self, request: Request) -> Support:
        """Any component with fixed sizes.

        Raises:
            DeviceNotFoundError: JAX does not list the device.
        """
        if request.precision not in PRECISIONS:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"XLA runs {', '.join(PRECISIONS)} here, not {request.precision}.",
            )
        dims = [dim for dim in request.component.signature.dims if dim not in request.static]
        if dims:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"XLA compiles a program for one size, and needs that of {', '.join(dims)}.",
            )
        name, device = _device(request.device)
        if device.platform not in _EXECUTED:
            return Support(
                level=SupportLevel.CONDITIONAL,
                reason=f"Programs have been lowered for {name.partition(':')[0]}, and run on none. "
                f"Measure it: perfuse conformance --backend xla:{name}.",
            )
        return Support(level=SupportLevel.FULL)

    def weights(self, component: Component) -> Mapping[str, tuple[int, ...]] | None:
        """Those of a folder that has a weight map."""
        return exported_weights(component, FORMAT)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Export the component if it is not a file yet, and compile it for the device.

        Options: ``cache=false`` to compile anew each time, and ``optimization``, from 0 to 3: at 0
        compiling takes half the time and running several times as long. Where the process has a
        folder of its own for what JAX compiles (``jax_compilation_cache_dir``), that one is used.

        Raises:
            InputError: an option is unknown or malformed.
            DeviceNotFoundError: JAX does not list the device.
            UnsupportedError: another precision, or a dimension without a size.
            ExportError: the component could not be lowered.
            ArtifactError: the files are missing, damaged, or of another component.
            ExecutionError: XLA could not compile it.
        """
        options = self.switches(target)
        name, device = _device(target.device)
        self.check(component, target)
        cache = compiled_in(store) if options.get("cache") != "false" else None
        return prepared(
            component,
            store,
            device=device,
            name=name,
            cache=cache,
            optimization=options.get("optimization"),
        )


def _devices() -> Mapping[str, Any]:
    """What JAX lists, by the name that a person types; the CPU's devices last."""
    jax = import_jax()
    try:
        found = list(jax.local_devices())
        if all(device.platform != "cpu" for device in found):
            found += jax.local_devices(backend="cpu")
    except RuntimeError as exc:
        raise BackendError(
            f"JAX was to list its devices; it said: {(str(exc).splitlines() or [''])[0]}. Check "
            "JAX_PLATFORMS, or leave it out."
        ) from exc
    return {_name(device): device for device in found}


def _name(device: Any) -> str:
    platform = device.platform
    if platform == "gpu":
        version = device.client.platform_version
        platform = "rocm" if version.startswith("rocm") else "cuda"
    return platform if platform == "cpu" and device.id == 0 else f"{platform}:{device.id}"


def _device(asked: str | None) -> tuple[str, Any]:
    """The device of a name; the first without one. ``cuda`` is short for ``cuda:0``.

    Raises:
        DeviceNotFoundError: JAX does not list it.
    """
    found = _devices()
    if asked is None:
        return next(iter(found.items()))
    for name in (asked.lower(), f"{asked.lower()}:0", asked.lower().removesuffix(":0")):
        if name in found:
            return name, found[name]
    raise DeviceNotFoundError(
        f"xla:{asked} was asked for; JAX lists {', '.join(found)}. Use one of these; a GPU or a TPU "
        "is listed once JAX's plugin for it is installed."
    )
