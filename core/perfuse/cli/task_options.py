"""The options of ``perfuse generate`` that are inputs of tasks, made from the tasks' inputs."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perfuse.cli.common import FILE, variable
from perfuse.errors import InputError, PluginError

if TYPE_CHECKING:
    from perfuse.contract.steps import Task

__all__ = ["TaskOption", "fitting", "task_options"]


@dataclass(frozen=True, kw_only=True)
class TaskOption:
    """An input of tasks as a command-line option."""

    #: The flag: ``--steps``.
    flag: str
    #: The input's names in Python; tasks may differ.
    names: tuple[str, ...]
    #: ``int``, ``float``, ``str``, ``bool``, or ``Path`` for a picture.
    kind: type
    help: str
    #: Whether it may be given several times, for a list.
    several: bool = False

    @property
    def parameter(self) -> str:
        """The name in click and in ``perfuse.toml``: ``num_images``."""
        return self.flag.removeprefix("--").replace("-", "_")

    def name_in(self, task: "Task") -> str | None:
        """The input's name in a task; ``None`` if it has none."""
        inputs = task.inputs  # a name may be another option's in another task
        own = (n for n in self.names if n in inputs and inputs[n].option == self.flag)
        return next(own, None)

    def made(self) -> click.Option:
        """The click option, which the environment can also set."""
        switch = self.kind is bool
        flags = f"{self.flag}/--no-{self.flag.removeprefix('--')}" if switch else self.flag
        kind: Any = FILE if self.kind is Path else self.kind
        return click.Option(
            [flags],
            type=None if switch else kind,
            default=None,
            multiple=self.several,
            envvar=variable(self.flag),
            help=self.help,
        )


def task_options(*, plugins: bool = False) -> tuple[TaskOption, ...]:
    """The options of perfuse's own tasks and, if asked, of plugins' tasks.

    A plugin whose task cannot be loaded has none; ``perfuse backends`` says why.
    """
    from perfuse.builtin import perfuse_pipelines
    from perfuse.plugins import host, resolve
    from perfuse.plugins.importing import guarded

    manifests = host().pipelines().values() if plugins else perfuse_pipelines()
    tasks: list[Any] = []
    for reference in dict.fromkeys(task for m in manifests for task in m.tasks.values()):
        with suppress(PluginError), guarded(PluginError):  # it is said when the task is used
            tasks.append(resolve(reference))
    return _options(tasks)


def _options(tasks: "Iterable[Task]") -> tuple[TaskOption, ...]:
    from perfuse.contract.steps import Picture

    found: dict[str, TaskOption] = {}
    for task in tasks:
        for name, one in getattr(task, "inputs", {}).items():
            if not one.option:
                continue
            before = found.get(one.option)
            names = (*before.names, name) if before is not None else (name,)
            kind = Path if one.kind is Picture else one.kind if one.kind is not None else str
            found[one.option] = TaskOption(
                flag=one.option,
                names=tuple(dict.fromkeys(names)),
                kind=before.kind if before is not None else kind,
                help=before.help if before is not None else one.help,
                several=before.several if before is not None else one.several,
            )
    return tuple(found.values())


def fitting(
    tasks: "Mapping[str, Task]",
    prompt: str | None,
    given: Mapping[str, Any],
    flags: Collection[str],
    *,
    options: Sequence[TaskOption],
    recorded: Mapping[str, Any] | None = None,
    usual: str | None = None,
) -> "tuple[Task, dict[str, Any]]":
    """The task that fits the command line's options, and its inputs.

    Args:
        tasks: Those of the pipeline.
        prompt: The words, if there were any.
        given: The values of the options, by parameter; ``None`` for what was not given.
        flags: The parameters that stood on the command line itself. Of what the environment and
            ``perfuse.toml`` say, a task takes what it can.
        options: What the parameters mean.
        recorded: Inputs by their names in Python, which the options beat.
        usual: The task to prefer where it fits.

    Raises:
        InputError: no task takes the options that were given, or a picture cannot be read.
    """
    fits: dict[str, tuple[Task, dict[str, Any]]] = {}
    refusals = []
    # A picture that cannot be read is said before any task refuses it.
    names = [one.parameter for one in options]
    asked = {name: given[name] for name in names if given.get(name) not in (None, ())}
    opened = {name: _opened(value) for name, value in asked.items()}
    for task in tasks.values():
        try:
            inputs = _inputs(task, prompt, opened, flags, options)
        except InputError as exc:
            refusals.append(exc)
            continue
        known = {n: value for n, value in (recorded or {}).items() if n in task.inputs}
        fits[task.name] = (task, known | inputs)
    if not fits:
        raise refusals[0]
    if usual in fits:
        return fits[usual]
    ready = [pair for pair in fits.values() if pair[0].required <= pair[1].keys()]
    # If none has all it needs, the first raises an error that names what is missing.
    return max(ready or list(fits.values())[:1], key=lambda pair: len(pair[0].required))


def _inputs(
    task: "Task",
    prompt: str | None,
    given: Mapping[str, Any],
    flags: Collection[str],
    options: Iterable[TaskOption],
) -> dict[str, Any]:
    inputs = {}
    for one in options:
        value, name = given.get(one.parameter), one.name_in(task)
        if value is None:
            continue
        if name is not None:
            inputs[name] = value
        elif one.parameter in flags:
            taken = [other.flag for other in options if other.name_in(task) is not None]
            raise InputError(
                f"{one.flag} was given; this model's task, {task.name}, takes "
                f"{', '.join(taken) or 'no option'}."
            )
    if prompt is None:
        return inputs
    if "prompt" not in task.inputs:
        raise InputError(
            f"The prompt {prompt!r} was given; this model draws without one. Leave it out."
        )
    return {**inputs, "prompt": prompt}


def _opened(value: Any) -> Any:
    if isinstance(value, tuple):
        each = [_opened(one) for one in value]
        return each if len(each) > 1 else each[0]
    if not isinstance(value, Path):
        return value
    from perfuse.arrays.pictures import open_picture

    return open_picture(value)
