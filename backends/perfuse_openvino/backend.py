"""Compiles OpenVINO IR for a device. From an exported folder it needs no torch."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from perfuse.backend import (
    SCHEMES,
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
from perfuse.errors import ArtifactError, DeviceNotFoundError, ExecutionError
from perfuse.run import apart, bound, exported
from perfuse.sources import ArtifactStore, exported_weights, read_map
from perfuse.spec import ComponentSpec
from perfuse_exporters.openvino.engine import import_openvino, said
from perfuse_exporters.openvino.weights import bind, rebind
from perfuse_openvino.files import check_files
from perfuse_openvino.pieces import OpenVinoPieces
from perfuse_openvino.program import OpenVinoProgram
from perfuse_openvino.trial import try_first

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["OpenVino"]

#: Ours to OpenVINO's name of a type, and to that of a device that computes in it.
_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_CAPABILITIES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
#: Virtual devices: OpenVINO's own choice, or several devices at once.
_VIRTUAL = ("AUTO", "HETERO", "MULTI")
#: In the store, so that ``perfuse cache`` lists and clears it.
_COMPILED = "openvino-compiled"
#: A constant of whole numbers in a model's file: where it is in the file of weights, and its bytes.
_WHOLE_NUMBERS = re.compile(rb'<data element_type="i64"[^>]* offset="(\d+)" size="(\d+)"')


@lru_cache(maxsize=1)
def _core() -> "ov.Core":
    core: ov.Core = import_openvino().Core()
    return core


class OpenVino(Backend):
    """OpenVINO's runtime. A device is named as OpenVINO names it: CPU, GPU, GPU.1, NPU, AUTO."""

    name: ClassVar[str] = "openvino"
    storages: ClassVar[tuple[str, ...]] = tuple(SCHEMES)
    options: ClassVar[Options] = {"cache": ("true", "false"), "threads": range(1, 1025)}

    def devices(self) -> Sequence[Device]:
        """The devices that OpenVINO lists, in its order, then AUTO, its own choice among them."""
        core = _core()
        found = [
            Device(
                name=name,
                description=str(core.get_property(name, "FULL_DEVICE_NAME")).strip(),
                precisions=_precisions(name),
            )
            for name in core.available_devices
        ]
        if found:
            every = [p for p in _HINTS if all(p in device.precisions for device in found)]
            found.append(
                Device(
                    name="AUTO",
                    description="the device that OpenVINO chooses",
                    precisions=tuple(every),
                )
            )
        return found

    def supports(self, request: Request) -> Support:
        """By the device's reported capabilities; half-precision weights may run in float32."""
        if request.precision not in _HINTS:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"OpenVINO runs {', '.join(_HINTS)} here, not {request.precision}.",
            )
        device = _device(request.device)
        arithmetic = _arithmetic(device, request.precision)
        if arithmetic is None:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"{device} computes in {', '.join(_precisions(device))}.",
            )
        if _needs_sizes(device, request.component, request.static):
            # The host then prepares a program for each size.
            return Support(
                level=SupportLevel.UNSUPPORTED, reason=f"{device} runs one size a program."
            )
        if arithmetic != request.precision:
            return Support(
                level=SupportLevel.CONDITIONAL,
                reason=f"{device} has no {request.precision} arithmetic: weights are stored in "
                f"{request.precision} and computed with in {arithmetic}.",
            )
        return Support(level=SupportLevel.FULL)

    def weights(self, component: Component) -> Mapping[str, tuple[int, ...]] | None:
        """Those of a folder that has a weight map, one made of a known graph, and no integers."""
        return exported_weights(component, self.name)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Compile the component for the device: an exported file, or a checkpoint's weights.

        The graph of a checkpoint comes from the store, where it is kept for every checkpoint of the
        same config. Its weights are read where their files are mapped, and it is compiled anew each
        time: OpenVINO's cache of a model that is in no file would hold the weights, too.

        Options: ``threads=N`` for the CPU (``OMP_NUM_THREADS`` where it is not given), and
        ``cache=false`` to compile exported files anew, too.

        Raises:
            DeviceNotFoundError: OpenVINO does not list the device.
            UnsupportedError: the device cannot compute in the precision, or needs fixed sizes.
            InputError: an option is unknown.
            ArtifactError: the files are missing or damaged.
            ExportError: the component could not be lowered.
            ExecutionError: OpenVINO could not compile it; or it is of another library's code, and
                compiling it ends the process.
        """
        switches = self.switches(target)
        device = _device(target.device)
        self.check(component, target)
        arithmetic = _arithmetic(device, component.precision)
        assert arithmetic is not None  # what it is not is refused
        properties = _properties(device, arithmetic, _threads(switches))
        graph = bound(component, self.name, store)
        if graph is not None:
            change = partial(bind, weights=graph.weights, tensors=graph.tensors)
            compiled, held = _compile_bound(graph.path, change, component.name, device, properties)
            return OpenVinoProgram(component, compiled, path=graph.path, device=device, held=held)
        path = exported(component, self.name, store)
        check_files(path, component.name)
        known = read_map(path) if component.build is None else None
        if component.changes is not None and known is not None:
            change = partial(rebind, weights=known, changes=component.changes)
            compiled, held = _compile_bound(path, change, component.name, device, properties)
            return OpenVinoProgram(component, compiled, path=path, device=device, held=held)
        compiled = _compile(path, component, device, arithmetic, switches, store)
        return OpenVinoProgram(component, compiled, path=path, device=device)

    def footprint(
        self, component: Component, target: Target, *, in_pieces: bool = False
    ) -> float | None:
        """Of a CPU: the file's weights, and a copy of them in the engine's own layout."""
        device = _device(target.device)
        arithmetic = _arithmetic(device, component.precision)
        widened = arithmetic == "float32" != component.precision
        if in_pieces and (device != "CPU" or component.storage):
            return None
        return 3.0 if widened else 2.0

    def prepare_in_pieces(
        self, component: Component, target: Target, store: ArtifactStore, room: int
    ) -> Program:
        """Cut the component's graph into pieces: each is compiled when its turn comes."""
        switches = self.switches(target)
        device = _device(target.device)
        self.check(component, target)
        arithmetic = _arithmetic(device, component.precision)
        assert arithmetic is not None  # what it is not is refused
        properties = _properties(device, arithmetic, _threads(switches))
        graph = apart(component, self.name, store)
        path = exported(component, self.name, store) if graph is None else graph.path
        if graph is None:
            check_files(path, component.name)

        def compiled(model: "ov.Model") -> "ov.CompiledModel":
            try:
                return _core().compile_model(model, device, properties)
            except RuntimeError as exc:
                raise _not_compiled(component.name, device, exc) from exc

        return OpenVinoPieces(
            component,
            path,
            graph,
            room=room,
            read=lambda: _core().read_model(path),
            compile=compiled,
        )


