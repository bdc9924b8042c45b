"""Transforms: accelerations and other rewritings of a pipeline before it runs."""

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
    """What a pipeline will run: its description, its components and its tasks.

    Plain data: it can be hashed, pickled and sent to another process.
    """

    spec: PipelineSpec
    components: Mapping[str, Component]
    tasks: Mapping[str, Task]

    def __post_init__(self) -> None:
        for name in ("components", "tasks"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    def with_component(self, component: Component) -> "Plan":
        """The plan with a component added, or replaced if one of that name exists."""
        components = {**self.spec.components, component.name: component.spec}
        return replace(
            self,
            spec=replace(self.spec, components=components),
            components={**self.components, component.name: component},
        )

    def with_tasks(self, change: Callable[[Task], Task]) -> "Plan":
        """The plan with ``change`` applied to each of its tasks."""
        return replace(self, tasks={name: change(task) for name, task in self.tasks.items()})


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a transform that has none."""


class Transform(ABC):
    """An acceleration, or anything else that rewrites a pipeline: plan and options in, plan out."""

    #: A frozen dataclass of plain fields, each with a default: the options that a user types after
    #: the name, ``--transform NAME:key=value,key=value``.
    Options: ClassVar[type] = NoOptions
    #: Whether it changes pictures by more than rounding. Such a transform is never on by default,
    #: and pictures and reports name it.
    approximate: ClassVar[bool] = False

    #: The name in its manifest; set by the host.
    name: str = ""

    @abstractmethod
    def apply(self, plan: Plan, options: object) -> Plan:
        """Return a rewritten plan: components changed or added, steps replaced or made conditional.

        Called before anything is prepared or exported. It must be cheap: ``Component.rebuilt``
        rewrites a module later, when it is built. Components of an exported folder have no module;
        they were rewritten before the export.

        Args:
            plan: The pipeline's plan, after any earlier transforms.
            options: An instance of ``Options``.

        Raises:
            InputError: the transform does not fit this pipeline, or two options exclude each other.
        """

    def is_approximate(self, options: object) -> bool:
        """Whether it is, with these options."""
        return self.approximate

    def refuse(self, why: str) -> InputError:
        """The error to raise if the transform does not fit a pipeline; ``why`` ends the message."""
        return InputError(f"Transform {self.name!r} was asked for; {why}")
