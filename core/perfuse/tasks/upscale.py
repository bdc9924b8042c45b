"""Upscaling a picture four times with Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays.noise import noise_for
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.schedulers import Schedule, scheduler_from_config
from perfuse.tasks.denoise import draw_latents
from perfuse.tasks.pictures import IMAGE, added_channels, for_batch, with_channels
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE

__all__ = ["UPSCALE"]


@step(outputs=())
def check_model(tools: Tools) -> State:
    """Refuse a denoiser that does not take a picture besides its latents."""
    more = added_channels(tools)
    if more != 3:
        raise InputError(
            f"Upscaling was asked for; this denoiser takes {more} channels besides the latents', and "
            "a model made for it takes the picture's 3. Use such a model."
        )
    return {}


@step(outputs=("picture", "height", "width"))
def read_small(tools: Tools, image: Any) -> State:
    """The pictures [B, 3, h, w] in [-1, 1], and the size of what is drawn: a latent is a pixel."""
    from perfuse.arrays.pictures import preprocess

    scale = tools.spec.latents.downscale
    picture = preprocess(image, multiple=max(tools.spec.size_multiple // scale, 1))
    height, width = picture.shape[-2:]
    return {"picture": picture, "height": height * scale, "width": width * scale}


@step(outputs=("noise", "seeds", "latents", "conditions"))
def prepare_small(
    tools: Tools,
    schedule: Schedule,
    picture: Array,
    conditions: Mapping[str, Mapping[str, Array]],
    count: int,
    num_images_per_prompt: int,
    height: int,
    width: int,
    noise_level: int,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None,
) -> State:
    """The initial latents, and the conditions with the noisy picture and its noise level."""
    batch = count * num_images_per_prompt
    most = tools.spec.options.get("max_noise_level", 350)
    if isinstance(noise_level, bool) or not 0 <= noise_level <= most:
        raise InputError(f"noise_level must be 0 to {most}; got {noise_level!r}.")
    noise = noise_for(seed, generator, batch=batch, mode=noise_mode)
    levels = scheduler_from_config(tools.spec.schedulers["low_res_scheduler"])
    fresh = noise.first(tuple(picture.shape))
    noisy = levels.add_noise(picture, fresh, np.asarray([noise_level]))
    drawn = draw_latents(tools, noise, schedule, (batch, height, width), latents)
    shown = with_channels(conditions, for_batch(noisy, batch, "images"))
    labels = np.full(batch, noise_level, dtype=np.int64)
    labelled = {name: {**arrays, "class_labels": labels} for name, arrays in shown.items()}
    return {"noise": noise, "seeds": noise.seeds, "latents": drawn, "conditions": labelled}


_LEVEL = {
    "noise_level": Input(
        default=20,
        kind=int,
        option="--noise-level",
        help="How much noise to add to the picture: more draws more anew.",
    )
}


def _upscale() -> Task:
    others = dict(TEXT_TO_IMAGE.inputs)
    first = {"prompt": others.pop("prompt"), **IMAGE}
    del others["height"], others["width"]
    replaced = {
        "check_model": check_model,
        "check_size": read_small,
        "prepare_latents": prepare_small,
    }
    steps = tuple(replaced.get(node.name, node) for node in TEXT_TO_IMAGE.steps)
    return Task(name="upscale", inputs={**first, **_LEVEL, **others}, steps=steps)


UPSCALE = _upscale().with_defaults({"num_inference_steps": 75, "guidance_scale": 9.0})
