"""The attention of UNets to image prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.errors import InputError
from perfuse.models.attention import Attention
from perfuse.models.ip_adapter.cross_attentions import cross_attentions
from perfuse.models.ip_adapter.description import ImageAdapter
from perfuse.models.ip_adapter.projections import needed, tensors

__all__ = ["attached"]


class Images(NamedTuple):
    """One adapter's inputs of the denoiser."""

    #: [B, G, L, C].
    tokens: Tensor
    #: [G, levels, h, w].
    masks: Tensor
    #: [G, layers].
    scales: Tensor


class Prompts(NamedTuple):
    """The text states [B, S, C] and the images, which take the place of text states alone."""

    text: Tensor
    images: tuple[Images, ...]


class PromptedAttention(nn.Module):
    """Cross-attention to the text, and to the images with keys and values of their own."""

    def __init__(
        self, text: Attention, index: int, level: int, pairs: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.heads, self.upcast, self.index, self.level = text.heads, text.upcast, index, level
        self.to_q, self.to_k, self.to_v, self.to_out = text.to_q, text.to_k, text.to_v, text.to_out
        self.to_k_ip = nn.ModuleList(_linear(key) for key, _ in pairs)
        self.to_v_ip = nn.ModuleList(_linear(value) for _, value in pairs)

    def forward(self, hidden: Tensor, context: Prompts, bias: Tensor | None = None) -> Tensor:
        query = self._split(self.to_q(hidden))
        text = self._attend(query, self.to_k(context.text), self.to_v(context.text), bias)
        for images, to_k, to_v in zip(context.images, self.to_k_ip, self.to_v_ip, strict=True):
            text = text + self._seen(query, images, to_k, to_v)
        output: Tensor = self.to_out[1](self.to_out[0](text))
        return output

    def _seen(self, query: Tensor, images: Images, to_k: nn.Module, to_v: nn.Module) -> Tensor:
        """What the pixels [B, Q, C] take from an adapter's images, by its masks and scales."""
        batch, groups = images.tokens.shape[:2]
        tokens = images.tokens.flatten(0, 1)
        each = query[:, None].expand(-1, groups, -1, -1, -1).flatten(0, 1)
        flat = self._attend(each, to_k(tokens), to_v(tokens), None)
        seen: Tensor = flat.unflatten(0, (batch, groups))  # type: ignore[no-untyped-call]
        mask = images.masks[:, self.level].flatten(1)[:, : query.shape[2], None]
        return (seen * (mask * images.scales[:, self.index, None, None])).sum(dim=1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        dtype = query.dtype
        key, value = self._split(key), self._split(value)
        if self.upcast:
            query, key, value = query.float(), key.float(), value.float()
            bias = bias.float() if bias is not None else None
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        output: Tensor = attended.transpose(1, 2).flatten(2).to(dtype)
        return output

    def _split(self, projected: Tensor) -> Tensor:
        """[B, N, heads * d] to [B, heads, N, d]."""
        each: Tensor = projected.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return each.transpose(1, 2)


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class PromptedDenoiser(nn.Module):
    """A denoiser's flat module whose last inputs are its adapters': three of each."""

    def __init__(self, inner: nn.Module, names: tuple[str, ...], adapters: int) -> None:
        super().__init__()
        self.inner = inner
        self.text = names.index("encoder_hidden_states")
        self.adapters = adapters

    @property
    def model(self) -> nn.Module:
        """The denoiser itself, for whatever else rewrites it."""
        model = self.inner.model
        assert isinstance(model, nn.Module)
        return model

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        own = list(inputs[: len(inputs) - 3 * self.adapters])
        more = inputs[len(own) :]
        images = tuple(Images(*more[i : i + 3]) for i in range(0, len(more), 3))
        own[self.text] = Prompts(own[self.text], images)  # type: ignore[call-overload]
        output: tuple[Tensor] = self.inner(*own)
        return output


def attached(
    module: nn.Module, names: tuple[str, ...], adapters: tuple[ImageAdapter, ...]
) -> nn.Module:
    """A denoiser's flat module with adapters in its cross-attentions.

    Args:
        module: The flat module; it is changed.
        names: Its inputs.
        adapters: The adapters.

    Raises:
        InputError: the denoiser is not one that adapters are made for.
    """
    model: Any = getattr(module, "model", None)
    config = getattr(model, "config", None)
    if config is None or getattr(model, "encoder_hid_proj", None) is not None:
        raise InputError(
            "An IP-Adapter was to be loaded; the denoiser is a module of the user's or projects its "
            "text states, and no adapter fits it. Use perfuse's or Diffusers' UNet."
        )
    states = [tensors(adapter.file, "ip_adapter.") for adapter in adapters]
    dtype = next(model.parameters()).dtype
    for index, where in enumerate(cross_attentions(config.to_dict())):
        pairs = [
            _pair(state, 2 * index + 1, dtype, adapter.file)
            for state, adapter in zip(states, adapters, strict=True)
        ]
        block = where.blocks_of(model)[where.layer]
        if block.only_cross_attention:
            raise InputError(
                "An IP-Adapter was to be loaded; the denoiser attends to the text alone "
                "(only_cross_attention), and no adapter fits it."
            )
        block.attn2 = PromptedAttention(block.attn2, index, where.level, pairs)
    return PromptedDenoiser(module, names, len(adapters)).eval()


def _pair(
    state: Mapping[str, Tensor], number: int, dtype: torch.dtype, file: Path
) -> tuple[Tensor, Tensor]:
    key, value = needed(state, file, *(f"{number}.to_{which}_ip.weight" for which in "kv"))
    return key.to(dtype), value.to(dtype)
