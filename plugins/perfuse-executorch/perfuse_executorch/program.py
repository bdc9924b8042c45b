"""A loaded method behind a component's signature."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from perfuse.arrays import to_numpy
from perfuse.backend import Array, Component, ExecutionReport, Program
from perfuse.errors import ArtifactError, ExecutionError, InputError
from perfuse.spec import TensorSpec

from perfuse_executorch.runtime import describe, said

__all__ = ["ExecuTorchProgram"]

#: The numbers of ``executorch/runtime/core/portable_type/scalar_type.h``.
_DTYPES: Mapping[int, type[np.generic]] = {4: np.int64, 5: np.float16, 6: np.float32}


class ExecuTorchProgram(Program):
    """One method. Inputs are copied in; each call's outputs are the caller's to keep."""

    def __init__(self, component: Component, method: Any, *, path: Path, threads: int) -> None:
        import torch

        self._from_numpy = torch.from_numpy
        self.signature = component.signature
        self._component = component
        self._method = method
        self._path = path
        self._threads = threads
        self._lock = Lock()
        meta = method.method_meta()
        spec = component.spec.signature
        for kind, found, wanted in (
            ("inputs", meta.num_inputs(), len(spec.inputs)),
            ("outputs", meta.num_outputs(), len(spec.outputs)),
        ):
            if found != wanted:
                raise ArtifactError(
                    f"{path} has {found} {kind}; {component.name} has {wanted}. The file was made "
                    "for another component. Export the model again."
                )
        infos = [meta.input_tensor_meta(i) for i in range(len(spec.inputs))]
        self._dtypes = [
            _dtype(info, tensor, path) for info, tensor in zip(infos, spec.inputs, strict=True)
        ]
        #: The sizes that memory was planned for: of a fixed dimension the only, else the largest.
        self._planned = _planned(component, infos, path)
        outputs = [meta.output_tensor_meta(i).dtype() for i in range(len(spec.outputs))]
        self._halves = np.float16 in {_DTYPES.get(number) for number in outputs}

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once; numpy arrays out, float32 where they are floating-point.

        Raises:
            InputError: the arrays do not fit the signature, or the sizes of the file.
            ExecutionError: ExecuTorch failed, or the program was closed.
        """
        spec = self._component.spec
        with self._lock:
            if self._method is None:
                raise ExecutionError(f"{spec.name} was called after close(). Prepare it again.")
            dims = spec.signature.bind(inputs, component=spec.name)
            spec.check_dims(dims)
            self._check_sizes(dims)
            tensors = [
                self._from_numpy(_fitted(inputs[tensor.name], dtype, tensor.name))
                for tensor, dtype in zip(spec.signature.inputs, self._dtypes, strict=True)
            ]
            try:
                outputs = self._method(tensors)
            except RuntimeError as exc:
                raise ExecutionError(
                    f"{spec.name} in {self._path} was to run on executorch:cpu; ExecuTorch said: "
                    f"{said(exc)}. Export the model again, or run it on another backend."
                ) from exc
        # The bindings have copied them out of the program's memory.
        return {
            name: (output.float() if output.is_floating_point() else output).numpy()
            for name, output in zip(spec.signature.output_names, outputs, strict=True)
        }

    def _check_sizes(self, dims: Mapping[str, int]) -> None:
        static = self._component.static
        for name, size in dims.items():
            planned = self._planned[name]
            if size > planned or (name in static and size != planned):
                made = ", ".join(
                    f"{n}={s}" if n in static else f"{n} up to {s}"
                    for n, s in self._planned.items()
                )
                raise InputError(
                    f"{self._component.name} in {self._path} was exported for {made}; got "
                    f"{name}={size}. Make another for this size: perfuse export --to executorch "
                    "--height H --width W --batch B."
                )

    def report(self) -> ExecutionReport:
        """What ran: ``delegated`` operators on XNNPACK, ``portable`` ones on ExecuTorch's kernels.

        Both run on the CPU, in the precision given; neither is a fallback.
        """
        if self._method is None:
            raise ExecutionError(f"{self._component.name} was closed; it has nothing to report.")
        return ExecutionReport(
            device="cpu",
            precision="float16" if self._halves else "float32",
            engine=f"executorch {version('executorch')}",
            details={
                "threads": self._threads,
                "file": str(self._path),
                **describe(self._path).get("delegation", {}),
            },
        )

    def close(self) -> None:
        """Release the program's memory and its file."""
        with self._lock:
            self._method = None


def _dtype(info: Any, tensor: TensorSpec, path: Path) -> type[np.generic]:
    number = info.dtype()
    dtype = _DTYPES.get(number)
    if dtype is None or (dtype is np.int64) != (tensor.dtype == "int64"):
        raise ArtifactError(
            f"{path} takes {tensor.name} as the type {number} of ExecuTorch; {tensor.dtype} was "
            "expected. Export the model again in float32 or float16."
        )
    return dtype


def _planned(component: Component, infos: list[Any], path: Path) -> dict[str, int]:
    """The size that the file has for each dimension of the signature.

    Raises:
        ArtifactError: the file is of another signature or of other sizes.
    """
    planned: dict[str, int] = dict(component.static)
    for info, tensor in zip(infos, component.spec.signature.inputs, strict=True):
        sizes = tuple(info.sizes())
        fits = len(sizes) == len(tensor.shape) and all(
            (planned.setdefault(want, size) if isinstance(want, str) else want) == size
            for want, size in zip(tensor.shape, sizes, strict=True)
        )
        if not fits:
            raise ArtifactError(
                f"{path} takes {tensor.name} of shape {sizes}; {component.name} was to take "
                f"{tensor.resolve(planned)}. The file was made for another component or size. "
                "Export the model again."
            )
    return planned


def _fitted(value: Array, dtype: type[np.generic], name: str) -> Array:
    """A contiguous array of the file's dtype; the caller's own where it fits."""
    array = to_numpy(value)
    if dtype is np.int64 and array.dtype.kind not in "iub":
        raise InputError(
            f"{name} takes whole numbers; got {array.dtype}, whose fractions would be cut off."
        )
    array = np.ascontiguousarray(array, dtype=dtype)
    # torch warns of memory that may not be written to, though nobody will.
    return array if array.flags.writeable else array.copy()
