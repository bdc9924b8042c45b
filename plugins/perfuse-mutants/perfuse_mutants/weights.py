"""Programs with the wrong weights, as where graphs and weights come apart."""

import dataclasses
from typing import Any

from torch import nn

from perfuse.backend import Component, Program, Target
from perfuse.models import with_changes
from perfuse.sources import ArtifactStore
from perfuse_mutants.backend import Mutant, role_of

__all__ = ["AdapterTwice", "DroppedAdapter", "FirstWeights", "ForgottenTranspose"]


class FirstWeights(Mutant):
    """Keeps the weights of the first checkpoint of a config, and gives them to every other."""

    name = "mutant-first-weights"

    def __init__(self) -> None:
        self._known: dict[Any, Component] = {}

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        first = self._known.setdefault((component.spec, component.precision), component)
        kept = dataclasses.replace(component, build=first.build, fingerprint=first.fingerprint)
        return super().prepare_right(kept, target, store)


class AdapterTwice(Mutant):
    """Adds what an adapter changes to weights that have it already."""

    name = "mutant-adapter-twice"

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        if role_of(component) in self.roles:
            component = with_changes(component, component.changes)
        return super().prepare_right(component, target, store)


class DroppedAdapter(Mutant):
    """Leaves the adapters of the text encoder out."""

    name = "mutant-dropped-adapter"
    roles = ("text",)

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        if role_of(component) in self.roles:
            component = component.unchanged
        return super().prepare_right(component, target, store)


class ForgottenTranspose(Mutant):
    """Takes one square matrix the wrong way round: no shape tells."""

    name = "mutant-forgotten-transpose"

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        if role_of(component) in self.roles:
            component = component.rebuilt(_turned)
        return super().prepare_right(component, target, store)


def _turned(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.Linear) and part.in_features == part.out_features:
            part.weight = nn.Parameter(part.weight.T.contiguous(), requires_grad=False)
            return module
    return module
