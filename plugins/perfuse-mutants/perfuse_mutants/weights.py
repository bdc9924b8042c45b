"""Programs with the wrong weights, as where graphs and weights come apart."""

import dataclasses
from typing import Any

import torch
from torch import nn

from perfuse.backend import SCHEMES, Component, Program, StoredTensor, Target
from perfuse.models import with_changes
from perfuse.sources import ArtifactStore
from perfuse_mutants.backend import Mutant, role_of

__all__ = [
    "AdapterTwice",
    "DroppedAdapter",
    "FirstWeights",
    "ForgottenTranspose",
    "TurnedScales",
]


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


class TurnedScales(Mutant):
    """Gives the scales of weights in integers to the outputs in the wrong order."""

    name = "mutant-turned-scales"

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        if role_of(component) in self.roles and component.storage in SCHEMES:
            component = component.rebuilt(_with_turned_scales, component.storage)
            component = dataclasses.replace(component, storage="")
        return super().prepare_right(component, target, store)


def _with_turned_scales(module: nn.Module, storage: str) -> nn.Module:
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and SCHEMES[storage].fits(
            f"{name}.weight", tuple(part.weight.shape)
        ):
            right = SCHEMES[storage].of(StoredTensor.of(part.weight), name)
            turned = dataclasses.replace(right, scale=right.scale[::-1]).dequantized.array
            part.weight = nn.Parameter(torch.from_numpy(turned), requires_grad=False)
    return module
