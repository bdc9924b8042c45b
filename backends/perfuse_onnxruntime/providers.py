"""ONNX Runtime's execution providers under the names that a person types."""

from collections.abc import Mapping, Sequence
from typing import Any

from perfuse.backend import Device
from perfuse.errors import DeviceNotFoundError

#: Device name to provider and the package that brings it. The CPU is first: it is the default,
#: because it is there on every machine, and a device that is not should be asked for by name.
_PROVIDERS: Mapping[str, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "nvtensorrtrtx": ("NvTensorRTRTXExecutionProvider", "onnxruntime-trt-rtx"),
    "rocm": ("ROCMExecutionProvider", "onnxruntime-rocm"),
    "migraphx": ("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    "dml": ("DmlExecutionProvider", "onnxruntime-directml"),
    "webgpu": ("WebGpuExecutionProvider", "onnxruntime-webgpu"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime, on macOS"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "qnn": ("QNNExecutionProvider", "onnxruntime-qnn"),
    "xnnpack": ("XnnpackExecutionProvider", "a build of onnxruntime with XNNPACK"),
    "vitisai": ("VitisAIExecutionProvider", "AMD's build of onnxruntime"),
    "cann": ("CANNExecutionProvider", "onnxruntime-cann"),
}
_NAMES = {provider: name for name, (provider, _) in _PROVIDERS.items()}
#: It sends the inputs to a server: not a device.
_REMOTE = "AzureExecutionProvider"
#: Those that take the index of a device: ``cuda:1``.
_INDEXED = ("cuda", "tensorrt", "nvtensorrtrtx", "rocm", "migraphx", "dml", "cann")
_SUFFIX = "ExecutionProvider"


def devices(available: Sequence[str]) -> tuple[Device, ...]:
    """The devices that a build's providers stand for, the CPU first."""
    names = [_name(provider) for provider in available if provider != _REMOTE]
    order = list(_PROVIDERS)
    known = sorted((n for n in names if n in _PROVIDERS), key=order.index)
    return tuple(
        Device(
            name=name,
            description=_provider(name, available),
            precisions=("float32", "float16"),
        )
        for name in (*known, *(n for n in names if n not in _PROVIDERS))
    )


def _name(provider: str) -> str:
    return _NAMES.get(provider, provider.removesuffix(_SUFFIX).lower())


def _provider(name: str, available: Sequence[str]) -> str:
    return next(provider for provider in available if _name(provider) == name)


def resolve(device: str, available: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The provider and its options for a device such as ``"cpu"`` or ``"cuda:1"``.

    Raises:
        DeviceNotFoundError: the installed build does not have it.
    """
    name, colon, index = device.partition(":")
    name = name.lower()
    found = [found.name for found in devices(available)]
    if name not in found:
        package = f" {name} comes with {_PROVIDERS[name][1]}." if name in _PROVIDERS else ""
        raise DeviceNotFoundError(
            f"onnxruntime:{device} was asked for; the installed ONNX Runtime has "
            f"{', '.join(found)}.{package} Of its packages only one can be installed at a time."
        )
    if not colon:
        return _provider(name, available), {}
    if name not in _INDEXED or not index.isdecimal():
        raise DeviceNotFoundError(
            f"onnxruntime:{device} was asked for; "
            + (
                f"a number is expected after {name}:, for example {name}:0."
                if name in _INDEXED
                else f"{name} is one device. Use onnxruntime:{name}."
            )
        )
    return _provider(name, available), {"device_id": index}
