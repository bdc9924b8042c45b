"""What OpenVINO's devices can take. Imports no engine."""

from perfuse.backend import Limits

_DEVICES = (
    "https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes"
)
_HALF = "computed in it where the device has it, else in float32; stored in it"

#: By device, as OpenVINO names them.
LIMITS = {
    "CPU*": Limits(
        precisions={"float32": "", "float16": _HALF, "bfloat16": _HALF},
        executed="x86-64, Linux",
        sources={"precisions": f"{_DEVICES}/cpu-device.html"},
    ),
    "GPU*": Limits(
        precisions={"float32": "", "float16": "", "bfloat16": _HALF},
        sources={"precisions": f"{_DEVICES}/gpu-device.html"},
    ),
    "NPU*": Limits(
        precisions={"float16": ""},
        fixed_sizes=True,
        unknown=("which operators the driver's compiler takes",),
        sources={
            "precisions": f"{_DEVICES}/npu-device.html",
            "fixed_sizes": f"{_DEVICES}/npu-device.html",
            "unknown": f"{_DEVICES}/npu-device.html",
        },
    ),
    "*": Limits(
        precisions={"float32": "", "float16": _HALF, "bfloat16": _HALF},
        unknown=("which device OpenVINO chooses, and what that can take",),
        sources={
            "precisions": f"{_DEVICES}/auto-device-selection.html",
            "unknown": f"{_DEVICES}/auto-device-selection.html",
        },
    ),
}
