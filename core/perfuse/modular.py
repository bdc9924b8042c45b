"""Diffusers' modular vocabulary, and what lets perfuse take part in it.

``ModularPipeline``, ``SequentialPipelineBlocks``, ``ComponentsManager``, ``InputParam`` … are Diffusers'
own classes, imported when they are asked for. ``as_blocks`` makes such blocks of a task of perfuse.
``TEXT2IMAGE_BLOCKS``, ``IMAGE2IMAGE_BLOCKS`` and ``INPAINT_BLOCKS`` are the presets for Stable Diffusion XL
that earlier versions of Diffusers had.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from perfuse.errors import InputError

_CLASSES = (
    "AutoPipelineBlocks",
    "BlockState",
    "ComponentSpec",
    "ComponentsManager",
    "ConditionalPipelineBlocks",
    "ConfigSpec",
    "InputParam",
    "InsertableDict",
    "LoopSequentialPipelineBlocks",
    "ModularPipeline",
    "ModularPipelineBlocks",
    "OutputParam",
    "PipelineState",
    "SequentialPipelineBlocks",
)

_SDXL = "diffusers.modular_pipelines.stable_diffusion_xl"
#: Of each preset: the name of a block, and its class without what all of them begin with.
_PRESETS: Mapping[str, Mapping[str, str]] = {
    "TEXT2IMAGE_BLOCKS": {
        "text_encoder": "encoders.TextEncoderStep",
        "input": "before_denoise.InputStep",
        "set_timesteps": "before_denoise.SetTimestepsStep",
        "prepare_latents": "before_denoise.PrepareLatentsStep",
        "prepare_add_cond": "before_denoise.PrepareAdditionalConditioningStep",
        "denoise": "denoise.DenoiseStep",
        "decode": "decoders.DecodeStep",
    },
    "IMAGE2IMAGE_BLOCKS": {
        "text_encoder": "encoders.TextEncoderStep",
        "image_encoder": "encoders.VaeEncoderStep",
        "input": "before_denoise.InputStep",
        "set_timesteps": "before_denoise.Img2ImgSetTimestepsStep",
        "prepare_latents": "before_denoise.Img2ImgPrepareLatentsStep",
        "prepare_add_cond": "before_denoise.Img2ImgPrepareAdditionalConditioningStep",
        "denoise": "denoise.DenoiseStep",
        "decode": "decoders.DecodeStep",
    },
    "INPAINT_BLOCKS": {
        "text_encoder": "encoders.TextEncoderStep",
        "image_encoder": "encoders.InpaintVaeEncoderStep",
        "input": "before_denoise.InputStep",
        "set_timesteps": "before_denoise.Img2ImgSetTimestepsStep",
        "prepare_latents": "before_denoise.InpaintPrepareLatentsStep",
        "prepare_add_cond": "before_denoise.Img2ImgPrepareAdditionalConditioningStep",
        "denoise": "denoise.InpaintDenoiseStep",
        "decode": "modular_blocks_stable_diffusion_xl.InpaintDecodeStep",
    },
}

_NAMES = sorted((*_CLASSES, *_PRESETS, "as_blocks"))
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        modular = import_module("diffusers.modular_pipelines")
    except ImportError as exc:
        raise InputError(
            f"perfuse.modular.{name} was asked for; it needs Diffusers, of a version with modular "
            "pipelines. Install it: pip install diffusers transformers."
        ) from exc
    if name == "as_blocks":
        return import_module("perfuse.bridge.blocks").as_blocks
    if name in _PRESETS:
        return _preset(modular.InsertableDict(), _PRESETS[name])
    return getattr(modular, name)


def _preset(blocks: Any, named: Mapping[str, str]) -> Any:
    """A preset's classes by their blocks' names; a new one each time, to be changed by who asked."""
    for block, path in named.items():
        module, _, kind = path.rpartition(".")
        blocks[block] = getattr(import_module(f"{_SDXL}.{module}"), f"StableDiffusionXL{kind}")
    return blocks


def __dir__() -> list[str]:
    return list(_NAMES)