def _needs_sizes(device: str, spec: ComponentSpec, static: Mapping[str, int]) -> bool:
    npu = any(one.startswith("NPU") for one in _real(device))
    return npu and not set(spec.signature.dims) <= set(static)


def _device(asked: str | None) -> str:
    """OpenVINO's spelling of a device name; its first device for ``None``.

    Raises:
        DeviceNotFoundError: OpenVINO does not list it.
    """
    found = _core().available_devices
    if asked is None and found:
        return str(found[0])
    name = (asked or "").upper()
    kind, colon, rest = name.partition(":")
    if colon and kind not in _VIRTUAL:
        name = f"{kind}.{rest}"  # GPU:1, as torch spells it
    # OpenVINO takes GPU for GPU.0 and the other way round.
    known = {*found, *(one.partition(".")[0] for one in found), *(f"{one}.0" for one in found)}
    if not found or any(one not in known for one in _real(name)):
        raise DeviceNotFoundError(
            f"Device {asked!r} was asked for; OpenVINO lists {', '.join(found) or 'none'}, and "
            "AUTO, its own choice among them. Use one of these; an Intel GPU or NPU is listed once "
            "its driver is installed."
        )
    return name


def _real(device: str) -> list[str]:
    """The devices that a name may stand for."""
    kind, _, parts = device.partition(":")
    if kind not in _VIRTUAL:
        return [device]
    listed = [part.strip() for part in parts.split(",") if part and not part.startswith("-")]
    return listed or list(_core().available_devices)


def _precisions(device: str) -> tuple[str, ...]:
    """What every device that the name may stand for computes in."""
    lists = [_core().get_property(one, "OPTIMIZATION_CAPABILITIES") for one in _real(device)]
    return tuple(p for p, name in _CAPABILITIES.items() if all(name in one for one in lists))


