"""Steps that run a part of the denoiser, with what the rest of it gave at a step before.

Most rules have one part to run. One with several says at each step which of them.

A rule decides once a step, on the host and for all branches of the guidance, by the prediction with
the prompt.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.contract.component import Component
from perfuse.contract.spec import Array, ComponentSpec
from perfuse.contract.steps import State, Step, Task, Tools
from perfuse.contract.transform import Plan
from perfuse.errors import InputError
from perfuse.tasks.skipping import has_step

if TYPE_CHECKING:
    from perfuse.contract.control import Control
    from perfuse.contract.guider import Guider
    from perfuse.schedulers import Schedule
    from perfuse.tasks.denoise import Batches

__all__ = ["Look", "Reuse", "in_parts", "in_parts_already", "reusing"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a rule sees of a step."""

    #: The step, from 0.
    index: int
    #: How many steps there are.
    total: int
    #: The timestep that the denoiser is given.
    timestep: float = 0.0
    #: The step that the whole denoiser ran at last.
    computed: int
    #: By what a rule tells how much has changed: what the part, or the whole denoiser, gave at this
    #: step beside the prediction. ``None`` where that is nothing, or before a part has run.
    sign: Array | None = None
    #: What the whole denoiser gave at this step for later ones, the first if there are several;
    #: ``None`` where it has not run.
    state: Array | None = None


class Reuse(ABC):
    """Says at which steps a part of the denoiser runs alone.

    Subclasses are frozen dataclasses. Memory is passed and returned; each run begins with ``None``,
    and computes its first step.
    """

    #: Whether it decides by the sign that the part gives, which then runs at every step.
    looks: ClassVar[bool] = False

    @abstractmethod
    def check(self, total: int) -> None:
        """Raise ``InputError`` if the rule does not fit a loop of so many steps."""

    @abstractmethod
    def reuses(self, look: Look, memory: Any) -> tuple[bool, Any]:
        """Whether the part is enough at this step, and what to remember."""

    def which(self, look: Look) -> int:
        """The number of the part that is enough at this step."""
        return 0

    def keep(self, look: Look, memory: Any) -> Any:
        """What to remember of a step that the whole denoiser ran at."""
        return memory


def in_parts(plan: Plan, whole: Component, *parts: Component, rule: Reuse) -> Plan:
    """The plan with parts of the denoiser that run alone at some steps.

    Args:
        plan: The plan.
        whole: The denoiser, giving what the parts need.
        *parts: The other entries.
        rule: When.
    """
    if any(part.name not in plan.components for part in parts):  # an export made with it has all
        for component in (whole, *parts):
            plan = plan.with_component(component)
    specs = tuple(part.spec for part in parts)
    return plan.with_tasks(partial(reusing, whole=whole.spec, parts=specs, rule=rule))


def reusing(task: Task, whole: ComponentSpec, parts: Sequence[ComponentSpec], rule: Reuse) -> Task:
    """A task whose denoiser runs as a whole at some steps, and a part of it at the others.

    Args:
        task: The task.
        whole: The denoiser, which gives some of what the parts take.
        parts: The parts, other entries of the denoiser. What the first gives beside a prediction,
            if anything, is what a rule looks at; what any gives that another takes is kept, too.
        rule: When.

    Raises:
        InputError: the task has no loop of the usual steps, or its denoiser runs in parts already.
    """
    in_parts_already(task)
    given = whole.signature.output_names
    taken = tuple(
        Part(name=one.name, states=tuple(n for n in one.signature.input_names if n in given))
        for one in parts
    )
    states = tuple(dict.fromkeys(state for part in taken for state in part.states))
    own = {"out_sample", *states}
    signs = [name for name in parts[0].signature.output_names if name not in own]
    sign = signs[0] if signs else ""
    predict = _Predict(parts=taken, states=states, sign=sign, rule=rule)
    outputs = ("predictions", "kept_states")
    return task.insert(
        Step(name=_BEGIN, run=_Begin(rule), outputs=("kept_states",)), after="prepare_schedule"
    ).replace("predict", Step(name="predict", run=predict, outputs=outputs))


def in_parts_already(task: Task) -> None:
    """Raise ``InputError`` if a task's denoiser runs with what it gave at a step before."""
    if has_step(task, _BEGIN) or has_step(task, "begin_gating"):
        raise InputError(
            f"Two transforms were asked for that run a part of the denoiser at some steps of "
            f"{task.name!r}. Choose one."
        )


