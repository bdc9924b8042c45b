"""Diffusers' arguments of ``from_pretrained``: what each is here, or what takes its place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfuse.contract.target import PRECISIONS
from perfuse.errors import InputError

__all__ = ["Opening", "check_safetensors", "dtype_name", "read_arguments"]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What Diffusers' arguments ask for, in perfuse's words."""

    precision: str | None = None
    offline: bool | None = None
    #: A device to run on, ``"cuda"``.
    device: str | None = None
    #: For the Hub: ``cache_dir``, ``token``, ``force_download``.
    hub: Mapping[str, Any] = field(default_factory=dict)
    #: The rest: components, and settings of the class.
    components: Mapping[str, Any] = field(default_factory=dict)


#: True of every pipeline here, so that nothing has to be done.
_ALWAYS = ("low_cpu_mem_usage", "offload_state_dict", "resume_download", "mirror", "proxies")
#: Arguments that are refused where they ask for something, and what takes their place.
_REFUSED = {
    "quantization_config": "Give a precision: precision='unet=int8'. Of a GGUF file a model's and a "
    "pipeline's from_single_file take it.",
    "use_onnx": "Give a backend: backend='onnxruntime'.",
    "provider": "Give a backend with its device: backend='onnxruntime:cuda'.",
    "provider_options": "Give the backend's options: options={'threads': '4'}.",
    "sess_options": "Give the backend's options: options={'threads': '4'}.",
    "max_memory": "Give a placement, backend='unet=torch:cuda,torch:cpu', or call "
    "pipe.enable_model_cpu_offload().",
    "offload_folder": "Weights are mapped from their files and need no folder of their own.",
    "use_flashpack": "Weights are mapped from safetensors files, which no second layout makes faster.",
    "load_connected_pipeline": "Open the other pipeline by its own id.",
    "dduf_file": "Unpack the file and name the folder.",
    "output_loading_info": "A checkpoint that does not fit raises an error that says what does not.",
    "original_config": "The tensors tell the model's shape. For another one give a checkpoint in "
    "Diffusers' layout: config=FOLDER.",
    "disable_mmap": "Weights are always mapped from their files.",
}


def read_arguments(given: Mapping[str, Any]) -> Opening:
    """Read the arguments that only Diffusers has.

    Raises:
        InputError: an argument is refused, or its value cannot be used.
    """
    rest = {name: value for name, value in given.items() if name not in _ALWAYS}
    for name, instead in _REFUSED.items():
        value = rest.pop(name, None)
        if value is not None and value is not False:
            raise InputError(f"{name}={value!r} was given; perfuse does not take it. {instead}")
    check_safetensors(rest.pop("use_safetensors", None))
    dtype = rest.pop("dtype", None)
    dtype = rest.pop("torch_dtype", None) if dtype is None else dtype
    names = ("cache_dir", "token", "force_download")
    token = rest.pop("use_auth_token", None)
    hub = {name: rest.pop(name) for name in names if name in rest}
    if token is not None:
        hub.setdefault("token", token)
    return Opening(
        precision=_precision(dtype),
        offline=rest.pop("local_files_only", None) or None,
        device=_device(rest.pop("device_map", None)),
        hub={name: value for name, value in hub.items() if value is not None},
        components=rest,
    )


def check_safetensors(use_safetensors: bool | None) -> None:
    """Raise ``InputError`` for ``use_safetensors=False``."""
    if use_safetensors is False:
        raise InputError(
            "use_safetensors=False was given; perfuse reads safetensors alone, because a pickle can "
            "run any code. Convert the checkpoint: save_pretrained in Diffusers writes safetensors."
        )


def dtype_name(dtype: Any) -> str:
    """The name of a torch dtype, or of one given by name: ``"float16"``."""
    return str(dtype).removeprefix("torch.")


def _precision(dtype: Any) -> str | None:
    if isinstance(dtype, Mapping):
        names = {dtype_name(one) for one in dtype.values()}
        if len(names) > 1:
            raise InputError(
                f"torch_dtype={dict(dtype)!r} was given; a pipeline has one precision. Give one dtype."
            )
        dtype = next(iter(names), None)
    if dtype is None or dtype == "auto":
        return None
    name = dtype_name(dtype)
    if name not in PRECISIONS:
        raise InputError(f"torch_dtype={dtype!r} was given; use one of {', '.join(PRECISIONS)}.")
    return name


def _device(device_map: Any) -> str | None:
    if device_map is None:
        return None
    if isinstance(device_map, Mapping) or device_map in ("balanced", "auto", "balanced_low_0"):
        raise InputError(
            f"device_map={device_map!r} was given; give a placement, a target for each component: "
            "backend='unet=torch:cuda:0,text_encoder=torch:cuda:1,torch:cpu'."
        )
    return f"cuda:{device_map}" if isinstance(device_map, int) else str(device_map)