def _arithmetic(device: str, precision: str) -> str | None:
    """The type that the device computes in; ``None`` if it has none as precise.

    Asked for float16, a CPU without it would take bfloat16, which keeps three bits fewer.
    """
    native = _precisions(device)
    return next((one for one in (precision, "float32") if one in native), None)


def _threads(switches: Mapping[str, str]) -> int:
    """How many for the CPU; 0 for OpenVINO's choice."""
    threads = switches.get("threads", os.environ.get("OMP_NUM_THREADS", ""))
    return int(threads) if threads.isdecimal() else 0


def _properties(device: str, arithmetic: str, threads: int) -> dict[str, str]:
    properties = {
        "INFERENCE_PRECISION_HINT": _HINTS[arithmetic],
        "EXECUTION_MODE_HINT": "ACCURACY" if arithmetic == "float32" else "PERFORMANCE",
        "PERFORMANCE_HINT": "LATENCY",
    }
    if not device.startswith("NPU"):
        properties["NUM_STREAMS"] = "1"
    if device == "CPU" and threads:
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    if device.startswith("AUTO"):
        # It would begin on the CPU and move on within a picture, once the other is ready.
        properties["ENABLE_STARTUP_FALLBACK"] = "NO"
    return properties


def _compile(
    path: Path,
    component: Component,
    device: str,
    arithmetic: str,
    switches: Mapping[str, str],
    store: ArtifactStore,
) -> "ov.CompiledModel":
    properties = _properties(device, arithmetic, _threads(switches))
    cacheable = switches.get("cache") != "false" and not _is_changed_by_caching(path)
    # Weights in integers would be kept there as it widened them.
    folder = store.shared(_COMPILED) if cacheable and not component.storage else None
    cached = dict(properties)
    if folder is not None:
        # Without the weights, which are beside the model anyway.
        cached |= {"CACHE_DIR": str(folder), "CACHE_MODE": "OPTIMIZE_SIZE"}
    if component.foreign:
        try_first(path, component, device, cached, store)
    if folder is not None:
        try:
            return _core().compile_model(str(path), device, cached)
        except RuntimeError:
            # A damaged or unwritable cache must not stop the run: compile again without it. A fault
            # of the model itself raises then.
            _forget(folder)
    try:
        return _core().compile_model(str(path), device, properties)
    except RuntimeError as exc:
        reason = said(exc)
        if "xml" in reason.lower() or "Unable to read the model" in str(exc):
            raise ArtifactError(
                f"{path} cannot be read as OpenVINO IR: {reason}. Export the model again."
            ) from exc
        raise _not_compiled(component.name, device, exc) from exc


def _compile_bound(
    path: Path,
    change: Callable[[Any, "ov.Model"], list[Any]],
    name: str,
    device: str,
    properties: dict[str, str],
) -> "tuple[ov.CompiledModel, list[Any]]":
    """Compile a file after ``change`` gave it weights; with these, which have to stay."""
    try:
        model = _core().read_model(path)
        held = change(import_openvino(), model)
        return _core().compile_model(model, device, properties), held
    except RuntimeError as exc:
        raise _not_compiled(name, device, exc) from exc


def _not_compiled(name: str, device: str, exc: RuntimeError) -> ExecutionError:
    return ExecutionError(
        f"{name} was to be compiled for openvino:{device}; OpenVINO said: {said(exc)}. "
        "Try openvino:CPU, or update OpenVINO and the device's driver."
    )


def _is_changed_by_caching(path: Path) -> bool:
    """Whether a model answers wrongly when it comes from the cache, in 2026.4: if it computes in float64,
    or has a whole number that needs more than 32 bits, which other tools' files may.
    """
    if path.suffix != ".xml":
        return False
    text = path.read_bytes()
    if b'element_type="f64"' in text:
        return True
    weights = path.with_suffix(".bin")
    places = [(int(offset), int(size)) for offset, size in _WHOLE_NUMBERS.findall(text)]
    if not places or not weights.exists():
        return False
    data = np.memmap(weights, np.uint8, "r")
    limits = np.iinfo(np.int32)
    return any(
        bool(((numbers < limits.min) | (numbers > limits.max)).any())
        for offset, size in places
        for numbers in (data[offset : offset + size].view(np.int64),)
    )


def _forget(folder: Path) -> None:
    for blob in folder.glob("*.blob"):
        blob.unlink(missing_ok=True)
