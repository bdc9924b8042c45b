"""Tasks as sequences of named steps with declared inputs and outputs.

A step is a function that reads some names of the state and returns others; the state is passed and
returned. ``Task.run`` is a generator: the caller shows progress, and stops it by not going on.

>>> @step(outputs=("y",))
... def double(tools, x):
...     return {"y": 2 * x}
>>> task = Task(name="example", inputs={"x": Input(default=1)}, steps=(double,))
>>> [event.state["y"] for event in task.run(None, {"x": 4})]
[8]
"""

import inspect
import numbers
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from perfuse.contract.frozen import FrozenDict
from perfuse.errors import InputError

if TYPE_CHECKING:
    from perfuse.contract.backend import Program
    from perfuse.contract.guider import Perturbation
    from perfuse.contract.spec import PipelineSpec
    from perfuse.schedulers import Scheduler
    from perfuse.sources.tokenizer import Tokenizer

__all__ = [
    "REQUIRED",
    "Choice",
    "Encoding",
    "Event",
    "Input",
    "Lists",
    "Loop",
    "Node",
    "Picture",
    "State",
    "Step",
    "Task",
    "Tools",
    "When",
    "inside",
    "step",
]

State: TypeAlias = Mapping[str, Any]


class Tools(Protocol):
    """The pipeline that runs a task, as its steps see it."""

    @property
    def spec(self) -> "PipelineSpec": ...

    @property
    def scheduler(self) -> "Scheduler": ...

    @property
    def vae_tiling(self) -> bool:
        """Whether to decode and encode pictures in tiles."""

    @property
    def vae_slicing(self) -> bool:
        """Whether to decode and encode the pictures of a batch one by one."""

    def program(self, component: str) -> "Program":
        """The program of a component, prepared on its target on first use."""

    def precision_of(self, component: str) -> str | None:
        """What a component computes in: ``"float32"``, ``"float16"`` or ``"bfloat16"``.

        ``None`` if the pipeline was opened without that component.
        """

    def entry(self, perturbation: "Perturbation") -> str:
        """The name of the component that is a worse version of the denoiser."""

    def tokenizer(self, name: str) -> "Tokenizer": ...

    def attribute(self, name: str) -> Any:
        """One of the ``attributes`` that the pipeline's class declares, or what a caller made it."""

    def add_transform(self, text: str) -> None:
        """Rewrite the pipeline by a transform from now on, ``"NAME"`` or ``"NAME:key=value"``."""


class _Required:
    """Marks an input that the caller must give."""

    def __repr__(self) -> str:
        return "REQUIRED"

    def __reduce__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


class Picture:
    """The ``kind`` of a picture input: a file on the command line, a PIL image in Python."""


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_CHECKED: Mapping[type, type] = {int: numbers.Integral, float: numbers.Real}


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a task: a Python argument and, if ``option`` is set, a command-line option."""

    default: Any = None
    #: ``int``, ``float``, ``str``, ``bool`` or ``Picture``; ``None`` for any other type.
    kind: type | None = None
    #: One line on what it does, with its unit.
    help: str = ""
    #: The command line's option, ``"--steps"``; empty for an input of the Python API alone.
    option: str = ""
    #: Whether the option may be given several times, for a list.
    several: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise ``InputError`` if a numeric input is not a number. The steps check all else."""
        wanted = _CHECKED.get(self.kind) if self.kind is not None else None
        if wanted is None or value is None or isinstance(value, list | tuple):
            return
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise InputError(
                f"{name} must be {_WORDS[self.kind]}; got {value!r}."  # type: ignore[index]
                + (f" It is: {self.help}" if self.help else "")
            )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One named stage of a task; the decorator ``step`` makes one from a function."""

    name: str
    #: ``(tools, **inputs) -> outputs``; its parameters are the names that it reads from the state.
    run: Callable[..., State]
    #: The names that it returns: always all of them.
    outputs: tuple[str, ...]
    #: The names that it reads, from the signature of ``run``.
    inputs: tuple[str, ...] = field(init=False)
    #: The inputs with a default in ``run``, used if the state has no such name.
    optional: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        _note_reads(self, self.run)

    @property
    def description(self) -> str:
        """The first line of what its function says of itself."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]

    def __call__(self, tools: Any, **inputs: Any) -> State:
        """Run it alone, or within another step."""
        return _call(self, tools, inputs)

    def __reduce__(self) -> Any:
        where = (self.run.__module__, getattr(self.run, "__qualname__", ""))
        if _at(*where) is self:  # the decorated function's name now refers to the step
            return _at, where
        return _step, (self.name, self.run, self.outputs)


def _step(name: str, run: Callable[..., State], outputs: tuple[str, ...]) -> Step:
    return Step(name=name, run=run, outputs=outputs)


