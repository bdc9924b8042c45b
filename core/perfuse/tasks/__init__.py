"""The tasks that pipelines run, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from perfuse.steps import Task
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE
from perfuse.tasks.unconditional import UNCONDITIONAL

__all__ = ["TASKS", "TEXT_TO_IMAGE", "UNCONDITIONAL"]

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (TEXT_TO_IMAGE, UNCONDITIONAL)}
)
