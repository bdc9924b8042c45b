"""The options of ``perfuse generate`` that are inputs of a task."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from perfuse.cli.common import option
from perfuse.errors import InputError

if TYPE_CHECKING:
    from perfuse.contract.steps import Task

__all__ = ["OPTIONS", "TaskOption", "task_inputs", "task_options"]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class TaskOption:
    """An input that tasks take, as an option of the command line."""

    #: As a person writes it: ``--steps``.
    flag: str
    #: What the input is called in Python, by the tasks that have it.
    names: tuple[str, ...]
    type: type
    help: str

    @property
    def parameter(self) -> str:
        """What click and ``perfuse.toml`` call it: ``num_images``."""
        return self.flag.removeprefix("--").replace("-", "_")

    def name_in(self, task: "Task") -> str | None:
        """The input's name in a task; ``None`` if it has none."""
        return next((name for name in self.names if name in task.inputs), None)


OPTIONS = (
    TaskOption(flag="--steps", names=("num_inference_steps",), type=int, help="Denoising steps."),
    TaskOption(
        flag="--guidance",
        names=("guidance_scale",),
        type=float,
        help="Guidance scale; 1 or less draws without it.",
    ),
    TaskOption(
        flag="--guidance-rescale",
        names=("guidance_rescale",),
        type=float,
        help="0 to 1, against overexposure.",
    ),
    TaskOption(
        flag="--negative-prompt", names=("negative_prompt",), type=str, help="What not to draw."
    ),
    TaskOption(
        flag="--seed",
        names=("seed",),
        type=int,
        help="The same seed draws the same picture on every backend.",
    ),
    TaskOption(flag="--height", names=("height",), type=int, help="In pixels."),
    TaskOption(flag="--width", names=("width",), type=int, help="In pixels."),
    TaskOption(
        flag="--num-images",
        names=("num_images_per_prompt", "batch_size"),
        type=int,
        help="Pictures to draw.",
    ),
)


def task_options(command: _F) -> _F:
    """Give a command an option for each input that some task takes from the command line."""
    for one in reversed(OPTIONS):
        command = option(one.flag, type=one.type, help=one.help)(command)
    return command


def task_inputs(
    task: "Task", prompt: str | None, given: Mapping[str, Any], flags: Collection[str]
) -> dict[str, Any]:
    """The command line's values as inputs of a task.

    Args:
        task: The task that is to run.
        prompt: The words, if there were any.
        given: The values of ``task_options``, by parameter; ``None`` for what was not given.
        flags: The parameters that stood on the command line itself. Of what the environment and
            ``perfuse.toml`` say, the task takes what it can.

    Raises:
        InputError: the task does not take what was given on the command line.
    """
    inputs = {}
    for one in OPTIONS:
        value, name = given[one.parameter], one.name_in(task)
        if value is None:
            continue
        if name is not None:
            inputs[name] = value
        elif one.parameter in flags:
            raise InputError(
                f"{one.flag} was given; this model's task, {task.name}, takes {_taken(task)}."
            )
    if prompt is not None:
        if "prompt" not in task.inputs:
            raise InputError(
                f"The prompt {prompt!r} was given; this model draws without one. Leave it out."
            )
        inputs["prompt"] = prompt
    return inputs


def _taken(task: "Task") -> str:
    return ", ".join(one.flag for one in OPTIONS if one.name_in(task) is not None) or "no option"
