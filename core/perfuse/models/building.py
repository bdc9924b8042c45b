"""Modules of components: from a checkpoint's weights, or around a model that the user gives.

A component's module has a flat face: a signature's inputs in order go in, a tuple of its outputs
comes out. It is what the reference path runs and what capture traces: one code path for both.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from perfuse.contract.component import Component, Recipe
from perfuse.contract.spec import ComponentSpec
from perfuse.errors import InputError
from perfuse.models.loading import load_state
from perfuse.models.model import Model
from perfuse.models.registry import find
from perfuse.plugins import resolve
from perfuse.sources.weights import Weights

__all__ = ["Given", "build_component", "load_native", "native", "unwrap", "wrap"]

_M = TypeVar("_M", bound=Model)


def build_component(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a component, its weights memory-mapped where their dtype is ``dtype``."""
    module: nn.Module = resolve(find(spec.class_name, asked=spec.name).build)(spec, weights, dtype)
    return module.eval().requires_grad_(False)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat face of a model of the component's class: ours, Diffusers' or Transformers'."""
    face = find(spec.class_name, asked=spec.name).wrap
    wrapped: nn.Module = resolve(face)(spec, model) if face else model
    return wrapped


@dataclass(frozen=True, kw_only=True)
class Given(Recipe):
    """The flat face of a module that the user put into a pipeline."""

    spec: ComponentSpec
    module: nn.Module

    def __call__(self) -> nn.Module:
        return wrap(self.spec, self.module).eval()


def native(cls: type[Model], spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """Our model around the same tensors, where a module has the names of one of ours.

    Diffusers' modules decide by the size of their input, so that no capture of them holds for all.
    """
    if isinstance(model, Model):
        return model
    with torch.device("meta"):
        ours = cls.from_config(spec.config)
    try:
        ours.load_state_dict(model.state_dict(), assign=True)
    except RuntimeError:  # layers were added or taken out: it runs as it is
        return model
    return ours.requires_grad_(False)


def load_native(cls: type[_M], spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> _M:
    """One of our models with a checkpoint's weights."""
    with torch.device("meta"):
        model = cls.from_config(spec.config)
    load_state(model, weights, where=spec.folder, rename=cls.rename, dtype=dtype)
    return model


def unwrap(component: Component) -> nn.Module:
    """The model inside a component's flat module, for a user to look at or to change.

    Raises:
        InputError: the component has no torch module.
    """
    if component.build is None:
        raise InputError(f"{component.name} comes from an export, which has no torch module.")
    module = component.build()
    whole: Any = getattr(module, "whole", None)
    model = whole() if whole is not None else getattr(module, "model", module)
    assert isinstance(model, nn.Module)
    return model.to(getattr(torch, component.precision))
