"""The weights of a module by name, and with adapters in them."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.changes import Changes, plain_name

__all__ = ["changed_beside", "changed_module", "changed_weights", "named_weights"]


def changed_module(module: nn.Module, changes: Changes, precision: str) -> nn.Module:
    """A copy of a flat module with adapters in its weights; the other weights are shared."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    weights = named_weights(module)
    for name, changed in changed_weights(weights, changes, precision):
        memo[id(weights[name])] = nn.Parameter(changed, requires_grad=False)
    return copy.deepcopy(module, memo)  # what is in the memo counts as copied already


def changed_beside(module: nn.Module, changes: Changes, precision: str) -> nn.Module:
    """A copy of a flat module with adapters of low rank beside its layers; all weights are shared.

    A layer ``W`` gives ``W x + B (A x)`` (Hu et al. 2021, arXiv:2106.09685, section 4.1). Adapters of
    other kinds are in the weights.
    """
    dtype, weights = getattr(torch, precision), named_weights(module)
    names = changes.names & weights.keys()
    beside = {
        name: factors
        for name in sorted(names & _layers(module).keys())
        if (factors := changes.factors(name)) is not None
    }
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    for name, changed in _changed(weights, changes, names - beside.keys(), dtype):
        memo[id(weights[name])] = nn.Parameter(changed, requires_grad=False)
    own = copy.deepcopy(module, memo)
    layers = _layers(own)
    for name, factors in beside.items():
        for part, factor in zip(("beside_down", "beside_up"), factors, strict=True):
            value = nn.Parameter(torch.from_numpy(factor).to(dtype), requires_grad=False)
            layers[name].register_parameter(part, value)
        layers[name].register_forward_hook(_beside)
    return own


def _layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that adapters can be beside, by the names of their weights."""
    return {
        plain_name(f"{name}.weight"): layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }


def _beside(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """What a layer gives, and what adapters add to it."""
    (hidden,), down, up = inputs, layer.beside_down, layer.beside_up
    if down.ndim == 2:
        return output + F.linear(F.linear(hidden, down), up)
    settings = layer.stride, layer.padding, layer.dilation
    return output + F.conv2d(F.conv2d(hidden, down, None, *settings), up[..., None, None])


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a flat module by their names in the model's state dict."""
    return {plain_name(name): tensor for name, tensor in module.named_parameters()}


def changed_weights(
    weights: Mapping[str, Tensor], changes: Changes, precision: str
) -> Iterator[tuple[str, Tensor]]:
    """Each weight that adapters change, as it is with them.

    Args:
        weights: Those of the checkpoint by name. A worse version of a denoiser lacks some.
        changes: The adapters.
        precision: What to round to.
    """
    names = changes.names & weights.keys()
    yield from _changed(weights, changes, names, getattr(torch, precision))


def _changed(
    weights: Mapping[str, Tensor], changes: Changes, names: Iterable[str], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for name in sorted(names):
        weight = weights[name].detach().to("cpu", torch.float32)
        yield name, torch.from_numpy(changes.of(name, weight.numpy())).to(dtype)
