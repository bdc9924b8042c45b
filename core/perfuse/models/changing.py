"""Components with adapters in their weights. Imports no torch until a module is built."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perfuse.contract.changes import Changes
from perfuse.contract.component import Component, Recipe
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

    def with_spec(self, spec: ComponentSpec) -> "Changed":
        return dataclasses.replace(self, before=self.before.with_spec(spec))

    def __call__(self) -> "nn.Module":
        from perfuse.models.changed_weights import changed_module

        return changed_module(self.before(), self.changes, self.precision)


def with_changes(component: Component, changes: Changes | None) -> Component:
    """A component with adapters in its weights, or as it is if there are none."""
    if changes is None:
        return component
    build, fingerprint = component.build, component.fingerprint
    if build is not None:
        build = Changed(before=build, changes=changes, precision=component.precision)
    if fingerprint is not None:
        text = f"{fingerprint} {changes.fingerprint}"
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
    return dataclasses.replace(
        component, build=build, fingerprint=fingerprint, changes=changes, plain=component
    )
