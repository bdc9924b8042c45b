"""Tasks as sequences of named steps with declared inputs and outputs.

A step is a function from some of the state to some more of it; the state is passed and returned.
Running a task is a generator, so that progress and stopping belong to the caller.

>>> double = Step(name="double", inputs=("x",), outputs=("y",), run=lambda tools, x: {"y": 2 * x})
>>> task = Task(name="example", inputs={"x": 1}, steps=(double,))
>>> [event.state["y"] for event in task.run(None, {"x": 4})]
[8]
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from perfuse.contract.backend import Program
from perfuse.contract.spec import PipelineSpec
from perfuse.errors import InputError
from perfuse.schedulers import Scheduler
from perfuse.sources.tokenizer import Tokenizer

__all__ = ["REQUIRED", "Choice", "Event", "Loop", "Node", "Step", "Task", "Tools"]

State: TypeAlias = Mapping[str, Any]


class Tools(Protocol):
    """What a step may use of the pipeline that runs it."""

    @property
    def spec(self) -> PipelineSpec: ...

    @property
    def scheduler(self) -> Scheduler: ...

    def program(self, component: str) -> Program:
        """The component, prepared on its target the first time it is asked for."""

    def tokenizer(self, name: str) -> Tokenizer: ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """One named stage of a task."""

    name: str
    #: Names in the state that it reads; passed to ``run`` as keywords.
    inputs: tuple[str, ...]
    #: Names that it returns, all of them, every time.
    outputs: tuple[str, ...]
    run: Callable[..., State]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Steps that run once for each row of the state's ``over``; they may read ``index``."""

    name: str
    over: str
    steps: tuple["Node", ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The first option whose input was given; ``None`` as an input matches always."""

    name: str
    options: tuple[tuple[str | None, "Node"], ...]


Node: TypeAlias = Step | Loop | Choice


class _Required:
    """Marks an input that the caller must give."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a running task has just done."""

    #: The step, or for a loop its name.
    step: str
    state: State
    #: For a loop: how many of ``total`` rounds are done.
    done: int = 1
    total: int = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A sequence of steps, with the inputs that a caller may give and their defaults."""

    name: str
    inputs: Mapping[str, Any]
    steps: tuple[Node, ...]
    #: Whether every step's inputs are there when it runs; checked once, on construction.
    known: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", _flow(self.steps, frozenset(self.inputs), self.name))

    def insert(self, node: Node, *, before: str | None = None, after: str | None = None) -> "Task":
        """The task with a step more, before or after the one of that name.

        Raises:
            InputError: there is no such step, or the new one reads what is not there yet.
        """
        anchor = before if before is not None else after
        if anchor is None or (before is not None and after is not None):
            raise InputError(f"{node.name!r} goes before or after a step; name one of the two.")
        at = 0 if before is not None else 1

        def edit(steps: list[Node], i: int) -> None:
            steps.insert(i + at, node)

        return self._edited(anchor, edit)

    def replace(self, name: str, node: Node) -> "Task":
        """The task with another step in the place of the one of that name."""

        def edit(steps: list[Node], i: int) -> None:
            steps[i] = node

        return self._edited(name, edit)

    def without(self, name: str) -> "Task":
        """The task without the step of that name."""

        def edit(steps: list[Node], i: int) -> None:
            del steps[i]

        return self._edited(name, edit)

    def _edited(self, name: str, edit: Callable[[list[Node], int], None]) -> "Task":
        steps = _edit(self.steps, name, edit)
        if steps is None:
            names = ", ".join(_names(self.steps))
            raise InputError(f"Task {self.name!r} has no step {name!r}; it has {names}.")
        return replace(self, steps=steps)

    def run(self, tools: Any, given: Mapping[str, Any]) -> Iterator[Event]:
        """Run the steps one by one; the last event's state is the result.

        Raises:
            InputError: an input is unknown, or one that is required was not given.
        """
        unknown = [name for name in given if name not in self.inputs]
        if unknown:
            raise InputError(
                f"{self.name} was given {', '.join(unknown)}; it takes {', '.join(self.inputs)}."
            )
        state = {**self.inputs, **given}
        missing = [name for name, value in state.items() if value is REQUIRED]
        if missing:
            raise InputError(f"{self.name} needs {', '.join(missing)}.")
        yield from _run(self.steps, tools, state)


def _run(nodes: tuple[Node, ...], tools: Any, state: dict[str, Any]) -> Iterator[Event]:
    for node in nodes:
        if isinstance(node, Step):
            state.update(_call(node, tools, state))
            yield Event(step=node.name, state=state)
        elif isinstance(node, Choice):
            yield from _run((_chosen(node, state),), tools, state)
        else:
            yield from _loop(node, tools, state)


def _chosen(choice: Choice, state: State) -> Node:
    for name, option in choice.options:
        if name is None or state[name] is not None:
            return option
    raise InputError(
        f"{choice.name} goes by {', '.join(str(name) for name, _ in choice.options)}; none of them "
        "was given. Give one."
    )


def _loop(loop: Loop, tools: Any, state: dict[str, Any]) -> Iterator[Event]:
    total = len(state[loop.over])
    for index in range(total):
        for node in loop.steps:
            state["index"] = index  # a loop inside has counted its own
            if isinstance(node, Step):
                state.update(_call(node, tools, state))
            else:
                for _ in _run((node,), tools, state):
                    pass
        yield Event(step=loop.name, state=state, done=index + 1, total=total)


def _call(step: Step, tools: Any, state: Mapping[str, Any]) -> State:
    result = step.run(tools, **{name: state[name] for name in step.inputs})
    missing = [name for name in step.outputs if name not in result]
    if missing:
        raise InputError(
            f"Step {step.name!r} declares the outputs {', '.join(step.outputs)}; it did not return "
            f"{', '.join(missing)}. Return all of them, every time."
        )
    return result


def _flow(nodes: tuple[Node, ...], known: frozenset[str], task: str) -> frozenset[str]:
    """What is known after the nodes; an error where one reads what is not known yet."""
    for node in nodes:
        if isinstance(node, Step):
            _check_reads(f"Step {node.name!r}", node.inputs, known, task)
            known = known | frozenset(node.outputs)
        elif isinstance(node, Choice):
            triggers = tuple(name for name, _ in node.options if name is not None)
            _check_reads(f"Choice {node.name!r}", triggers, known, task)
            outcomes = [_flow((option,), known, task) for _, option in node.options]
            known = frozenset.intersection(*outcomes)
        else:
            _check_reads(f"Loop {node.name!r}", (node.over,), known, task)
            known = _flow(node.steps, known | {"index"}, task)
    return known


def _check_reads(who: str, reads: tuple[str, ...], known: frozenset[str], task: str) -> None:
    missing = [name for name in reads if name not in known]
    if missing:
        raise InputError(
            f"{who} of {task!r} reads {', '.join(missing)}, which nothing before it gives; known "
            f"there: {', '.join(sorted(known))}."
        )


def _names(nodes: tuple[Node, ...]) -> Iterator[str]:
    for node in nodes:
        yield node.name
        if isinstance(node, Loop):
            yield from _names(node.steps)
        elif isinstance(node, Choice):
            yield from _names(tuple(option for _, option in node.options))


def _edit(
    nodes: tuple[Node, ...], name: str, edit: Callable[[list[Node], int], None]
) -> tuple[Node, ...] | None:
    """The nodes with the edit made at the node of that name, wherever it is; ``None`` if nowhere."""
    edited = list(nodes)
    for i, node in enumerate(nodes):
        if node.name == name:
            edit(edited, i)
            return tuple(edited)
        if isinstance(node, Loop):
            steps = _edit(node.steps, name, edit)
            if steps is not None:
                edited[i] = replace(node, steps=steps)
                return tuple(edited)
        elif isinstance(node, Choice):
            for j, (trigger, option) in enumerate(node.options):
                inner = _edit((option,), name, edit)
                if inner is not None and len(inner) == 1:
                    options = list(node.options)
                    options[j] = (trigger, inner[0])
                    edited[i] = replace(node, options=tuple(options))
                    return tuple(edited)
    return None
