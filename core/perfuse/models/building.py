"""The torch modules of components: from a checkpoint's weights, or from a model of the user's.

A component's module is *flat*: it takes the tensors of the component's signature in order, and
returns a tuple of its outputs. The reference path runs this module; ``torch.export`` captures it.
"""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from perfuse.contract.component import Component, Recipe
from perfuse.contract.quantized import KEPT
from perfuse.contract.spec import ComponentSpec
from perfuse.errors import InputError
from perfuse.models.loading import load_state
from perfuse.models.model import Model
from perfuse.models.registry import find
from perfuse.plugins import resolve
from perfuse.sources.block_tensor import BlockTensor
from perfuse.sources.plain import to_plain
from perfuse.sources.weights import Weights

__all__ = ["Given", "build_component", "converted", "load_native", "native", "unwrap", "wrap"]

_M = TypeVar("_M", bound=Model)


def build_component(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a component; weights already in ``dtype`` stay memory-mapped."""
    module: nn.Module = resolve(find(spec.class_name, asked=spec.name).build)(spec, weights, dtype)
    return module.eval().requires_grad_(False)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """Wrap a model of the component's class (perfuse's, Diffusers' or Transformers') as flat."""
    face = find(spec.class_name, asked=spec.name).wrap
    wrapped: nn.Module = resolve(face)(spec, model) if face else model
    return wrapped


@dataclass(frozen=True, kw_only=True)
class Given(Recipe):
    """The recipe of a module that the user set on a pipeline: wrap it as flat."""

    spec: ComponentSpec
    module: nn.Module
    #: Whether weights that are blocks of integers stay so.
    kept: bool = False

    @property
    def quantized(self) -> str:
        found = any(isinstance(one, BlockTensor) for one in self.module.parameters())
        return KEPT if found else ""

    def in_blocks(self) -> "Given":
        return dataclasses.replace(self, kept=True)

    def with_spec(self, spec: ComponentSpec) -> "Given":
        return dataclasses.replace(self, spec=spec)

    def __call__(self) -> nn.Module:
        module = wrap(self.spec, self.module).eval()
        return module if self.kept or not self.quantized else _dequantized(module)


def _dequantized(module: nn.Module) -> nn.Module:
    """A copy of the module with numbers in the place of blocks; the others' memory is shared."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    for one in module.parameters():
        if isinstance(one, BlockTensor):
            memo[id(one)] = nn.Parameter(one.dequantized(), requires_grad=False)
    return copy.deepcopy(module, memo)  # what is in the memo counts as copied already


def native(cls: type[Model], spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """perfuse's model of class ``cls`` with the tensors of ``model``, if their names match.

    Diffusers' modules branch on the size of their input, so a capture of them is valid for some
    sizes only.
    """
    if isinstance(model, Model):
        return model
    with torch.device("meta"):
        ours = cls.from_config(spec.config)
    try:
        state = {cls.rename(name): tensor for name, tensor in model.state_dict().items()}
        ours.load_state_dict({n: t for n, t in state.items() if n is not None}, assign=True)
    except RuntimeError:  # layers were added or removed: run the user's module as it is
        return model
    return ours.requires_grad_(False)


def converted(cls: type[_M], spec: ComponentSpec, model: nn.Module) -> _M:
    """perfuse's model of class ``cls`` with the tensors of ``model``, which must be all of it.

    Raises:
        InputError: layers were added to ``model``, or removed.
    """
    ours = native(cls, spec, model)
    if isinstance(ours, cls):
        return ours
    raise InputError(
        f"A {type(model).__name__} was given for {spec.name}, a {spec.class_name}; its parameters are "
        "not those of its config: layers were added or removed. Merge adapters into it first, or "
        "give the pipeline the adapters' files."
    )


def load_native(cls: type[_M], spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> _M:
    """A model of class ``cls`` with a checkpoint's weights."""
    with torch.device("meta"):
        model = cls.from_config(spec.config)
    load_state(model, weights, where=spec.folder, rename=cls.rename, dtype=dtype)
    return model


def unwrap(component: Component) -> nn.Module:
    """The model inside a component's flat module, for the user to read or modify.

    Raises:
        InputError: the component comes from an export, so it has no torch module.
    """
    if component.build is None:
        raise InputError(
            f"The torch module of {component.name} was asked for; {component.name} comes from an "
            "export, which has no torch module. Open the checkpoint that was exported."
        )
    module = component.build()
    whole: Any = getattr(module, "whole", None)
    model = whole() if whole is not None else getattr(module, "model", None)
    if model is None:
        model = _transformers_own(component, module)
    assert isinstance(model, nn.Module)
    return model.to(getattr(torch, component.precision))


def _transformers_own(component: Component, module: nn.Module) -> nn.Module:
    """Transformers' model with the tensors of a flat module, where that has no face of its own.

    What the flat module leaves out, as the last layers of a language model, is read from the checkpoint.
    Any other module is returned as it is.
    """
    recipe: Any = component.build
    while hasattr(recipe, "before"):
        recipe = recipe.before
    spec = component.spec
    architecture = find(spec.class_name, asked=spec.name)
    weights = getattr(recipe, "weights", None)  # of a checkpoint's
    theirs = architecture.library == "transformers" and not isinstance(module, Model)
    if not theirs or not isinstance(weights, Weights):
        return module
    import transformers
    from transformers.utils import logging

    kind = getattr(transformers, spec.class_name)
    stored, state = dict(weights.tensors()), module.state_dict()
    for name, where in recipe.names().items():
        stored[where] = state[name].reshape(stored[where].shape)
    config = kind.config_class.from_dict(to_plain(spec.config))
    shows = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # nothing is read from a disk
    try:
        model: nn.Module = kind.from_pretrained(None, config=config, state_dict=stored)
    finally:
        if shows:
            logging.enable_progress_bar()
    return model.eval().requires_grad_(False)
