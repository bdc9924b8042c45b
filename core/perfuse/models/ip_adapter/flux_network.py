"""The attention of FLUX.1 and Chroma to image prompts."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from perfuse.errors import InputError
from perfuse.models.blocks import BlockModel, Images
from perfuse.models.ip_adapter.description import ImageAdapter
from perfuse.models.ip_adapter.projections import needed, tensors
from perfuse.models.joint_attention import attend, split_heads

__all__ = ["attached"]


class FluxLook(nn.Module):
    """What the picture's queries [B, H, N, D] of a block see of each adapter's tokens, [B, N, H · D]."""

    def __init__(self, number: int, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self.number = number
        self.to_k_ip = nn.ModuleList(key for key, _ in pairs)
        self.to_v_ip = nn.ModuleList(value for _, value in pairs)

    def forward(self, query: Tensor, images: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """``images`` are of each adapter the tokens [B, L, C] and the scales [1, blocks]."""
        seen = []
        for (tokens, scales), to_k, to_v in zip(images, self.to_k_ip, self.to_v_ip, strict=True):
            key, value = (split_heads(layer(tokens), query.shape[1]) for layer in (to_k, to_v))
            seen.append(attend(query, key, value) * scales[0, self.number])
        return sum(seen[1:], start=seen[0])


class FluxImages(Images):
    """``timestep, ip_tokens_0, ip_scales_0, …`` to a look for each block."""

    def __init__(self, looks: Sequence[FluxLook], adapters: int) -> None:
        super().__init__()
        self.count = 2 * adapters
        self.looks = nn.ModuleList(looks)

    def forward(self, timestep: Tensor, *inputs: Tensor) -> tuple[Any, ...]:
        images = tuple(zip(inputs[::2], inputs[1::2], strict=True))
        return tuple(partial(look, images=images) for look in self.looks)


def attached(
    module: nn.Module, names: tuple[str, ...], adapters: tuple[ImageAdapter, ...]
) -> nn.Module:
    """A transformer whose blocks of two streams look at the images of adapters.

    Args:
        module: The flat module; it is changed.
        names: Its inputs.
        adapters: The adapters.

    Raises:
        InputError: it is a module of the user's that perfuse cannot change.
        WeightsError: an adapter has no keys or values for a block.
    """
    if not isinstance(module, BlockModel):
        raise InputError(
            "An IP-Adapter was to be loaded; the denoiser is a module of the user's, and no adapter fits "
            "it. Use perfuse's or Diffusers' transformer."
        )
    states = [(tensors(adapter.file, "ip_adapter."), adapter) for adapter in adapters]
    looks = []
    for i in range(adapters[0].layers):
        pairs = [
            (
                _linear(state, adapter, f"{i}.to_k_ip", module),
                _linear(state, adapter, f"{i}.to_v_ip", module),
            )
            for state, adapter in states
        ]
        looks.append(FluxLook(i, pairs))
    module.images = FluxImages(looks, len(adapters)).eval()
    return module


def _linear(
    state: Mapping[str, Tensor], adapter: ImageAdapter, name: str, model: BlockModel
) -> nn.Linear:
    weight, bias = needed(state, adapter.file, f"{name}.weight", f"{name}.bias")
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = (
        nn.Parameter(one.to(model.dtype), requires_grad=False) for one in (weight, bias)
    )
    return layer
