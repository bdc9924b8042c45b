"""What tasks of flow-matching transformers share (Lipman et al. 2022, arXiv:2210.02747).

They differ from Stable Diffusion's in their schedule, whose levels are shifted by the picture's size,
and in how they start from pictures; a family brings the step that encodes its prompts.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.steps import State, Task, Tools, step
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import check_count, check_size
from perfuse.tasks.image_to_image import from_picture
from perfuse.tasks.inputs import SIZE
from perfuse.tasks.part import Part
from perfuse.tasks.pictures import is_latents

__all__ = [
    "flow_schedule",
    "mu_of",
    "prepare_flow_schedule",
    "resized_from_picture",
    "tokens_of",
]


def mu_of(tools: Tools, tokens: int) -> float | None:
    """The shift of the schedule for a picture of so many tokens; ``None`` for a fixed one."""
    if not tools.scheduler.config.get("use_dynamic_shifting", False):
        return None
    return tools.scheduler.mu_for(tokens)


def tokens_of(tools: Tools, height: int, width: int) -> int:
    """The tokens of a picture of this size in pixels; one for each two by two latents, if not packed."""
    dims = tools.spec.latents.dims(height, width)
    each = (dims["latent_height"] // 2) * (dims["latent_width"] // 2)
    return dims.get("image_sequence", each)


def flow_schedule(
    tools: Tools,
    steps: int,
    *,
    sigmas: Any,
    mu: float | None,
    timesteps: Any = None,
    eta: float = 0.0,
    strength: float | None = None,
) -> Schedule:
    """The schedule of exactly these levels before they are shifted, or of so many steps.

    Args:
        tools: The pipeline.
        steps: The number of steps; means nothing beside ``sigmas`` or ``timesteps``.
        sigmas: The noise levels, before they are shifted; the scheduler's own if ``None``.
        mu: The shift for the picture's size.
        timesteps: Exactly these timesteps instead.
        eta: DDIM's eta.
        strength: The share of the steps to run, from the end; a part of a step counts as one.
    """
    given = sigmas is not None or timesteps is not None
    count = None if given else steps
    more: dict[str, Any] = {} if mu is None else {"mu": mu}
    make = partial(
        tools.scheduler.schedule, count, timesteps=timesteps, sigmas=sigmas, eta=eta, **more
    )
    return Part(strength=strength, rounds_up=True).of(make, tools.scheduler, count)


@step(outputs=("schedule",), name="prepare_schedule")
def prepare_flow_schedule(
    tools: Tools,
    num_inference_steps: int,
    timesteps: Any,
    sigmas: Any,
    eta: float,
    height: int,
    width: int,
    strength: float | None = None,
) -> State:
    """The scheduler's steps: levels from 1 to one n-th, evenly, shifted by the picture's size."""
    check_count("num_inference_steps", num_inference_steps)
    scheduler = tools.scheduler
    even = scheduler.takes("sigmas") and not scheduler.config.get("use_flow_sigmas", False)
    if sigmas is None and timesteps is None and even:
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    mu = mu_of(tools, tokens_of(tools, height, width))
    schedule = flow_schedule(
        tools,
        num_inference_steps,
        sigmas=sigmas,
        mu=mu,
        timesteps=timesteps,
        eta=eta,
        strength=strength,
    )
    return {"schedule": schedule}


@step(outputs=("picture",))
def read_resized(tools: Tools, image: Any, height: int, width: int) -> State:
    """The pictures [B, 3, H, W] in [-1, 1], made as large as what is drawn; latents as they are."""
    from perfuse.arrays.pictures import preprocess

    if is_latents(tools, image):
        return {"picture": to_numpy(image)}
    return {"picture": preprocess(image, height, width, multiple=tools.spec.size_multiple)}


def resized_from_picture(task: Task, defaults: Mapping[str, Any]) -> Task:
    """A task that starts from a picture, which is made as large as what is drawn."""
    made = from_picture(task, "image-to-image").with_inputs(**SIZE)
    sized = made.insert(check_size, before="read_image").replace("read_image", read_resized)
    return sized.with_defaults(defaults)