_BEGIN = "begin_reusing"

#: All outputs by branch, each [pictures, …].
Answers = dict[str, dict[str, Array]]
Ask = Callable[..., Answers]
#: What is kept by branch, then by name, each [pictures, …].
_States = Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """An entry that runs in the denoiser's place."""

    name: str
    #: What it takes of the outputs at a step before.
    states: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the denoiser gave for later steps."""

    #: At which step it ran as a whole.
    step: int
    states: _States
    #: The rule's.
    memory: Any


@dataclass(frozen=True)
class _Begin:
    """Nothing is kept when a run begins."""

    rule: Reuse

    def __call__(self, tools: Tools, schedule: "Schedule") -> State:
        self.rule.check(len(schedule.timesteps))
        return {"kept_states": None}


@dataclass(frozen=True, kw_only=True)
class _Predict:
    """The prediction for each branch, of the whole denoiser or of a part of it."""

    parts: tuple[Part, ...]
    #: What is kept of the outputs.
    states: tuple[str, ...]
    #: The first part's output that the rule looks at; empty if there is none.
    sign: str
    rule: Reuse

    def __call__(
        self,
        tools: Tools,
        index: int,
        samples: tuple[Array, ...],
        schedule: "Schedule",
        timesteps: Array,
        batches: "Batches",
        guider: "Guider",
        kept_states: Kept | None,
        controls: Sequence["Control"] = (),
    ) -> State:
        from perfuse.tasks.denoise import answers, moment_of

        ask = partial(
            answers, tools, index, samples, schedule, timesteps, batches, guider, controls
        )
        moment = moment_of(schedule, index)
        groups = dict(batches.groups(guider.running(moment)))
        own = groups.pop(None, ())
        found: Answers = {}
        for worse in groups.values():  # entries of their own, for guidance
            found |= ask(running=worse)
        kept = kept_states
        if own:
            last = index if kept is None else kept.step
            look = Look(index=index, total=moment.total, timestep=moment.timestep, computed=last)
            mine, kept = self._own(ask, own, look, kept)
            found |= mine
        predictions = {name: outputs["out_sample"] for name, outputs in found.items()}
        return {"predictions": predictions, "kept_states": kept}

    def _own(
        self, ask: Ask, names: tuple[str, ...], look: Look, kept: Kept | None
    ) -> tuple[Answers, Kept]:
        """What a part or the denoiser says for the branches that have no entry of their own."""
        memory = None if kept is None else kept.memory
        leading = "positive" if "positive" in names else names[0]
        ask = partial(ask, running=names)
        if kept is not None and set(names) <= kept.states.keys():
            few, memory = self._part(partial(self._ask, ask, kept), leading, look, memory)
            if few is not None:
                return few, replace(kept, states=self._states(few, kept.states), memory=memory)
        found = ask()
        given = found[leading]
        look = replace(
            look, computed=look.index, sign=given.get(self.sign), state=given[self.states[0]]
        )
        memory = self.rule.keep(look, memory)
        return found, Kept(step=look.index, states=self._states(found, {}), memory=memory)

    def _part(
        self, ask: Callable[[int], Answers], leading: str, look: Look, memory: Any
    ) -> tuple[Answers | None, Any]:
        """What a part says, ``None`` if it is not enough, and what the rule remembers."""
        found = None
        if self.rule.looks:
            found = ask(0)
            look = replace(look, sign=found[leading][self.sign])
        reuses, memory = self.rule.reuses(look, memory)
        if not reuses:
            return None, memory
        return ask(self.rule.which(look)) if found is None else found, memory

    def _ask(self, ask: Ask, kept: Kept, number: int) -> Answers:
        """What a part says, with what was kept for it."""
        part = self.parts[number]
        states = {
            branch: {name: one[name] for name in part.states} for branch, one in kept.states.items()
        }
        return ask(denoiser=part.name, kept=states)

    def _states(self, found: Answers, before: _States) -> _States:
        """What is kept for each branch, of what was just given and of what was before."""
        kept = dict(before)
        for branch, outputs in found.items():
            own = {name: outputs[name] for name in self.states if name in outputs}
            kept[branch] = {**before.get(branch, {}), **own}
        return kept
