"""ExecuTorch as a backend."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from perfuse.backend import (
    Backend,
    Component,
    Device,
    Options,
    Program,
    Request,
    StoredTensor,
    Support,
    SupportLevel,
    Target,
    WeightMap,
)
from perfuse.errors import ArtifactError, DeviceNotFoundError
from perfuse.run import bound, exported
from perfuse.sources import ArtifactStore, changed_constants, exported_weights, read_map

from perfuse_executorch import runtime
from perfuse_executorch.exporter import FORMAT, open_dims
from perfuse_executorch.program import ExecuTorchProgram
from perfuse_executorch.weights import read_layout

__all__ = ["ExecuTorch"]

_CPU = "cpu"
_HALF = (
    "XNNPACK's float16 kernels need a processor with half-precision arithmetic to be fast; on "
    "others float16 halves the file and costs time."
)
_BFLOAT16 = (
    "XNNPACK has no bfloat16 kernels; on ExecuTorch's portable ones a small autoencoder took some "
    "hundred times as long. Use float16 or float32."
)


class ExecuTorch(Backend):
    """ExecuTorch's runtime on the CPU. A program is made for one size."""

    name: ClassVar[str] = "executorch"
    options: ClassVar[Options] = {"threads": range(1, 1025)}

    def devices(self) -> Sequence[Device]:
        """The CPU, with the delegates that the installed runtime was built with."""
        return (
            Device(
                name=_CPU,
                description=f"delegates: {', '.join(runtime.delegates())}",
                precisions=("float32", "float16"),
            ),
        )

    def supports(self, request: Request) -> Support:
        """Any component with fixed sizes, or with a largest size for each dimension.

        Raises:
            DeviceNotFoundError: another device than the CPU was asked for.
        """
        _check_device(request.device)
        if request.precision == "bfloat16":
            return Support(level=SupportLevel.UNSUPPORTED, reason=_BFLOAT16)
        if request.precision not in ("float32", "float16"):
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"ExecuTorch runs float32 and float16 here, not {request.precision}.",
            )
        dims = open_dims(
            Component(spec=request.component, precision=request.precision, static=request.static)
        )
        if dims:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason="ExecuTorch plans a program's memory when it is exported, and needs the "
                f"size, or the largest, of {', '.join(dims)}.",
            )
        if request.precision == "float16":
            return Support(level=SupportLevel.CONDITIONAL, reason=_HALF)
        return Support(level=SupportLevel.FULL)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Load the component's program with its weights; make it first where it is not in the store.

        Args:
            component: What to run.
            target: Options: ``threads``, the size of the pool that all programs of the process
                share; without it ``OMP_NUM_THREADS``, or what ExecuTorch finds right.
            store: Where an export goes.

        Raises:
            InputError: an option is unknown or malformed, or the pool has another size already.
            DeviceNotFoundError: another device than the CPU was asked for.
            UnsupportedError: another precision, or a dimension without a size.
            ExportError: the component could not be lowered.
            ArtifactError: the file is missing, damaged, or of another component.
            ExecutionError: memory ran out.
        """
        threads = self.switches(target).get("threads")
        self.check(component, target)
        count = runtime.threads(int(threads) if threads is not None else None)
        path, weights = _files(component, store)
        return ExecuTorchProgram(component, runtime.load(path, weights), path=path, threads=count)

    def weights(self, component: Component) -> Mapping[str, tuple[int, ...]] | None:
        """Those of a folder that has a weight map."""
        return exported_weights(component, FORMAT)


def _files(component: Component, store: ArtifactStore) -> tuple[Path, bytes | None]:
    """A program and the content of its file of weights; ``None`` for what lies beside or within it."""
    found = bound(component, FORMAT, store)
    if found is not None:
        layout = read_layout(found.path)
        return found.path, bytes(layout.filled(found.weights, found.tensors))
    path = exported(component, FORMAT, store)
    known = read_map(path) if component.changes is not None and FORMAT in component.files else None
    return path, None if known is None else _changed(path, component, known)


def _changed(path: Path, component: Component, known: WeightMap) -> bytes:
    """The weights of an exported program with adapters in them.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    layout, beside = read_layout(path), runtime.weights_beside(path)
    if component.changes is None or beside is None or len(beside) != layout.size:
        raise ArtifactError(
            f"{path} was to be loaded with a LoRA; what is beside it is not what was exported. Export "
            "the model again."
        )
    data = bytearray(beside)

    def stored(name: str) -> StoredTensor:
        return layout.get(data, name, known.constants[name])

    for name, tensor in changed_constants(known, component.changes, stored):
        layout.put(data, name, known.constants[name], tensor)
    return bytes(data)


def _check_device(device: str | None) -> None:
    if device is not None and device.lower() != _CPU:
        raise DeviceNotFoundError(
            f"executorch:{device} was asked for; ExecuTorch's Python runtime has {_CPU} here. Use "
            f"executorch:{_CPU}."
        )
