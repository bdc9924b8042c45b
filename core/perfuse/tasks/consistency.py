"""Text and image to image with latent consistency models (Luo et al. 2023, arXiv:2310.04378)."""

import dataclasses
from typing import Any

from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.schedulers import Schedule
from perfuse.tasks.image_to_image import IMAGE_TO_IMAGE
from perfuse.tasks.part import Part
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE

__all__ = ["CONSISTENCY_IMAGE_TO_IMAGE", "CONSISTENCY_TEXT_TO_IMAGE"]

_ORIGINAL = {
    "original_inference_steps": Input(
        kind=int, help="The distillation's steps, from which the steps are chosen."
    )
}


@step(outputs=("schedule",))
def prepare_schedule(
    tools: Tools,
    num_inference_steps: int,
    timesteps: Any,
    original_inference_steps: int | None,
    strength: float = 1.0,
) -> State:
    """The scheduler's steps, of the part of the distillation's steps that the strength names."""
    Part(strength=strength)  # refuses what is no strength
    part: dict[str, Any] = {"strength": strength} if strength != 1.0 else {}
    schedule = tools.scheduler.schedule(
        num_inference_steps if timesteps is None else None,
        timesteps=timesteps,
        original_inference_steps=original_inference_steps,
        **part,
    )
    return {"schedule": _ending_clean(schedule)}


def _ending_clean(schedule: Schedule) -> Schedule:
    """The schedule, but the last step ends in the clean sample, as Diffusers' pipelines do.

    A scheduler adds noise there, too, where a strength has cut the timesteps that were given.
    """
    last = schedule.rows[-1]
    clean = last.denoised if last.second is None else last.second
    end = dataclasses.replace(last, update=(clean, *last.update[1:]), draws=False)
    return dataclasses.replace(schedule, rows=(*schedule.rows[:-1], end))


def _consistent(task: Task) -> Task:
    inputs = {**task.inputs, **_ORIGINAL}
    return dataclasses.replace(task, inputs=inputs).replace("prepare_schedule", prepare_schedule)


CONSISTENCY_TEXT_TO_IMAGE = _consistent(TEXT_TO_IMAGE)
CONSISTENCY_IMAGE_TO_IMAGE = _consistent(IMAGE_TO_IMAGE)
