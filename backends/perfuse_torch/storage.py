"""Weights kept in fewer bits than are computed in: each layer's are widened while it runs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from perfuse.backend import SCHEMES

__all__ = ["STORAGES", "stored"]

#: Scheme to the dtype that weights are kept in, where that is one of torch.
_DTYPES = {
    name: getattr(torch, name) for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
}
STORAGES = (*_DTYPES, *SCHEMES)
#: Layers that hold nearly all weights; norms and embeddings of time are small and sensitive.
_LARGE = (nn.Linear, nn.Conv2d, nn.Embedding)


class _Stored(nn.Module):
    """A layer whose weights are widened for each call."""

    def __init__(self, layer: nn.Module, kept: torch.dtype) -> None:
        super().__init__()
        self.dtype = next(layer.parameters()).dtype
        self.layer = layer.to(kept)

    def __getattr__(self, name: str) -> Any:
        """What models ask of their layers: ``weight``, of which the dtype decides a cast."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(super().__getattr__("layer"), name)
        return value.to(self.dtype) if isinstance(value, Tensor) else value

    def forward(self, *inputs: Tensor) -> Tensor:
        wide = {name: tensor.to(self.dtype) for name, tensor in self.layer.named_parameters()}
        output: Tensor = functional_call(self.layer, wide, inputs)
        return output


def stored(module: nn.Module, scheme: str) -> nn.Module:
    """The module with its large layers' weights kept in a scheme. It is changed in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, _LARGE):
            setattr(module, name, _Stored(child, _DTYPES[scheme]))
        else:
            stored(child, scheme)
    return module
