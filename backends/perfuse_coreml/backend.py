"""The Core ML backend: packages compiled once, loaded for the compute units that a device names."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

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
from perfuse.errors import DeviceNotFoundError, ExecutionError
from perfuse.run import exported
from perfuse.sources import ArtifactStore, exported_weights, tool_versions
from perfuse_coreml import engine
from perfuse_coreml.program import CoreMLProgram
from perfuse_exporters.coreml.adapters import digest_of, with_adapters
from perfuse_exporters.coreml.exporter import OPTIONS
from perfuse_exporters.coreml.mlpackage import parts_of, read_interface

__all__ = ["CoreML"]

_UNITS = {
    "ALL": "what Core ML chooses of the CPU, the GPU and the Neural Engine",
    "CPU_AND_NE": "the CPU and the Neural Engine",
    "CPU_AND_GPU": "the CPU and the GPU",
    "CPU_ONLY": "the CPU",
}
_PRECISIONS = ("float32", "float16")
_COMPILED = "model.mlmodelc"


class CoreML(Backend):
    """Runs Core ML programs on a Mac. Whatever touches Core ML is in ``engine.py``."""

    name: ClassVar[str] = "coreml"
    #: The exporter's options, for components that have to be exported first.
    options: ClassVar[Options] = OPTIONS

    def devices(self) -> Sequence[Device]:
        """The compute units that Core ML can be restricted to; its own choice comes first."""
        return tuple(
            Device(name=name, description=what, precisions=_PRECISIONS)
            for name, what in _UNITS.items()
        )

    def supports(self, request: Request) -> Support:
        """Any component with fixed sizes, or a list of sizes.

        Raises:
            DeviceNotFoundError: there are no such compute units.
        """
        units = _units(request.device)
        if request.precision not in _PRECISIONS:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"Core ML has no {request.precision}. Use {' or '.join(_PRECISIONS)}.",
            )
        if request.any_size:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason="a Core ML program takes the sizes that it was made for. Fix a size, or "
                "give a list, when the model is exported: perfuse export --to coreml --size HxW.",
            )
        if request.precision == "float32" and units == "CPU_AND_NE":
            return Support(
                level=SupportLevel.CONDITIONAL,
                reason="the Neural Engine computes in float16 alone; float32 runs on the CPU.",
            )
        return Support(level=SupportLevel.FULL)

    def weights(self, component: Component) -> Mapping[str, tuple[int, ...]] | None:
        """Those of a package that has a weight map: of one with plain weights."""
        return exported_weights(component, self.name)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Export the component if it is not a file yet, compile its packages, and load them.

        Without a device, the compute units are those that the export recorded. Options: those of
        the Core ML exporter, for a component that comes from a checkpoint.

        Raises:
            DeviceNotFoundError: there are no such compute units.
            UnsupportedError: another precision, or a size that is not fixed.
            InputError: an option is unknown, or given for what is exported already.
            ArtifactError: a package is incomplete or damaged, or of another component.
            ExportError: the component could not be lowered.
            ExecutionError: Core ML could not compile or load it.
        """
        self.check(component, target)
        component = component.with_options(self.switches(target))
        units = _units(target.device or component.options.get("compute_units"))
        path = with_adapters(component, exported(component, self.name, store, apart=True), store)
        models = [_Model(part, component.name, units, store) for part in parts_of(path)]
        return CoreMLProgram(component, models, _report(component, models, units))


class _Model:
    """One compiled model, as a ``Predictor``."""

    def __init__(self, path: Path, name: str, units: str, store: ArtifactStore) -> None:
        interface = read_interface(path)  # says what is wrong with a package before Core ML does
        self.inputs, self.outputs = interface.inputs, interface.outputs
        self.precision = interface.precision
        self._name = f"{name} on coreml:{units}"
        self.compiled = path if path.suffix == ".mlmodelc" else _compiled(path, name, store)
        self._predict = self._asked("be loaded", lambda: engine.load(self.compiled, units))

    def _asked(self, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as exc:  # coremltools raises RuntimeError, and plain Exception
            raise _failed(f"{self._name} was to {what}", exc) from exc

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        # A copy: coremltools puts float32 in the place of float16 there.
        return dict(self._asked("run", lambda: self._predict(dict(inputs))))


def _compiled(package: Path, name: str, store: ArtifactStore) -> Path:
    """The package compiled for this system, taken from the store if it was compiled before."""
    key = {
        "package": digest_of(package),
        "macOS": engine.version(),
        "tools": tool_versions(("coremltools",)),
    }

    def make(folder: Path) -> None:
        try:
            engine.compile_package(package, folder / _COMPILED)
        except Exception as exc:  # as above
            raise _failed(f"{name} was to be compiled from {package}", exc) from exc

    return store.get_or_make(f"{name}-mlmodelc", key, make) / _COMPILED


def _failed(what: str, exc: Exception) -> ExecutionError:
    said = " ".join(str(exc).split()).rstrip(".") or repr(exc)
    return ExecutionError(
        f"{what}; Core ML of macOS {engine.version()} said: {said}. Try coreml:CPU_ONLY, or update "
        "macOS."
    )


def _units(asked: str | None) -> str:
    """The compute units of a device name; Core ML's own choice for ``None``."""
    units = "ALL" if asked is None else asked.upper()
    if units not in _UNITS:
        raise DeviceNotFoundError(
            f"Device {asked!r} was asked for; Core ML has the compute units {', '.join(_UNITS)}. "
            "Use one of these: --backend coreml:CPU_AND_NE."
        )
    return units


def _report(component: Component, models: Sequence[_Model], units: str) -> ExecutionReport:
    planned: Counter[str] = Counter()
    details: dict[str, Any] = {"parts": len(models)}
    try:
        for model in models:
            planned.update(engine.plan(model.compiled, units))
        details["operations"] = dict(planned)
    except Exception as exc:  # noqa: BLE001 - it runs all the same, and the report says so
        details["operations"] = f"not known: {type(exc).__name__}: {exc}"
    fallbacks = []
    if planned["CPU"] and units != "CPU_ONLY":
        fallbacks.append(
            f"{planned['CPU']} of {planned.total()} operations are planned for the CPU"
        )
    precision = "float16" if any(m.precision == "float16" for m in models) else "float32"
    if precision != component.precision:
        fallbacks.append(f"{component.precision} was asked for; the file computes in {precision}")
    return ExecutionReport(
        device=units,
        precision=precision,
        engine=f"Core ML, macOS {engine.version()}",
        fallbacks=tuple(fallbacks),
        details=details,
    )
