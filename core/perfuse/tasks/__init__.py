"""The tasks that pipelines run, by name."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from perfuse.spec import PipelineSpec
from perfuse.steps import Task
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE
from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL
from perfuse.tasks.unconditional import UNCONDITIONAL

__all__ = ["TASKS", "TEXT_TO_IMAGE", "TEXT_TO_IMAGE_XL", "UNCONDITIONAL", "task_of"]

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (TEXT_TO_IMAGE, UNCONDITIONAL)}
)

#: Where a pipeline class of Diffusers has defaults of its own.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "DDIMPipeline": {"num_inference_steps": 50},
        "LatentConsistencyModelPipeline": {"num_inference_steps": 4, "guidance_scale": 8.5},
    }
)


def task_of(spec: PipelineSpec) -> Task:
    """The task that a bare call of a pipeline runs, with the defaults of its class."""
    xl = spec.tasks[0] == "text-to-image" and "text_encoder_2" in spec.components
    task = TEXT_TO_IMAGE_XL if xl else TASKS[spec.tasks[0]]
    defaults = _DEFAULTS.get(spec.class_name, {})
    return dataclasses.replace(task, inputs=MappingProxyType({**task.inputs, **defaults}))
