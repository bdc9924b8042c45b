"""What differs between torch's kinds of device, as data: one entry a kind, each with its sources.

The backend has no other knowledge of a kind. Importing this imports no torch.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

from perfuse.backend import Limits

__all__ = ["DEVICES", "TorchDevice", "bfloat16_on_macos", "device_of", "host_memory"]

_DIFFUSERS_MPS = "https://huggingface.co/docs/diffusers/optimization/mps"
_GAUDI = "https://docs.habana.ai/en/latest/PyTorch"
_GAUDI_MATRIX = f"{_GAUDI}/Reference/PyTorch_Support_Matrix.html"
_GAUDI_PRACTICE = (
    f"{_GAUDI}/Model_Optimization_PyTorch/Best_Practices_for_Model_Training_on_Gaudi.html"
)
_PYTORCH = "https://docs.pytorch.org/docs/stable"
_WIDE = {"float64": "", "complex64": "", "complex128": ""}


@dataclass(frozen=True, kw_only=True)
class TorchDevice:
    """A kind of device. Functions are import paths, ``"module:function"``, called only on it."""

    #: The name before the colon: ``"cuda"``, ``"mps"``.
    kind: str
    #: What it can take, for the portability report and for the backend.
    limits: Limits
    #: The module that gives torch this kind, where torch does not bring it.
    brought_by: str = ""
    #: Says whether this machine's has bfloat16; empty where all have.
    has_bfloat16: str = ""
    #: Whether a copy to it may still run when the memory that it reads is released.
    copies_async: bool = True
    #: Bytes of the machine's memory under which attention is computed in slices; 0 for never.
    slice_attention_below: int = 0
    #: In how many slices, then.
    attention_slices: int = 1
    #: What ``torch.compile`` lowers to.
    compiler: str = "inductor"
    #: What runs the operations that were gathered, after each call; empty where none are.
    after_call: str = ""
    #: Waits until a device has computed everything; empty where nothing is left to wait for.
    synchronize: str = ""
    #: Frees torch's cached memory; empty if the device has no such cache.
    empty_cache: str = ""
    #: Settings that must be off for float32 to be float32: ``"module:object.attribute"``.
    tf32: tuple[str, ...] = ()
    #: With this environment variable at 1, torch computes on the CPU what the device lacks.
    fallback_variable: str = ""
    #: Name of a field above to the document that it was taken from; ``limits`` has its own.
    sources: Mapping[str, str] = field(default_factory=dict)


def bfloat16_on_macos() -> bool:
    """Whether this Mac's GPU has bfloat16: Apple silicon with macOS 14 or later."""
    release = platform.mac_ver()[0].partition(".")[0]
    return platform.machine() == "arm64" and release.isdecimal() and int(release) >= 14


