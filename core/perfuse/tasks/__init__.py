"""The tasks that pipelines run, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from perfuse.spec import PipelineSpec
from perfuse.steps import Task
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE
from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL
from perfuse.tasks.unconditional import UNCONDITIONAL

__all__ = ["TASKS", "TEXT_TO_IMAGE", "TEXT_TO_IMAGE_XL", "UNCONDITIONAL", "task_of"]

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (TEXT_TO_IMAGE, UNCONDITIONAL)}
)


def task_of(spec: PipelineSpec) -> Task:
    """The task that a bare call of a pipeline runs."""
    if spec.tasks[0] == "text-to-image" and "text_encoder_2" in spec.components:
        return TEXT_TO_IMAGE_XL
    return TASKS[spec.tasks[0]]
