"""Programs with the wrong weights, as where graphs and weights come apart."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from perfuse.backend import SCHEMES, Changes, Component, Program, StoredTensor, Target
from perfuse.capture import named_weights, replace_tensors
from perfuse.models import with_changes
from perfuse.sources import ArtifactStore
from perfuse_mutants.backend import Arrays, Mutant, Wrapped, role_of

__all__ = [
    "AdapterTwice",
    "AddedInPlace",
    "DroppedAdapter",
    "FirstWeights",
    "ForgottenAlpha",
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


class ForgottenAlpha(Mutant):
    """Takes a LoRA's ``alpha`` for its rank, as where a file has none."""

    name = "mutant-forgotten-alpha"

    def prepare_right(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        if role_of(component) in self.roles and component.changes is not None:
            component = with_changes(component.unchanged, _without_alpha(component.changes))
        return super().prepare_right(component, target, store)


def _without_alpha(changes: Any) -> Changes:
    uses = []
    for use in changes.uses:
        own = use.adapter.deltas[changes.part]
        plain = {name: dataclasses.replace(delta, scale=1.0) for name, delta in own.items()}
        adapter = dataclasses.replace(use.adapter, deltas={changes.part: plain})
        uses.append(dataclasses.replace(use, adapter=adapter))
    return dataclasses.replace(changes, uses=tuple(uses))


class AddedInPlace(Mutant):
    """Adds adapters to weights in half precision, and takes them out again, where they are."""

    name = "mutant-added-in-place"

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        right = super().prepare(component, target, store)
        if role_of(component) in self.roles and component.build is not None:
            return _AddedTo(component, right, component.unchanged.build())
        return right


class _AddedTo(Wrapped):
    """A module of its own, whose weights change where they are."""

    def __init__(self, component: Component, program: Program, plain: nn.Module) -> None:
        super().__init__(component, program)
        self._module = replace_tensors(plain, _halved)
        self.run = self._computed
        self._add(component.changes, 1.0)

    def _computed(self, inputs: Arrays) -> Arrays:
        given = [torch.from_numpy(inputs[name]) for name in self.signature.input_names]
        with torch.no_grad():
            outputs = [tensor.numpy() for tensor in self._module(*given)]
        return dict(zip(self.signature.output_names, outputs, strict=True))

    def rebind(self, component: Component) -> bool:
        if component.unchanged != self._component.unchanged:
            return False
        self._add(self._component.changes, -1.0)
        self._add(component.changes, 1.0)
        self._component = component
        return True

    def _add(self, changes: Changes | None, sign: float) -> None:
        weights = named_weights(self._module)
        for name in changes.names if changes is not None else ():
            nothing = np.zeros(weights[name].shape, np.float32)
            added = torch.from_numpy(changes.of(name, nothing))
            weights[name].data = _halved(weights[name] + sign * added)


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16).float() if tensor.is_floating_point() else tensor


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
