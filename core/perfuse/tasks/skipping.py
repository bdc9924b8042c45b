"""Loops that ask the denoiser at some steps alone: the rule of a method, and the steps it needs.

A rule decides once a step, on the host, for all branches of the guidance. What it guesses takes the
place of the guided prediction, so it works with every guider.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perfuse.contract.spec import Array
from perfuse.contract.steps import Node, State, Step, Task, Tools, When, inside
from perfuse.errors import InputError

if TYPE_CHECKING:
    from perfuse.schedulers import Schedule

__all__ = ["Answer", "Rule", "Seen", "has_step", "skipping"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Where the loop is, and what the denoiser is given there."""

    #: The step, from 0.
    index: int
    #: How many steps there are.
    total: int
    #: The sample, scaled as the denoiser takes it.
    sample: Array
    #: How much of the clean latents there is in what the schedule steps through, and how much noise.
    noising: tuple[float, float]
    #: That itself as pictures: [B, C, h, w].
    latents: Array


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the denoiser said at a step."""

    #: The branches' predictions, combined by the guider.
    guided: Array
    #: The prediction with the prompt.
    positive: Array


class Rule(ABC):
    """Says at which steps the denoiser is asked, and what stands for its answer at the others.

    Subclasses are frozen dataclasses. Memory is passed and returned; each run begins with ``None``,
    and asks at its first step.
    """

    @abstractmethod
    def check(self, total: int) -> None:
        """Raise ``InputError`` if the rule does not fit a loop of so many steps."""

    @abstractmethod
    def asks(self, seen: Seen, memory: Any) -> tuple[bool, Any]:
        """Whether the denoiser is asked, and what to remember."""

    @abstractmethod
    def keep(self, seen: Seen, answer: Answer, memory: Any) -> Any:
        """What to remember of an answer."""

    @abstractmethod
    def guess(self, seen: Seen, memory: Any) -> Array:
        """What stands for the guided prediction where the denoiser is not asked."""


def skipping(task: Task, rule: Rule) -> Task:
    """A task whose loop asks the denoiser where a rule says so.

    Raises:
        InputError: the loop leaves steps out already, or has no step to leave out.
    """
    if has_step(task, _DECIDE):
        raise InputError(
            f"Two transforms were asked for that leave out steps of {task.name!r}. Choose one."
        )
    predict, guide = task.find("predict"), task.find("guide")
    guess = Step(name="guess", run=_Guess(rule), outputs=("prediction",))
    seldom = When(name="guide_seldom", condition=_is_asked, then=guide, otherwise=guess)
    return (
        task.insert(
            Step(name="begin_skipping", run=_Begin(rule), outputs=("remembered",)),
            after="prepare_schedule",
        )
        .insert(
            Step(name=_DECIDE, run=_Decide(rule), outputs=("asked", "remembered")),
            before="predict",
        )
        .replace("predict", When(name="predict_seldom", condition=_is_asked, then=predict))
        .replace("guide", seldom)
        .insert(
            Step(name="remember", run=_Remember(rule), outputs=("remembered",)),
            after="guide_seldom",
        )
    )


_DECIDE = "decide"


def has_step(task: Task, name: str) -> bool:
    """Whether a task has a step of this name, also inside others."""
    return name in _names(task.steps)


def _names(nodes: tuple[Node, ...]) -> set[str]:
    return {node.name for node in nodes}.union(*(_names(inside(node)) for node in nodes))


def _is_asked(tools: Tools, asked: bool) -> bool:
    return asked


@dataclass(frozen=True)
class _Begin:
    """Nothing is remembered when a run begins."""

    rule: Rule

    def __call__(self, tools: Tools, schedule: "Schedule") -> State:
        self.rule.check(len(schedule.timesteps))
        return {"remembered": None}


@dataclass(frozen=True)
class _Decide:
    """Whether the denoiser is asked at this step."""

    rule: Rule

    def __call__(
        self,
        tools: Tools,
        index: int,
        samples: tuple[Array, ...],
        schedule: "Schedule",
        height: int,
        width: int,
        remembered: Any,
    ) -> State:
        seen = _seen(tools, index, samples, schedule, (height, width))
        asked, remembered = self.rule.asks(seen, remembered) if index else (True, remembered)
        return {"asked": asked, "remembered": remembered}


@dataclass(frozen=True)
class _Guess:
    """What stands for the guided prediction."""

    rule: Rule

    def __call__(
        self,
        tools: Tools,
        index: int,
        samples: tuple[Array, ...],
        schedule: "Schedule",
        height: int,
        width: int,
        remembered: Any,
    ) -> State:
        return {
            "prediction": self.rule.guess(
                _seen(tools, index, samples, schedule, (height, width)), remembered
            )
        }


@dataclass(frozen=True)
class _Remember:
    """What later steps need to know of an answer."""

    rule: Rule

    def __call__(
        self,
        tools: Tools,
        index: int,
        samples: tuple[Array, ...],
        schedule: "Schedule",
        height: int,
        width: int,
        asked: bool,
        predictions: Mapping[str, Array],
        prediction: Array,
        remembered: Any,
    ) -> State:
        if not asked:
            return {"remembered": remembered}
        answer = Answer(guided=prediction, positive=predictions.get("positive", prediction))
        seen = _seen(tools, index, samples, schedule, (height, width))
        return {"remembered": self.rule.keep(seen, answer, remembered)}


def _seen(
    tools: Tools,
    index: int,
    samples: tuple[Array, ...],
    schedule: "Schedule",
    size: tuple[int, int],
) -> Seen:
    return Seen(
        index=index,
        total=len(schedule.timesteps),
        sample=schedule.scale_input(index, samples[0]),
        noising=schedule.rows[index].noising,
        latents=tools.spec.latents.unpack(samples[0], *size),
    )
