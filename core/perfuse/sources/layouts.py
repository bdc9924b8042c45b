"""The pipelines that people keep in single files, as CompVis and Stability AI published them.

What no tensor tells is here: the pipeline's class, its schedule, the size of its pictures, the scale
of its latents, the token that fills up its prompts. The values are those of the repositories that
Diffusers takes them from.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perfuse.contract.frozen import FrozenDict

__all__ = ["LAYOUTS", "UNET", "VAE", "Layout", "layout_of", "nearest"]

#: What may stand before the names of a UNet's and an autoencoder's tensors.
UNET = ("model.diffusion_model.", "")
VAE = ("first_stage_model.", "vae.", "")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One pipeline as single files hold it."""

    #: What ``perfuse inspect`` calls it.
    name: str
    #: The pipeline's class in Diffusers.
    class_name: str
    #: What the UNet's config says, as far as it tells this pipeline from others.
    unet: Mapping[str, Any]
    #: Of these beginnings of names, a file of this layout has one; none for any file.
    marks: tuple[str, ...] = ()
    #: Component to what may stand before the names of its tensors.
    parts: Mapping[str, tuple[str, ...]]
    #: Component to the fields of its config that no tensor tells.
    fields: Mapping[str, Mapping[str, Any]]
    #: The scheduler's config.
    scheduler: Mapping[str, Any]
    #: Scalars of ``model_index.json``.
    options: Mapping[str, Any] = field(default_factory=FrozenDict)
    #: Tokenizer to the token that fills a prompt up.
    padding: Mapping[str, str]

    def fits(self, unet: Mapping[str, Any], names: Collection[str]) -> bool:
        """Whether a file with this UNet and these tensors is of this layout."""
        marked = not self.marks or any(name.startswith(self.marks) for name in names)
        return marked and not self.differs(unet)

    def differs(self, unet: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the UNet's config that this layout has otherwise."""
        return {name: value for name, value in self.unet.items() if unet.get(name) != value}


def layout_of(unet: Mapping[str, Any], names: Collection[str]) -> Layout | None:
    """The first layout that a UNet's config and the names of a file's tensors fit."""
    return next((layout for layout in LAYOUTS if layout.fits(unet, names)), None)


def nearest(unet: Mapping[str, Any]) -> Layout:
    """The layout whose UNet differs least."""
    return min(LAYOUTS, key=lambda layout: len(layout.differs(unet)))


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
    unet={"use_linear_projection": False, "in_channels": 4},
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
    unet={"use_linear_projection": True, "addition_embed_type": None, "in_channels": 4},
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
    unet={"use_linear_projection": True, "addition_embed_type": "text_time", "in_channels": 4},
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
        unet={**layout.unet, "in_channels": channels},
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
    replace(_REFINER, marks=(), unet={**_REFINER.unet, "cross_attention_dim": 1280}),
    _SD_XL,
    _with_channels(_SD_XL, 9, "inpainting", "StableDiffusionXLInpaintPipeline"),
    _with_channels(_SD_XL, 8, "InstructPix2Pix", "StableDiffusionXLInstructPix2PixPipeline"),
)
