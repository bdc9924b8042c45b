"""The attention of Stable Diffusion 3 to image prompts, and the resampler before it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from perfuse.errors import InputError
from perfuse.models.adaptive_norms import AdaLayerNorm, RMSNorm
from perfuse.models.blocks import BlockModel, Images
from perfuse.models.ip_adapter.description import ImageAdapter
from perfuse.models.ip_adapter.projections import TimeResampler, fill, tensors
from perfuse.models.joint_attention import attend, split_heads

__all__ = ["attached"]

_EPS = 1e-6


class SD3Look(nn.Module):
    """Attention of the picture's tokens to themselves and an image's: [B, N, H · D].

    It has norms of its own; keys and values of the picture are those of the other attention.
    """

    def __init__(self, number: int, width: int, head_dim: int, told: int) -> None:
        super().__init__()
        self.number = number
        self.norm_ip = AdaLayerNorm(width, told)
        self.to_k_ip = nn.Linear(width, width, bias=False)
        self.to_v_ip = nn.Linear(width, width, bias=False)
        self.norm_q, self.norm_k = RMSNorm(head_dim, _EPS), RMSNorm(head_dim, _EPS)
        self.norm_ip_k = RMSNorm(head_dim, _EPS)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        tokens: Tensor,
        told: Tensor,
        scales: Tensor,
    ) -> Tensor:
        """Of the image the tokens [B, L, C], the timestep's embedding and the scales [1, attentions]."""
        heads, normal = query.shape[1], self.norm_ip(tokens, told)
        own = self.norm_ip_k(split_heads(self.to_k_ip(normal), heads))
        keys = torch.cat([self.norm_k(key), own], dim=2)
        values = torch.cat([value, split_heads(self.to_v_ip(normal), heads)], dim=2)
        return attend(self.norm_q(query), keys, values) * scales[0, self.number]


class SD3Images(Images):
    """``timestep, ip_states_0, ip_scales_0`` to the looks of each block's attentions."""

    def __init__(self, resampler: TimeResampler, looks: Sequence[Sequence[SD3Look]]) -> None:
        super().__init__()
        self.count = 2
        self.resampler = resampler
        self.looks = nn.ModuleList(nn.ModuleList(block) for block in looks)

    def forward(self, timestep: Tensor, *inputs: Tensor) -> tuple[Any, ...]:
        states, scales = inputs
        tokens, told = self.resampler(states, timestep)
        seen = {"tokens": tokens, "told": told, "scales": scales}
        return tuple(
            tuple(partial(look, **seen) for look in block.children()) for block in self.looks
        )


def attached(
    module: nn.Module, names: tuple[str, ...], adapters: tuple[ImageAdapter, ...]
) -> nn.Module:
    """A transformer whose attentions of the picture look at an image, too.

    Args:
        module: The flat module; it is changed.
        names: Its inputs.
        adapters: The adapter.

    Raises:
        InputError: it is a module of the user's that perfuse cannot change.
        WeightsError: the adapter's tensors are not those of this network.
    """
    if not isinstance(module, BlockModel):
        raise InputError(
            "An IP-Adapter was to be loaded; the denoiser is a module of the user's, and no adapter fits "
            "it. Use perfuse's or Diffusers' transformer."
        )
    (adapter,) = adapters
    config: Any = module.config
    image, state = tensors(adapter.file, "image_proj."), tensors(adapter.file, "ip_adapter.")
    shapes = {name: tensor.shape for name, tensor in image.items()}
    with torch.device("meta"):
        resampler = TimeResampler(adapter, shapes)
        told = shapes["time_embedding.linear_1.weight"][0]
        each = [
            SD3Look(i, config.width, config.attention_head_dim, told) for i in range(adapter.layers)
        ]
    fill(resampler, image, adapter.file)
    for look in each:
        prefix = f"{look.number}."
        own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        fill(look, own, adapter.file)
    numbered, looks = iter(each), []
    for i in range(config.num_layers):
        looks.append([next(numbered) for _ in range(1 + (i in config.dual_attention_layers))])
    module.images = SD3Images(resampler, looks).to(module.dtype).eval().requires_grad_(False)
    return module
