"""Tasks: one file each, built from shared steps.

A pipeline class names its tasks by import path, in ``perfuse.families`` or in a plugin's manifest,
so importing this package is cheap.
"""

from typing import TYPE_CHECKING

from perfuse._lazy import lazy

if TYPE_CHECKING:
    from perfuse.tasks.choosing import find_guider as find_guider
    from perfuse.tasks.choosing import tasks_of as tasks_of
    from perfuse.tasks.denoise import advance as advance
    from perfuse.tasks.denoise import check_count as check_count
    from perfuse.tasks.denoise import check_output_type as check_output_type
    from perfuse.tasks.denoise import check_size as check_size
    from perfuse.tasks.denoise import decode as decode
    from perfuse.tasks.denoise import denoise_loop as denoise_loop
    from perfuse.tasks.denoise import draw_latents as draw_latents
    from perfuse.tasks.denoise import finish as finish
    from perfuse.tasks.denoise import guide as guide
    from perfuse.tasks.denoise import pictures_of as pictures_of
    from perfuse.tasks.denoise import place_inputs as place_inputs
    from perfuse.tasks.denoise import predict as predict
    from perfuse.tasks.denoise import prepare_schedule as prepare_schedule
    from perfuse.tasks.guiders import AdaptiveProjectedGuidance as AdaptiveProjectedGuidance
    from perfuse.tasks.guiders import AdaptiveProjectedMixGuidance as AdaptiveProjectedMixGuidance
    from perfuse.tasks.guiders import AutoGuidance as AutoGuidance
    from perfuse.tasks.guiders import ClassifierFreeGuidance as ClassifierFreeGuidance
    from perfuse.tasks.guiders import (
        ClassifierFreeZeroStarGuidance as ClassifierFreeZeroStarGuidance,
    )
    from perfuse.tasks.guiders import EmbeddedGuidance as EmbeddedGuidance
    from perfuse.tasks.guiders import FrequencyDecoupledGuidance as FrequencyDecoupledGuidance
    from perfuse.tasks.guiders import InstructPix2PixGuidance as InstructPix2PixGuidance
    from perfuse.tasks.guiders import MagnitudeAwareGuidance as MagnitudeAwareGuidance
    from perfuse.tasks.guiders import NoGuidance as NoGuidance
    from perfuse.tasks.guiders import PAGGuidance as PAGGuidance
    from perfuse.tasks.guiders import PerturbedAttentionGuidance as PerturbedAttentionGuidance
    from perfuse.tasks.guiders import SkipLayerGuidance as SkipLayerGuidance
    from perfuse.tasks.guiders import SmoothedEnergyGuidance as SmoothedEnergyGuidance
    from perfuse.tasks.guiders import (
        TangentialClassifierFreeGuidance as TangentialClassifierFreeGuidance,
    )
    from perfuse.tasks.image_prompt import adapters_of as adapters_of
    from perfuse.tasks.inputs import GUIDANCE as GUIDANCE
    from perfuse.tasks.inputs import NOISE as NOISE
    from perfuse.tasks.inputs import OUTPUT as OUTPUT
    from perfuse.tasks.inputs import PROMPTS as PROMPTS
    from perfuse.tasks.inputs import REQUIRED as REQUIRED
    from perfuse.tasks.inputs import SIZE as SIZE
    from perfuse.tasks.inputs import STEPS as STEPS
    from perfuse.tasks.safety import check_safety as check_safety
    from perfuse.tasks.text import conditions_of as conditions_of
    from perfuse.tasks.text import encode as encode
    from perfuse.tasks.text import guider_for as guider_for
    from perfuse.tasks.text import read_texts as read_texts
    from perfuse.tasks.text import repeat as repeat
    from perfuse.tasks.text_to_image import TEXT_TO_IMAGE as TEXT_TO_IMAGE
    from perfuse.tasks.text_to_image import prepare_latents as prepare_latents
    from perfuse.tasks.text_to_image import read_prompts as read_prompts
    from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL as TEXT_TO_IMAGE_XL
    from perfuse.tasks.unconditional import UNCONDITIONAL as UNCONDITIONAL

__getattr__, __dir__ = lazy(
    __name__,
    {
        "choosing": (
            "find_guider",
            "tasks_of",
        ),
        "denoise": (
            "advance",
            "check_count",
            "check_output_type",
            "check_size",
            "decode",
            "denoise_loop",
            "draw_latents",
            "finish",
            "guide",
            "pictures_of",
            "place_inputs",
            "predict",
            "prepare_schedule",
        ),
        "image_prompt": ("adapters_of",),
        "inputs": (
            "GUIDANCE",
            "NOISE",
            "OUTPUT",
            "PROMPTS",
            "REQUIRED",
            "SIZE",
            "STEPS",
        ),
        "safety": ("check_safety",),
        "text": (
            "conditions_of",
            "encode",
            "guider_for",
            "read_texts",
            "repeat",
        ),
        "text_to_image": (
            "TEXT_TO_IMAGE",
            "prepare_latents",
            "read_prompts",
        ),
        "text_to_image_xl": ("TEXT_TO_IMAGE_XL",),
        "unconditional": ("UNCONDITIONAL",),
    },
    rooms=("guiders",),
)