def _at(module: str, name: str) -> Any:
    if module not in sys.modules:
        __import__(module)
    return getattr(sys.modules[module], name, None)


def _parameters(run: Callable[..., Any]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The names that a function reads from the state, and those that have a default."""
    _, *taken = inspect.signature(run).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(parameter.kind in kinds for parameter in taken):
        raise InputError(
            f"{run.__qualname__} was to be a step; it takes *args or **kwargs. Give it one named "
            "parameter for each name that it reads from the state."
        )
    optional = (p.name for p in taken if p.default is not inspect.Parameter.empty)
    return tuple(parameter.name for parameter in taken), frozenset(optional)


def _note_reads(node: "Step | When", run: Callable[..., Any]) -> None:
    """Give a node what its function reads: signatures are slow to read, and loops run nodes often."""
    inputs, optional = _parameters(run)
    object.__setattr__(node, "inputs", inputs)
    object.__setattr__(node, "optional", optional)


def step(*, outputs: tuple[str, ...], name: str = "") -> Callable[[Callable[..., State]], Step]:
    """Make a step from a function ``(tools, …)``.

    The function's other parameters are the names that it reads from the state. A parameter with a
    default is optional: the default is used if the state has no such name.

    Args:
        outputs: The names that the function returns: always all of them.
        name: The step's name; the function's name by default.

    Raises:
        InputError: the function takes ``*args`` or ``**kwargs``.
    """

    def make(run: Callable[..., State]) -> Step:
        return Step(name=name or run.__name__.lstrip("_"), run=run, outputs=outputs)

    return make


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Runs ``steps`` for each item of ``state[over]``; ``state["index"]`` is the iteration."""

    name: str
    over: str
    steps: tuple["Node", ...]
    #: Asked with the pipeline before each iteration: the loop ends where it is true.
    stops: Callable[[Any], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Runs the first of several nodes whose input is not ``None``.

    ``options`` are pairs ``(input name, node)``; a name of ``None`` always matches.
    """

    name: str
    options: tuple[tuple[str | None, "Node"], ...]


@dataclass(frozen=True, kw_only=True)
class When:
    """Runs ``then`` if a condition holds, else ``otherwise``, if there is one.

    Later steps can read only what both nodes return, or what was in the state before.
    """

    name: str
    #: ``(tools, **inputs) -> bool``; its parameters are the names that it reads from the state.
    condition: Callable[..., bool]
    then: "Node"
    otherwise: "Node | None" = None
    #: The names that the condition reads, from its signature, and those of them with a default.
    inputs: tuple[str, ...] = field(init=False)
    optional: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        _note_reads(self, self.condition)


Node: TypeAlias = Step | Loop | Choice | When


@dataclass(frozen=True, kw_only=True)
class Event:
    """A step, or one iteration of a loop, that a running task has just finished."""

    #: The name of the step or of the loop.
    step: str
    #: A copy of the state at this point; later steps do not change it.
    state: State
    #: For a loop: how many of ``total`` iterations are done.
    done: int = 1
    total: int = 1


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Text states that Diffusers has as a list, an array [S, D] a prompt, and a denoiser here does not."""

    #: The list of what a condition tells the denoiser.
    of: Callable[[Mapping[str, Any]], list[Any]]
    #: ``(denoiser, list, tokens=)``: what a condition of such a list tells it, filled up to so many
    #: tokens, or to those of the longest.
    told: Callable[..., Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """``encode_prompt`` of the Diffusers class of a task: what it takes by position and returns."""

    #: The names of its arguments.
    order: tuple[str, ...]
    #: What it returns, of each condition's arrays; a condition that was not asked for is not there.
    results: Callable[[Mapping[str, Mapping[str, Any]]], tuple[Any, ...]]
    #: Whether that class joins its conditions to one batch, as a callback sees ``prompt_embeds`` then;
    #: where it does not, the callback sees the positive ones.
    joins: bool = False
    #: Defaults of its arguments that are not those of the task's inputs.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: The argument that says by its number, 0 by default, which of several text encoders is asked:
    #: ``results`` gives a tuple for each. Empty where all are asked at once.
    chosen: str = ""
    #: Where a callback sees text states as lists.
    lists: Lists | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", FrozenDict(self.defaults))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A sequence of steps, with the inputs that a caller may give.

    Construction checks that each step's inputs are in the state when it runs.

    Raises:
        InputError: a step reads a name that no input and no earlier step provides.
    """

    name: str
    inputs: Mapping[str, Input]
    steps: tuple[Node, ...]
    #: Its ``encode_prompt``; ``None`` where the Diffusers class has none.
    encoding: Encoding | None = None
    #: The names in the state after all steps have run.
    known: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", FrozenDict(self.inputs))
        object.__setattr__(self, "known", _flow(self.steps, frozenset(self.inputs), self.name))

    @property
    def required(self) -> frozenset[str]:
        """The inputs that a caller must give."""
        return frozenset(name for name, one in self.inputs.items() if one.default is REQUIRED)

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Task":
        """The task with other defaults for some of its inputs."""
        changed = {
            name: replace(self.inputs[name], default=value)
            for name, value in defaults.items()
            if name in self.inputs
        }
        return replace(self, inputs={**self.inputs, **changed})

    def with_inputs(self, **inputs: Input) -> "Task":
        """The task with more inputs that a caller may give, or with others in their place."""
        return replace(self, inputs={**self.inputs, **inputs})

    def find(self, name: str) -> Node:
        """The node of this name, also inside loops and choices.

        Raises:
            InputError: the task has no such node.
        """
        for node in _walk(self.steps):
            if node.name == name:
                return node
        raise self._missing(name)

    def insert(self, node: Node, *, before: str | None = None, after: str | None = None) -> "Task":
        """The task with a node inserted before or after the node of a name.

        Raises:
            InputError: there is no such node; both or neither of ``before`` and ``after`` were
                given; or a step would read a name that is not in the state yet.
        """
        anchor = before if before is not None else after
        if anchor is None or (before is not None and after is not None):
            raise InputError(
                f"{node.name!r} was to be inserted with before={before!r} and after={after!r}. Name "
                "one step, to go before or after."
            )

        def edit(old: Node) -> tuple[Node, ...]:
            return (node, old) if before is not None else (old, node)

        return self._edited(anchor, edit)

    def replace(self, name: str, node: Node) -> "Task":
        """The task with the node of a name replaced.

        Raises:
            InputError: there is no such node, or a step reads a name that is not in the state.
        """
        return self._edited(name, lambda old: (node,))

    def without(self, name: str) -> "Task":
        """The task without the node of a name.

        Raises:
            InputError: there is no such node, or a later step reads what it returned.
        """
        return self._edited(name, lambda old: ())

    def __str__(self) -> str:
        """The steps in order, each with what it reads and gives."""
        return "\n".join([self.name, *_told(self.steps, "  ")])

    def _edited(self, name: str, edit: "Edit") -> "Task":
        steps = _edit(self.steps, name, edit)
        if steps is None:
            raise self._missing(name)
        return replace(self, steps=steps)

    def _missing(self, name: str) -> InputError:
        names = ", ".join(node.name for node in _walk(self.steps))
        return InputError(f"Task {self.name!r} has no step {name!r}; it has {names}.")

    def run(self, tools: Any, given: Mapping[str, Any]) -> Iterator[Event]:
        """Run the steps one by one, with an event after each; the last one's state is the result.

        Args:
            tools: The pipeline, passed to every step.
            given: Input name to value.

        Raises:
            InputError: an input is unknown or of the wrong type, or a required one is missing.
        """
        unknown = [name for name in given if name not in self.inputs]
        if unknown:
            raise InputError(
                f"{self.name} was given {', '.join(unknown)}; it takes {', '.join(self.inputs)}."
            )
        state = {name: one.default for name, one in self.inputs.items()} | dict(given)
        missing = [name for name, value in state.items() if value is REQUIRED]
        if missing:
            told = (f"{name}: {self.inputs[name].help}".rstrip(": .") for name in missing)
            raise InputError(f"{self.name} needs {'; '.join(told)}.")
        for name, value in given.items():
            self.inputs[name].check(name, value)
        yield from _run(self.steps, tools, state)


def _told(nodes: tuple[Node, ...], indent: str) -> Iterator[str]:
    """A line for each node, those that it holds indented."""
    for node in nodes:
        if isinstance(node, Step):
            gives = f" → {', '.join(node.outputs)}" if node.outputs else ""
            yield f"{indent}{node.name}({', '.join(node.inputs)}){gives}"
        elif isinstance(node, Loop):
            yield f"{indent}{node.name}, for each of {node.over}"
        elif isinstance(node, Choice):
            names = ", ".join(name if name is not None else "else" for name, _ in node.options)
            yield f"{indent}{node.name}, the first that is given: {names}"
        else:
            yield f"{indent}{node.name}, by {', '.join(node.inputs)}"
        yield from _told(inside(node), indent + "  ")


def _run(nodes: tuple[Node, ...], tools: Any, state: dict[str, Any]) -> Iterator[Event]:
    for node in nodes:
        if isinstance(node, Step):
            state.update(_call(node, tools, state))
            yield Event(step=node.name, state=dict(state))
        elif isinstance(node, Choice):
            yield from _run((_chosen(node, state),), tools, state)
        elif isinstance(node, When):
            yield from _run(_branch(node, tools, state), tools, state)
        else:
            yield from _loop(node, tools, state)


def _chosen(choice: Choice, state: State) -> Node:
    for name, option in choice.options:
        if name is None or state[name] is not None:
            return option
    raise InputError(
        f"{choice.name} needs one of {', '.join(str(name) for name, _ in choice.options)}; none "
        "was given. Give one."
    )


def _branch(when: When, tools: Any, state: State) -> tuple[Node, ...]:
    if when.condition(tools, **_reads(when, state)):
        return (when.then,)
    return () if when.otherwise is None else (when.otherwise,)


def _reads(node: Step | When, state: State) -> dict[str, Any]:
    return {name: state[name] for name in node.inputs if name in state or name not in node.optional}


def _loop(loop: Loop, tools: Any, state: dict[str, Any]) -> Iterator[Event]:
    total = len(state[loop.over])
    for index in range(total):
        if loop.stops is not None and loop.stops(tools):
            break
        for node in loop.steps:
            state["index"] = index  # an inner loop overwrites it
            if isinstance(node, Step):
                state.update(_call(node, tools, state))
            else:
                for _ in _run((node,), tools, state):
                    pass
        yield Event(step=loop.name, state=dict(state), done=index + 1, total=total)


def _call(step: Step, tools: Any, state: Mapping[str, Any]) -> State:
    result = step.run(tools, **_reads(step, state))
    missing = [name for name in step.outputs if name not in result]
    if missing:
        raise InputError(
            f"Step {step.name!r} declares the outputs {', '.join(step.outputs)}; it did not return "
            f"{', '.join(missing)}. Return all of them, every time."
        )
    return result


def _flow(nodes: tuple[Node, ...], known: frozenset[str], task: str) -> frozenset[str]:
    """The names in the state after the nodes; ``InputError`` if one reads a name not in it."""
    for node in nodes:
        if isinstance(node, Step):
            needs = tuple(name for name in node.inputs if name not in node.optional)
            _check_reads(f"Step {node.name!r}", needs, known, task)
            known = known | frozenset(node.outputs)
        elif isinstance(node, Choice):
            triggers = tuple(name for name, _ in node.options if name is not None)
            _check_reads(f"Choice {node.name!r}", triggers, known, task)
            outcomes = [_flow((option,), known, task) for _, option in node.options]
            known = frozenset.intersection(*outcomes)
        elif isinstance(node, When):
            needs = tuple(name for name in node.inputs if name not in node.optional)
            _check_reads(f"Condition {node.name!r}", needs, known, task)
            then = _flow((node.then,), known, task)
            other = known if node.otherwise is None else _flow((node.otherwise,), known, task)
            known = then & other
        else:
            _check_reads(f"Loop {node.name!r}", (node.over,), known, task)
            known = _flow(node.steps, known | {"index"}, task)
    return known


def _check_reads(who: str, reads: tuple[str, ...], known: frozenset[str], task: str) -> None:
    missing = [name for name in reads if name not in known]
    if missing:
        raise InputError(
            f"{who} of {task!r} reads {', '.join(missing)}, which nothing before it gives; known "
            f"there: {', '.join(sorted(known))}. Add a step before it that gives them."
        )


Edit: TypeAlias = Callable[[Node], tuple[Node, ...]]


def inside(node: Node) -> tuple[Node, ...]:
    """The nodes that a node holds."""
    if isinstance(node, Loop):
        return node.steps
    if isinstance(node, Choice):
        return tuple(option for _, option in node.options)
    if isinstance(node, When):
        return (node.then,) if node.otherwise is None else (node.then, node.otherwise)
    return ()


def _walk(nodes: tuple[Node, ...]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from _walk(inside(node))


def _holding(node: Node, nodes: tuple[Node, ...]) -> Node:
    """A loop, choice or condition with other nodes inside."""
    if isinstance(node, Loop):
        return replace(node, steps=nodes)
    if len(nodes) != len(inside(node)):
        raise InputError(
            f"{node.name!r} holds exactly one node for each case, and would get another number of "
            f"them. Replace the node inside by one other, or replace {node.name!r}."
        )
    if isinstance(node, Choice):
        names = [name for name, _ in node.options]
        return replace(node, options=tuple(zip(names, nodes, strict=True)))
    assert isinstance(node, When)
    return replace(node, then=nodes[0], otherwise=nodes[1] if len(nodes) > 1 else None)


def _edit(nodes: tuple[Node, ...], name: str, edit: Edit) -> tuple[Node, ...] | None:
    """The nodes with ``edit`` applied to the node of that name, at any depth, or ``None``."""
    for i, node in enumerate(nodes):
        changed: tuple[Node, ...] | None = edit(node) if node.name == name else None
        if changed is None and (inner := _edit(inside(node), name, edit)) is not None:
            changed = (_holding(node, inner),)
        if changed is not None:
            return (*nodes[:i], *changed, *nodes[i + 1 :])
    return None
