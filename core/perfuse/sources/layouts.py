"""The pipelines that people keep in single files, as CompVis and Stability AI published them.

What no tensor tells is here: the pipeline's class, its schedule, the size of its pictures, the scale
of its latents, the token that fills up its prompts. The values are those of the repositories that
Diffusers takes them from.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perfuse.contract.frozen import FrozenDict

__all__ = ["DENOISERS", "LAYOUTS", "UNET", "VAE", "Layout", "layout_of", "nearest"]

#: What may stand before the names of a denoiser's and an autoencoder's tensors.
UNET = TRANSFORMER = ("model.diffusion_model.", "")
VAE = ("first_stage_model.", "vae.", "")
#: The denoisers that a file may have, by their names in a pipeline.
DENOISERS: Mapping[str, tuple[str, ...]] = {"unet": UNET, "transformer": TRANSFORMER}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One pipeline as single files hold it."""

    #: What ``perfuse inspect`` calls it.
    name: str
    #: The pipeline's class in Diffusers.
    class_name: str
    #: What the denoiser's config says, as far as it tells this pipeline from others.
    denoiser: Mapping[str, Any]
    #: Of these beginnings of names, a file of this layout has one; none for any file.
    marks: tuple[str, ...] = ()
    #: Component to what may stand before the names of its tensors.
    parts: Mapping[str, tuple[str, ...]]
    #: Component to the fields of its config that no tensor tells.
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=FrozenDict)
    #: The scheduler's config.
    scheduler: Mapping[str, Any] = field(default_factory=FrozenDict)
    #: The repository that has what such files never have: configs, tokenizers, and often text
    #: encoders. Empty where the rest is known.
    config: str = ""
    #: Scalars of ``model_index.json``.
    options: Mapping[str, Any] = field(default_factory=FrozenDict)
    #: Tokenizer to the token that fills a prompt up.
    padding: Mapping[str, str] = field(default_factory=FrozenDict)

    def fits(self, denoiser: Mapping[str, Any], names: Collection[str]) -> bool:
        """Whether a file with this denoiser and these tensors is of this layout."""
        return self.marked(names) and not self.differs(denoiser)

    def marked(self, names: Collection[str]) -> bool:
        """Whether a file has one of the tensors that those of this layout have."""
        return not self.marks or any(name.startswith(self.marks) for name in names)

    def differs(self, denoiser: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the denoiser's config that this layout has otherwise."""
        return {name: value for name, value in self.denoiser.items() if denoiser.get(name) != value}


def layout_of(denoiser: Mapping[str, Any], names: Collection[str]) -> Layout | None:
    """The first layout that a denoiser's config and the names of a file's tensors fit."""
    return next((layout for layout in LAYOUTS if layout.fits(denoiser, names)), None)


def nearest(denoiser: Mapping[str, Any], names: Collection[str]) -> Layout:
    """The layout with such tensors whose denoiser differs least."""
    alike = [layout for layout in LAYOUTS if layout.marked(names)]
    marked = [layout for layout in alike if layout.marks]
    return min(marked or alike, key=lambda layout: len(layout.differs(denoiser)))


_END, _MARK = "<|endoftext|>", "!"
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
_DDIM = {"_class_name": "DDIMScheduler", **_NOISE}
_PNDM = {"_class_name": "PNDMScheduler", **_NOISE}
_EULER = {
    "_class_name": "EulerDiscreteScheduler",
    **_NOISE,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
_EDM = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
}

_SD_1 = Layout(
    name="Stable Diffusion 1",
    class_name="StableDiffusionPipeline",
    denoiser={"use_linear_projection": False, "in_channels": 4},
    parts={"unet": UNET, "vae": VAE, "text_encoder": ("cond_stage_model.",)},
    fields={
        "unet": {"sample_size": 64},
        "vae": {"sample_size": 512, "scaling_factor": 0.18215, "force_upcast": True},
    },
    scheduler=_PNDM,
    padding={"tokenizer": _END},
)
_SD_2 = replace(
    _SD_1,
    name="Stable Diffusion 2",
    denoiser={"use_linear_projection": True, "addition_embed_type": None, "in_channels": 4},
    fields={
        "unet": {"sample_size": 96, "upcast_attention": True},
        "vae": {"sample_size": 768, "scaling_factor": 0.18215, "force_upcast": True},
    },
    # Most such files are of the models for 768×768; no tensor tells, and Diffusers assumes it, too.
    scheduler={**_DDIM, "prediction_type": "v_prediction"},
    padding={"tokenizer": _MARK},
)
_SD_XL = Layout(
    name="Stable Diffusion XL",
    class_name="StableDiffusionXLPipeline",
    denoiser={"use_linear_projection": True, "addition_embed_type": "text_time", "in_channels": 4},
    parts={
        "unet": UNET,
        "vae": VAE,
        "text_encoder": ("conditioner.embedders.0.",),
        "text_encoder_2": ("conditioner.embedders.1.",),
    },
    fields={
        "unet": {"sample_size": 128},
        "vae": {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    },
    scheduler=_EULER,
    options={"force_zeros_for_empty_prompt": True},
    padding={"tokenizer": _END, "tokenizer_2": _MARK},
)
_REFINER = replace(
    _SD_XL,
    name="Stable Diffusion XL refiner",
    class_name="StableDiffusionXLImg2ImgPipeline",
    marks=("conditioner.embedders.0.model.",),
    parts={"unet": UNET, "vae": VAE, "text_encoder_2": ("conditioner.embedders.0.",)},
    options={"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
    padding={"tokenizer_2": _MARK},
)


def _with_channels(layout: Layout, channels: int, name: str, class_name: str) -> Layout:
    """The same layout with further channels of the UNet's input: a mask, a picture, a depth map."""
    return replace(
        layout,
        name=f"{layout.name} {name}",
        class_name=class_name,
        denoiser={**layout.denoiser, "in_channels": channels},
    )


_CLIP_L, _CLIP_G = "text_encoders.clip_l.", "text_encoders.clip_g."
_T5 = "text_encoders.t5xxl.transformer."


def _transformer(
    name: str,
    class_name: str,
    config: str,
    mark: str,
    denoiser: Mapping[str, Any],
    **parts: tuple[str, ...],
) -> Layout:
    """A pipeline of a transformer, whose first tensors tell its architecture."""
    return Layout(
        name=name,
        class_name=class_name,
        config=config,
        denoiser=denoiser,
        marks=tuple(before + mark for before in TRANSFORMER),
        parts={"transformer": TRANSFORMER, "vae": VAE, **parts},
    )


_FLUX = _transformer(
    "FLUX.1 dev",
    "FluxPipeline",
    "black-forest-labs/FLUX.1-dev",
    "double_blocks.0.img_mod.",
    {"in_channels": 64, "guidance_embeds": True},
    text_encoder=(_CLIP_L,),
    text_encoder_2=(_T5,),
)
_SD_3 = _transformer(
    "Stable Diffusion 3",
    "StableDiffusion3Pipeline",
    "stabilityai/stable-diffusion-3-medium-diffusers",
    "joint_blocks.0.x_block.",
    {"qk_norm": None},
    # The first CLIP's projection, which files do not have, is with the first CLIP in ``config``.
    text_encoder_2=(_CLIP_G,),
    text_encoder_3=(_T5,),
)
_KLEIN = _transformer(
    "FLUX.2 klein 4B",
    "Flux2KleinPipeline",
    "black-forest-labs/FLUX.2-klein-4B",
    "single_stream_modulation.",
    {"num_attention_heads": 24},
)
_AURA = _transformer(
    "AuraFlow 0.3",
    "AuraFlowPipeline",
    "fal/AuraFlow-v0.3",
    "double_layers.0.modX.",
    {"pos_embed_max_size": 9216},
)
_TRANSFORMERS = (
    _FLUX,
    replace(
        _FLUX,
        name="FLUX.1 schnell",
        config="black-forest-labs/FLUX.1-schnell",
        denoiser={"in_channels": 64, "guidance_embeds": False},
    ),
    replace(
        _FLUX,
        name="FLUX.1 Fill",
        class_name="FluxFillPipeline",
        config="black-forest-labs/FLUX.1-Fill-dev",
        denoiser={"in_channels": 384},
    ),
    _transformer(
        "Chroma",
        "ChromaPipeline",
        "lodestones/Chroma1-HD",
        "distilled_guidance_layer.",
        {"in_channels": 64},
    ),
    _SD_3,
    replace(
        _SD_3,
        name="Stable Diffusion 3.5 large",
        config="stabilityai/stable-diffusion-3.5-large",
        denoiser={"qk_norm": "rms_norm", "dual_attention_layers": ()},
    ),
    replace(
        _SD_3,
        name="Stable Diffusion 3.5 medium",
        config="stabilityai/stable-diffusion-3.5-medium",
        denoiser={"qk_norm": "rms_norm"},
    ),
    _KLEIN,
    replace(
        _KLEIN,
        name="FLUX.2 klein 9B",
        config="black-forest-labs/FLUX.2-klein-9B",
        denoiser={"num_attention_heads": 32},
    ),
    _transformer(
        "Z-Image-Turbo",
        "ZImagePipeline",
        "Tongyi-MAI/Z-Image-Turbo",
        "layers.0.adaLN_modulation.0.",
        {},
    ),
    _transformer(
        "Qwen-Image",
        "QwenImagePipeline",
        "Qwen/Qwen-Image",
        "transformer_blocks.0.img_mod.",
        {},
    ),
    _transformer(
        "Qwen-Image 2.1",
        "QwenImage21Pipeline",
        "Qwen/Qwen-Image-2.1",
        "txt_in.text_norm.",
        {},
    ),
    _transformer(
        "Lumina 2",
        "Lumina2Pipeline",
        "Alpha-VLLM/Lumina-Image-2.0",
        "layers.0.adaLN_modulation.1.",
        {},
    ),
    _AURA,
    replace(
        _AURA,
        name="AuraFlow 0.2",
        config="fal/AuraFlow-v0.2",
        denoiser={"pos_embed_max_size": 1024},
    ),
)

_SD_2_BASE = replace(
    _SD_2,
    fields={**_SD_2.fields, "unet": {"sample_size": 64}},
    scheduler=_PNDM,
)

#: In the order in which they are asked; the first that fits is taken.
LAYOUTS: tuple[Layout, ...] = (
    _SD_1,
    _with_channels(
        replace(_SD_1, scheduler=_DDIM), 9, "inpainting", "StableDiffusionInpaintPipeline"
    ),
    _with_channels(
        replace(_SD_1, scheduler={**_NOISE, "_class_name": "EulerAncestralDiscreteScheduler"}),
        8,
        "InstructPix2Pix",
        "StableDiffusionInstructPix2PixPipeline",
    ),
    _SD_2,
    _with_channels(_SD_2_BASE, 9, "inpainting", "StableDiffusionInpaintPipeline"),
    _with_channels(_SD_2_BASE, 5, "depth", "StableDiffusionDepth2ImgPipeline"),
    replace(
        _SD_XL,
        name="Playground 2.5",
        marks=("edm_mean",),
        fields={
            "unet": {"sample_size": 128},
            "vae": {"sample_size": 1024, "scaling_factor": 0.5, "force_upcast": True},
        },
        scheduler=_EDM,
    ),
    _REFINER,
    replace(_REFINER, marks=(), denoiser={**_REFINER.denoiser, "cross_attention_dim": 1280}),
    _SD_XL,
    _with_channels(_SD_XL, 9, "inpainting", "StableDiffusionXLInpaintPipeline"),
    _with_channels(_SD_XL, 8, "InstructPix2Pix", "StableDiffusionXLInstructPix2PixPipeline"),
    *_TRANSFORMERS,
)
