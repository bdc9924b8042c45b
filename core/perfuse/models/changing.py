"""Components with adapters in their weights. Imports no torch until a module is built."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perfuse.contract.changes import Changes
from perfuse.contract.component import Component, Recipe
from perfuse.contract.quantized import SCHEMES
from perfuse.contract.spec import ComponentSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Changed", "with_changes"]


@dataclass(frozen=True, kw_only=True)
class Changed(Recipe):
    """Builds a component's module with adapters in its weights; the others' memory is shared."""

    before: Recipe
    changes: Changes
    #: The precision that the changed weights are rounded to.
    precision: str

    @property
    def foreign(self) -> bool:
        return self.before.foreign

    def in_blocks(self) -> "Changed":
        return dataclasses.replace(self, before=self.before.in_blocks())

    def with_spec(self, spec: ComponentSpec) -> "Changed":
        return dataclasses.replace(self, before=self.before.with_spec(spec))

    def __call__(self) -> "nn.Module":
        from perfuse.models.changed_weights import changed_module

        return changed_module(self.before(), self.changes, self.precision)


@dataclass(frozen=True, kw_only=True)
class Beside(Changed):
    """The same with adapters of low rank beside the weights, which are to be stored in integers."""

    @property
    def graph(self) -> str | None:
        if self.before.graph is None:
            return None
        beside = ((name, self.changes.factors(name)) for name in sorted(self.changes.names))
        ranks = [(name, None if one is None else len(one[0])) for name, one in beside]
        said = hashlib.sha256(repr(ranks).encode()).hexdigest()
        return f"{self.before.graph} beside {said}"

    def __call__(self) -> "nn.Module":
        from perfuse.models.changed_weights import changed_beside

        return changed_beside(self.before(), self.changes, self.precision)


def with_changes(component: Component, changes: Changes | None) -> Component:
    """A component with adapters in its weights, or as it is if there are none.

    Where its weights are to be stored in integers, those of low rank are beside them, so that they are
    not rounded, and belong to the component itself.
    """
    if changes is None:
        return component
    build, fingerprint = component.build, component.fingerprint
    integers = component.storage in SCHEMES
    if build is not None:
        kind = Beside if integers else Changed
        build = kind(before=build, changes=changes, precision=component.precision)
    if fingerprint is not None:
        text = f"{fingerprint} {changes.fingerprint}"
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
    own = dataclasses.replace(component, build=build, fingerprint=fingerprint)
    if integers and build is not None:
        return own
    return dataclasses.replace(own, changes=changes, plain=component)
