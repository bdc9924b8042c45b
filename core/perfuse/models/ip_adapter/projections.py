"""The networks that make tokens of images, and the tensors of an adapter's file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.component import Recipe
from perfuse.errors import WeightsError
from perfuse.models.adaptive_norms import modulate
from perfuse.models.embeddings import TimestepEmbedding, Timesteps
from perfuse.models.ip_adapter.description import ImageAdapter, standard

__all__ = ["Projection", "TimeResampler", "fill", "needed", "tensors"]

_HEAD = 64  # of a resampler: the width of a head


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

    def forward(
        self, states: Tensor, queries: Tensor, told: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """``told`` are a shift and a scale of the queries, [B, D] each."""
        queries = self.norm2(queries)
        if told is not None:
            queries = modulate(queries, *told)
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


class TimeResampler(nn.Module):
    """An image's states [B, N, D] at a timestep to tokens [B, T, C], and that timestep's embedding."""

    def __init__(self, adapter: ImageAdapter, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        _, tokens, width = shapes["latents"]
        depth = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
        inner, feed = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        waves = shapes["time_embedding.linear_1.weight"][1]
        self.latents = nn.Parameter(torch.zeros(1, tokens, width))
        self.time_proj = Timesteps(waves, flip_sin_to_cos=True, freq_shift=0)
        self.time_embedding = TimestepEmbedding(waves, width)
        self.proj_in = nn.Linear(adapter.inputs, width)
        self.proj_out = nn.Linear(width, adapter.width)
        self.norm_out = nn.LayerNorm(adapter.width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width, inner),
                    _feed_forward(width, feed),
                    nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width)),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, states: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        told = self.time_embedding(self.time_proj(timestep).to(states.dtype))
        states = self.proj_in(states) + told[:, None]
        queries = self.latents.expand(states.shape[0], -1, -1)
        for layer in self.layers:
            attend, network, modulations = layer.children()
            norm, *feed = network.children()
            shift, scale, *second = modulations(told).chunk(4, dim=1)
            queries = attend(states, queries, (shift, scale)) + queries
            inner = modulate(norm(queries), *second)
            for step in feed:
                inner = step(inner)
            queries = inner + queries
        return self.norm_out(self.proj_out(queries)), told


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
        state = tensors(adapter.file, "image_proj.")
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
        fill(module, state, adapter.file)
        return module.eval().requires_grad_(False)


def tensors(file: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose standard names begin so, memory-mapped, without that beginning."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        every = ((standard(own), own) for own in opened.keys())  # noqa: SIM118 - no dict
        names = [(name, own) for name, own in every if name.startswith(prefix)]
        return {name.removeprefix(prefix): opened.get_tensor(own) for name, own in names}


def needed(state: Mapping[str, Tensor], file: Path, *names: str) -> tuple[Tensor, ...]:
    """Tensors of an adapter's attentions.

    Raises:
        WeightsError: one is missing.
    """
    if missing := [name for name in names if name not in state]:
        raise WeightsError(f"{file} has no ip_adapter.{missing[0]}. Download the file again.")
    return tuple(state[name] for name in names)


def fill(module: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Give a module an adapter's tensors, which stay memory-mapped.

    Raises:
        WeightsError: they are not the module's.
    """
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as exc:
        raise WeightsError(
            f"The weights in {file} do not fit together: {' '.join(str(exc).split())[:300]}. "
            "Download the file again."
        ) from exc