def host_memory() -> int | None:
    """Bytes of memory of this machine; ``None`` where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def device_of(name: str) -> TorchDevice:
    """The entry of a device such as ``"cuda:1"``.

    Raises:
        KeyError: the table has no such kind.
    """
    return DEVICES[name.partition(":")[0]]


_CPU = TorchDevice(
    kind="cpu",
    limits=Limits(
        precisions={"float32": "", "float16": "", "bfloat16": ""},
        executed="x86-64, Linux",
    ),
)

_CUDA = TorchDevice(
    kind="cuda",
    limits=Limits(
        precisions={"float32": "", "float16": "", "bfloat16": ""},
        conditions={"bfloat16": "compute capability 8.0 (Ampere), and is slow before"},
        notes=("float32 is computed without TF32; --option tf32=true allows it",),
        sources={
            "conditions": f"{_PYTORCH}/generated/torch.cuda.is_bf16_supported.html",
            "notes": f"{_PYTORCH}/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices",
        },
    ),
    has_bfloat16="torch.cuda:is_bf16_supported",
    synchronize="torch.accelerator:synchronize",
    empty_cache="torch.cuda:empty_cache",
    tf32=("torch.backends.cuda:matmul.allow_tf32", "torch.backends:cudnn.allow_tf32"),
    sources={
        "has_bfloat16": f"{_PYTORCH}/generated/torch.cuda.is_bf16_supported.html",
        "synchronize": f"{_PYTORCH}/generated/torch.accelerator.synchronize.html",
        "empty_cache": f"{_PYTORCH}/generated/torch.cuda.memory.empty_cache.html",
        "tf32": f"{_PYTORCH}/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices",
    },
)

_MPS = TorchDevice(
    kind="mps",
    limits=Limits(
        precisions={"float32": "", "float16": "", "bfloat16": ""},
        conditions={"bfloat16": "macOS 14 or later on Apple silicon, emulated on M1"},
        dtypes=_WIDE,
        max_elements=2**32,
        slices_attention=True,
        pictures=1,
        notes=(
            "attention is computed in two slices where the machine has less than 64 GB",
            "inputs in float64 are cast on the host",
            "copies to it wait until they are done",
        ),
        unknown=(
            "which operators it lacks: torch refuses them, or with PYTORCH_ENABLE_MPS_FALLBACK=1 "
            + "computes them on the CPU",
        ),
        sources={
            "conditions": "https://github.com/pytorch/pytorch/pull/119641",
            "dtypes": "https://github.com/pytorch/pytorch/issues/122602",
            "max_elements": "https://github.com/pytorch/pytorch/issues/149325",
            "slices_attention": _DIFFUSERS_MPS,
            "pictures": _DIFFUSERS_MPS,
            "notes": _DIFFUSERS_MPS,
            "unknown": f"{_PYTORCH}/mps_environment_variables.html",
        },
    ),
    has_bfloat16="perfuse_torch.devices:bfloat16_on_macos",
    copies_async=False,
    slice_attention_below=64 * 2**30,
    attention_slices=2,
    synchronize="torch.accelerator:synchronize",
    empty_cache="torch.mps:empty_cache",
    fallback_variable="PYTORCH_ENABLE_MPS_FALLBACK",
    sources={
        "has_bfloat16": "https://github.com/pytorch/pytorch/pull/119641",
        # The guide's warm-up pass is for PyTorch 1.13 only, which perfuse does not support.
        "copies_async": "https://github.com/pytorch/pytorch/issues/189690",
        "slice_attention_below": _DIFFUSERS_MPS,
        "attention_slices": f"{_DIFFUSERS_MPS}#attention-slicing",
        "synchronize": f"{_PYTORCH}/generated/torch.accelerator.synchronize.html",
        "empty_cache": f"{_PYTORCH}/mps.html",
        "fallback_variable": f"{_PYTORCH}/mps_environment_variables.html",
    },
)

_XPU = TorchDevice(
    kind="xpu",
    limits=Limits(
        precisions={"float32": "", "float16": "", "bfloat16": ""},
        # Arc A and the graphics of Meteor Lake have none; that others have is of no use here.
        dtypes=_WIDE,
        notes=("inputs in float64 are cast on the host",),
        unknown=("which operators it lacks: torch refuses them",),
        sources={
            "precisions": f"{_PYTORCH}/notes/get_start_xpu.html",
            "dtypes": "https://github.com/comfyanonymous/ComfyUI/discussions/476",
            "notes": "https://github.com/comfyanonymous/ComfyUI/discussions/476",
            "unknown": f"{_PYTORCH}/notes/get_start_xpu.html",
        },
    ),
    synchronize="torch.accelerator:synchronize",
    empty_cache="torch.xpu:empty_cache",
    sources={
        "synchronize": f"{_PYTORCH}/generated/torch.accelerator.synchronize.html",
        "empty_cache": f"{_PYTORCH}/generated/torch.xpu.memory.empty_cache.html",
    },
)

_HPU = TorchDevice(
    kind="hpu",
    limits=Limits(
        precisions={"float32": "", "bfloat16": "", "float16": ""},
        conditions={"float16": "Gaudi 2 or later"},
        dtypes={**_WIDE, "int64": "held as int32, which token ids and positions fit"},
        notes=(
            "the first call of each size compiles: draw once with one step before you measure",
            "what was gathered is run after each call (mark_step)",
            "--option compile=true compiles with hpu_backend",
        ),
        unknown=("which operators it lacks: torch refuses them, or computes them on the CPU",),
        sources={
            "precisions": _GAUDI_MATRIX,
            "conditions": _GAUDI_MATRIX,
            "dtypes": _GAUDI_PRACTICE,
            "notes": _GAUDI_PRACTICE,
            "unknown": "https://docs.habana.ai/en/latest/Pytorch_Operators/Pytorch_Operators.html",
        },
    ),
    brought_by="habana_frameworks.torch",
    compiler="hpu_backend",
    after_call="habana_frameworks.torch.core:mark_step",
    synchronize="torch.hpu:synchronize",
    sources={
        "brought_by": f"{_GAUDI}/Inference_on_PyTorch/Inference_Using_Native_FW.html",
        "compiler": _GAUDI_MATRIX,
        "after_call": f"{_GAUDI}/Reference/mark_step.html",
        "synchronize": f"{_GAUDI}/Reference/mark_step.html",
    },
)

#: Accelerators in the order of preference, then the CPU.
DEVICES: Mapping[str, TorchDevice] = {d.kind: d for d in (_CUDA, _HPU, _XPU, _MPS, _CPU)}
