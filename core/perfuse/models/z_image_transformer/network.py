"""Z-Image's transformer: a caption and a picture in one stream (arXiv:2511.22699)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.adaptive_norms import RMSNorm, plain_norm
from perfuse.models.blocks import BlockModel, Streams
from perfuse.models.building import load_native, native
from perfuse.models.caption_rotary import caption_table, picture_table
from perfuse.models.embeddings import Timesteps
from perfuse.models.joint_attention import SelfAttention
from perfuse.models.patches import patchify, unpatchify
from perfuse.models.rotary import rotate_pairs
from perfuse.models.z_image_transformer.description import ZImageTransformerConfig
from perfuse.sources.weights import Weights

__all__ = ["ZImageTransformer2DModel", "build", "wrap"]

#: The width of what modulates the blocks, unless they are narrower.
_MODULATION = 256
_PATCH = 2
#: The scheduler's timesteps are thousandths of the noise's share.
_TRAINED_STEPS = 1000


class FeedForward(nn.Module):
    """A gated linear unit between two linear layers (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = int(channels / 3 * 8)
        self.w1 = nn.Linear(channels, inner, bias=False)
        self.w2 = nn.Linear(inner, channels, bias=False)
        self.w3 = nn.Linear(channels, inner, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.w2(F.silu(self.w1(hidden)) * self.w3(hidden))
        return output


class Block(nn.Module):
    """Attention and a feed-forward network between norms; modulated ones are scaled and gated."""

    def __init__(self, config: ZImageTransformerConfig, *, modulated: bool) -> None:
        super().__init__()
        dim, eps = config.dim, config.norm_eps
        self.attention = SelfAttention(
            dim,
            heads=config.n_heads,
            head_dim=dim // config.n_heads,
            qk_eps=1e-5 if config.qk_norm else None,
            bias=False,
            rotate=rotate_pairs,
        )
        self.feed_forward = FeedForward(dim)
        self.attention_norm1, self.ffn_norm1 = RMSNorm(dim, eps), RMSNorm(dim, eps)
        self.attention_norm2, self.ffn_norm2 = RMSNorm(dim, eps), RMSNorm(dim, eps)
        self.modulated = modulated
        if modulated:
            self.adaLN_modulation = nn.Sequential(nn.Linear(min(dim, _MODULATION), 4 * dim))

    def forward(
        self, hidden: Tensor, table: Tensor, bias: Tensor, told: Tensor | None = None
    ) -> Tensor:
        normed, second = self.attention_norm1(hidden), self.ffn_norm1
        if not self.modulated:
            hidden = hidden + self.attention_norm2(self.attention(normed, table, bias))
            return self._fed(hidden, second(hidden))
        scale, gate, scale_2, gate_2 = self.adaLN_modulation(told)[:, None].chunk(4, dim=-1)
        attended = self.attention(normed * (1 + scale), table, bias)
        hidden = hidden + gate.tanh() * self.attention_norm2(attended)
        return self._fed(hidden, second(hidden) * (1 + scale_2), gate_2.tanh())

    def _fed(self, hidden: Tensor, normed: Tensor, gate: Tensor | float = 1.0) -> Tensor:
        output: Tensor = hidden + gate * self.ffn_norm2(self.feed_forward(normed))
        return output


class FinalLayer(nn.Module):
    """Tokens, normalised and scaled, to the pixels of their patches."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.norm_final = plain_norm(dim)
        self.linear = nn.Linear(dim, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(min(dim, _MODULATION), dim))

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        scale = self.adaLN_modulation(told)[:, None]
        output: Tensor = self.linear(self.norm_final(hidden) * (1 + scale))
        return output


class TimestepEmbedder(nn.Module):
    """Two layers over the sinusoids of a timestep: float32 [B] to [B, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, 1024), nn.SiLU(), nn.Linear(1024, channels))
        self.waves = Timesteps(256, flip_sin_to_cos=True, freq_shift=0)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        output: Tensor = self.mlp(self.waves(timestep).to(dtype))
        return output


class ZImageTransformer2DModel(BlockModel):
    """Z-Image's denoiser."""

    config_class: ClassVar[type[ZImageTransformerConfig]] = ZImageTransformerConfig
    config: ZImageTransformerConfig
    rows = ("layers",)

    def build(self) -> None:
        config, dim = self.config, self.config.dim
        self.all_x_embedder, self.all_final_layer = nn.ModuleDict(), nn.ModuleDict()
        for patch, frames in zip(config.all_patch_size, config.all_f_patch_size, strict=True):
            pixels = frames * patch * patch * config.in_channels
            self.all_x_embedder[f"{patch}-{frames}"] = nn.Linear(pixels, dim)
            self.all_final_layer[f"{patch}-{frames}"] = FinalLayer(dim, pixels)
        self.noise_refiner = self._blocks(config.n_refiner_layers)
        self.context_refiner = self._blocks(config.n_refiner_layers, modulated=False)
        self.t_embedder = TimestepEmbedder(min(dim, _MODULATION))
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), nn.Linear(config.cap_feat_dim, dim)
        )
        self.x_pad_token = nn.Parameter(torch.zeros(1, dim))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, dim))
        self.layers = self._blocks(config.n_layers)

    def _blocks(self, count: int, *, modulated: bool = True) -> nn.ModuleList:
        return nn.ModuleList(Block(self.config, modulated=modulated) for _ in range(count))

    def begin(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        caption_padding: Tensor,
        caption_bias: Tensor,
        picture_rotary: Tensor,
        caption_rotary: Tensor,
        row_rotary: Tensor,
        column_rotary: Tensor,
        padding_bias: Tensor,
    ) -> tuple[Streams, Any]:
        """``perfuse.models.z_image_transformer.description`` says what the inputs are."""
        tokens = patchify(sample, _PATCH)
        # In this order nothing cancels, and what it is scaled by is 1 for released models. A thousand's
        # inverse, by which engines multiply instead of dividing, is rounded.
        signal = (_TRAINED_STEPS - timestep) * (self.config.t_scale / _TRAINED_STEPS)
        told = self.t_embedder(signal, sample.dtype)

        picture = self.all_x_embedder["2-1"](tokens)
        picture = torch.cat([picture, self.x_pad_token.expand(picture.shape[0], 1, -1)], dim=1)
        grid = picture_table(picture_rotary, row_rotary, column_rotary)
        places = torch.cat([grid, _nowhere(picture_rotary, self.config)], dim=2)
        free = torch.zeros_like(tokens[..., 0])
        bias = torch.cat([free, padding_bias.expand(picture.shape[0], 1)], dim=1)
        for block in self.noise_refiner:
            picture = block(picture, places, bias[:, None, None], told)

        text = self.cap_embedder(encoder_hidden_states)
        text = torch.where(caption_padding[..., None] > 0.5, self.cap_pad_token, text)
        text_places = caption_table(caption_rotary, text.shape[0], sum(self.config.axes_dims[1:]))
        for block in self.context_refiner:
            text = block(text, text_places, caption_bias[:, None, None])

        hidden = torch.cat([picture, text], dim=1)
        places = torch.cat([places, text_places], dim=2)
        bias = torch.cat([bias, caption_bias], dim=1)[:, None, None]
        height, width = (size // _PATCH for size in sample.shape[2:])
        return (hidden,), ((places, bias, told), (height, width))

    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        (hidden,), (given, _) = streams, told
        for block in self.part("layers", first, last):
            hidden = block(hidden, *given)
        return (hidden,)

    def apart(self, streams: Streams, told: Any) -> Streams:
        (hidden,), (_, (height, width)) = streams, told
        return hidden[:, : height * width], hidden[:, height * width :]

    def together(self, tokens: Streams, told: Any) -> Streams:
        return (torch.cat(tokens, dim=1),)

    def modulated(self, streams: Streams, told: Any) -> Tensor:
        block: Any = self.layers[0]
        (_, _, embedding), _ = told
        scale = block.adaLN_modulation(embedding)[:, None].chunk(4, dim=-1)[0]
        normal: Tensor = block.attention_norm1(streams[0]) * (1 + scale)
        return normal

    def finish(self, picture: Tensor, told: Any) -> Tensor:
        (_, _, embedding), (height, width) = told
        tokens = self.all_final_layer["2-1"](picture, embedding)
        return -unpatchify(tokens, height, width, _PATCH)


def _nowhere(like: Tensor, config: ZImageTransformerConfig) -> Tensor:
    """The table of one token at 0 on all axes, [B, 2, 1, D / 2]."""
    still = torch.stack([torch.ones_like(like[:, 0, :1]), torch.zeros_like(like[:, 0, :1])], dim=1)
    return still[..., None].expand(-1, -1, -1, sum(config.axes_dims) // 2)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The module of a checkpoint's component."""
    return load_native(ZImageTransformer2DModel, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The module of a transformer of perfuse or Diffusers."""
    return native(ZImageTransformer2DModel, spec, model)
