"""The weights of a module by name, and with adapters in them."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perfuse.contract.changes import Changes, plain_name

__all__ = ["changed_module", "changed_weights", "named_weights"]


def changed_module(module: nn.Module, changes: Changes, precision: str) -> nn.Module:
    """A copy of a flat module with adapters in its weights; the other weights are shared."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    weights = named_weights(module)
    for name, changed in changed_weights(weights, changes, precision):
        memo[id(weights[name])] = nn.Parameter(changed, requires_grad=False)
    return copy.deepcopy(module, memo)  # what is in the memo counts as copied already


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
    dtype = getattr(torch, precision)
    for name in sorted(changes.names & weights.keys()):
        weight = weights[name].detach().to("cpu", torch.float32)
        yield name, torch.from_numpy(changes.of(name, weight.numpy())).to(dtype)
