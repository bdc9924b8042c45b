"""Transforms: accelerations and whatever else rewrites a pipeline before it runs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from perfuse.contract.component import Component
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.spec import PipelineSpec
from perfuse.contract.steps import Task
from perfuse.errors import InputError

__all__ = ["NoOptions", "Plan", "Transform"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a pipeline is going to do: its description, its components and its tasks.

    Plain data: it can be hashed, pickled and sent to another process.
    """

    spec: PipelineSpec
    components: Mapping[str, Component]
    tasks: Mapping[str, Task]

    def __post_init__(self) -> None:
        for name in ("components", "tasks"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    def with_component(self, component: Component) -> "Plan":
        """The plan with a component more, or another in the place of the one of that name."""
        components = {**self.spec.components, component.name: component.spec}
        return replace(
            self,
            spec=replace(self.spec, components=components),
            components={**self.components, component.name: component},
        )

    def with_tasks(self, change: Callable[[Task], Task]) -> "Plan":
        """The plan with each of its tasks changed."""
        return replace(self, tasks={name: change(task) for name, task in self.tasks.items()})


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a transform that has none."""


class Transform(ABC):
    """An acceleration, or anything else that rewrites a pipeline: plan and options in, plan out."""

    #: A frozen dataclass of plain fields, each with a default: what a person writes after the
    #: name, ``--transform NAME:key=value,key=value``.
    Options: ClassVar[type] = NoOptions
    #: Whether what is drawn is no longer the same within rounding. Such a transform is never on by
    #: default, and pictures and reports name it.
    approximate: ClassVar[bool] = False

    #: The name that its manifest gives it; the host sets it.
    name: str = ""

    @abstractmethod
    def apply(self, plan: Plan, options: object) -> Plan:
        """The plan, rewritten: components rewritten or added, steps replaced or put under a condition.

        It is called before anything is prepared or exported, and does no work itself: a component's
        module is rewritten by ``Component.rebuilt`` when it is built. The components of an exported
        folder have no module any more and were rewritten when it was made.

        Args:
            plan: The pipeline as it is, or as an earlier transform left it.
            options: An instance of ``Options``.

        Raises:
            InputError: it does not fit this pipeline, or two options exclude each other.
        """

    def refuse(self, why: str) -> InputError:
        """The error of a transform that does not fit a pipeline."""
        return InputError(f"Transform {self.name!r} was asked for; {why}")
