"""The networks of an adapter: projections of images, and the attention to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.component import Recipe
from perfuse.errors import InputError, WeightsError
from perfuse.models.attention import Attention
from perfuse.models.ip_adapter.description import ImageAdapter, cross_attentions

__all__ = ["Projection", "attached"]

_HEAD = 64  # of a resampler: the width of a head


# Projections


class PlainProjection(nn.Module):
    """An embedding [B, D] to tokens [B, T, C], normalised."""

    def __init__(self, adapter: ImageAdapter) -> None:
        super().__init__()
        self.width = adapter.width
        self.proj = nn.Linear(adapter.inputs, adapter.tokens * adapter.width)
        self.norm = nn.LayerNorm(adapter.width)

    def forward(self, image_embeds: Tensor) -> tuple[Tensor]:
        return (self.norm(self.proj(image_embeds).unflatten(-1, (-1, self.width))),)


class FaceProjection(nn.Module):
    """A face recogniser's embedding [B, D] to tokens [B, T, C], normalised."""

    def __init__(self, adapter: ImageAdapter, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        self.width = adapter.width
        self.proj = _two_layers(shapes)
        self.norm = nn.LayerNorm(adapter.width)

    def forward(self, image_embeds: Tensor) -> tuple[Tensor]:
        return (self.norm(self.proj(image_embeds).unflatten(-1, (-1, self.width))),)


class FullProjection(nn.Module):
    """An image's states [B, N, D] to as many tokens [B, N, C], normalised."""

    def __init__(self, adapter: ImageAdapter, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        self.proj = _two_layers(shapes)
        self.proj.append(nn.LayerNorm(adapter.width))

    def forward(self, penultimate_hidden_state: Tensor) -> tuple[Tensor]:
        return (self.proj(penultimate_hidden_state),)


def _two_layers(shapes: Mapping[str, torch.Size]) -> nn.Sequential:
    inner, inputs = shapes["proj.0.weight"]
    return nn.Sequential(
        nn.Linear(inputs, inner), nn.GELU(), nn.Linear(inner, shapes["proj.2.weight"][0])
    )


class PerceiverAttention(nn.Module):
    """Queries [B, T, D] to states and queries together (Jaegle et al. 2021, arXiv:2103.03206)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, states: Tensor, queries: Tensor) -> Tensor:
        queries = self.norm2(queries)
        key, value = self.to_kv(torch.cat([self.norm1(states), queries], dim=1)).chunk(2, dim=-1)
        split = (
            one.unflatten(-1, (-1, _HEAD)).transpose(1, 2)
            for one in (self.to_q(queries), key, value)
        )
        attended = F.scaled_dot_product_attention(*split)
        output: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return output


class Resampler(nn.Module):
    """An image's states [B, N, D] to tokens [B, T, C], by queries that it learned."""

    def __init__(self, adapter: ImageAdapter, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        _, tokens, width = shapes["latents"]
        depth = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
        inner, feed = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        self.latents = nn.Parameter(torch.zeros(1, tokens, width))
        self.proj_in = nn.Linear(adapter.inputs, width)
        self.proj_out = nn.Linear(width, adapter.width)
        self.norm_out = nn.LayerNorm(adapter.width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, inner), _feed_forward(width, feed)])
            for _ in range(depth)
        )

    def forward(self, penultimate_hidden_state: Tensor) -> tuple[Tensor]:
        states = self.proj_in(penultimate_hidden_state)
        queries = self.latents.expand(states.shape[0], -1, -1)
        for layer in self.layers:
            attend, feed = layer.children()
            queries = attend(states, queries) + queries
            queries = feed(queries) + queries
        return (self.norm_out(self.proj_out(queries)),)


def _feed_forward(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, inner, bias=False),
        nn.GELU(),
        nn.Linear(inner, width, bias=False),
    )


@dataclass(frozen=True, kw_only=True)
class Projection(Recipe):
    """Builds the projection of an adapter with its weights."""

    adapter: ImageAdapter

    def __call__(self) -> nn.Module:
        adapter = self.adapter
        state = _tensors(adapter.file, "image_proj.")
        shapes = {name: tensor.shape for name, tensor in state.items()}
        with torch.device("meta"):
            module: nn.Module
            if adapter.kind == "plain":
                module = PlainProjection(adapter)
            elif adapter.kind == "face":
                module = FaceProjection(adapter, shapes)
            elif adapter.kind == "full":
                module = FullProjection(adapter, shapes)
            else:
                module = Resampler(adapter, shapes)
        _load(module, state, adapter.file)
        return module.eval().requires_grad_(False)


def _tensors(file: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names begin so, memory-mapped, without that beginning."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118 - no dict
        return {name.removeprefix(prefix): opened.get_tensor(name) for name in names}


def _load(module: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as exc:
        raise WeightsError(
            f"The weights in {file} do not fit together: {' '.join(str(exc).split())[:300]}. "
            "Download the file again."
        ) from exc


# Attention


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
    states = [_tensors(adapter.file, "ip_adapter.") for adapter in adapters]
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
    names = [f"{number}.to_{which}_ip.weight" for which in "kv"]
    if missing := [name for name in names if name not in state]:
        raise WeightsError(f"{file} has no ip_adapter.{missing[0]}. Download the file again.")
    key, value = (state[name].to(dtype) for name in names)
    return key, value
