"""ControlNet++, or ControlNet-Union: https://github.com/xinsir6/ControlNetPlus."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.errors import InputError
from perfuse.models.building import load_native, native
from perfuse.models.controlnet.network import (
    ControlNetModel,
    ControlNetOutput,
    scaled,
    times_scales,
)
from perfuse.models.controlnet_union.description import ControlNetUnionConfig
from perfuse.models.embeddings import TimestepEmbedding, Timesteps
from perfuse.models.model import check_attention
from perfuse.models.unet_blocks import resized
from perfuse.sources.weights import Weights

__all__ = ["ControlNetUnionModel", "build", "wrap"]


class Mlp(nn.Module):
    """Two layers with the quick GELU of CLIP between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(channels, channels * 4)
        self.c_proj = nn.Linear(channels * 4, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        wide = self.c_fc(tokens)
        output: Tensor = self.c_proj(wide * torch.sigmoid(1.702 * wide))
        return output


class ResidualAttentionBlock(nn.Module):
    """Self-attention and an MLP over [B, N, C].

    The attention is over the first axis, the batch, as in the authors' code and in Diffusers: the
    pictures that a network reads at once do not see each other, those of a batch do. A batch with
    one picture for all is not changed by that.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, heads)
        self.ln_1 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        self.ln_2 = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._attended(self.ln_1(tokens))
        output: Tensor = tokens + self.mlp(self.ln_2(tokens))
        return output

    def _attended(self, tokens: Tensor) -> Tensor:
        projected = F.linear(tokens, self.attn.in_proj_weight, self.attn.in_proj_bias)
        query, key, value = (  # each [N, heads, B, C]
            part.reshape(*part.shape[:2], self.attn.num_heads, -1).permute(1, 2, 0, 3)
            for part in projected.chunk(3, dim=-1)
        )
        states = F.scaled_dot_product_attention(query, key, value)
        out = self.attn.out_proj
        return F.linear(states.permute(2, 0, 1, 3).flatten(2), out.weight, out.bias)


class ControlNetUnionModel(ControlNetModel):
    """Reads one or several pictures, each of a kind that it knows, and steers the denoiser."""

    config_class: ClassVar[type[ControlNetUnionConfig]] = ControlNetUnionConfig
    config: ControlNetUnionConfig

    def _build_picture_embedding(self) -> None:
        config, width = self.config, self.config.num_trans_channel
        super()._build_picture_embedding()
        self.task_embedding = nn.Parameter(width**0.5 * torch.randn(config.num_control_type, width))
        # The name is that of the checkpoints.
        self.transformer_layes = nn.ModuleList(
            ResidualAttentionBlock(width, config.num_trans_head)
            for _ in range(config.num_trans_layer)
        )
        self.spatial_ch_projs = nn.Linear(width, config.num_proj_channel)
        for parameter in self.spatial_ch_projs.parameters():
            nn.init.zeros_(parameter)
        each = config.addition_time_embed_dim or 0
        self.control_type_proj = Timesteps(each, config.flip_sin_to_cos, config.freq_shift)
        self.control_add_embedding = TimestepEmbedding(
            each * config.num_control_type, config.block_out_channels[0] * 4
        )

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Sequence[Tensor],
        control_type: Tensor,
        control_type_idx: Sequence[int],
        conditioning_scale: float | Sequence[float] = 1.0,
        class_labels: Tensor | None = None,
        timestep_cond: None = None,
        attention_mask: None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        from_multi: bool = False,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[list[Tensor], Tensor]:
        """The residuals for a UNet's skip connections and its middle.

        Args:
            sample: The noisy latent [B, C, h, w].
            timestep: A number, or [B]; fractions are kept.
            encoder_hidden_states: Text states [B, S, D].
            controlnet_cond: The pictures, each [B, 3, H, W] in [0, 1].
            control_type: [B, K], 1 for each kind that is among the pictures.
            control_type_idx: The kind of each picture.
            conditioning_scale: For one picture, times every residual; for several, a scale for each
                before they are joined.
            class_labels: [B] or [B, P], for class-conditioned models.
            timestep_cond: Not taken.
            attention_mask: Not taken.
            added_cond_kwargs: ``text_embeds`` [B, P] and ``time_ids`` [B, 6] for SD XL.
            cross_attention_kwargs: Not taken but empty, or with a ``scale``.
            from_multi: Whether the scale is times every residual for several pictures, too.
            guess_mode: Whether the residuals near the top count for less, for no prompt.
            return_dict: ``False`` for a plain tuple.

        Raises:
            InputError: an argument is not taken.
        """
        others = {"timestep_cond": timestep_cond, "attention_mask": attention_mask}
        check_attention(cross_attention_kwargs, **others)
        count = len(controlnet_cond)
        given = conditioning_scale
        scales = [float(given)] * count if isinstance(given, int | float) else list(given)
        alone = from_multi or count == 1
        modes = F.one_hot(torch.tensor(control_type_idx), self.config.num_control_type)
        residuals = self.residuals(
            sample,
            timestep,
            encoder_hidden_states,
            pictures=torch.stack(list(controlnet_cond), dim=1),
            kinds=control_type,
            modes=modes.to(sample).expand(len(sample), -1, -1),
            scales=sample.new_tensor([1.0] * count if alone else scales).expand(len(sample), -1),
            class_labels=class_labels,
            added=added_cond_kwargs if added_cond_kwargs is not None else {},
        )
        *down, mid = scaled(self.config, residuals, scales[0] if alone else 1.0, guess_mode)
        return ControlNetOutput(down, mid) if return_dict else (down, mid)

    def residuals(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        pictures: Tensor,
        kinds: Tensor,
        modes: Tensor,
        scales: Tensor,
        class_labels: Tensor | None = None,
        added: Mapping[str, Tensor],
    ) -> list[Tensor]:
        """The residuals before they are scaled, the middle's last.

        Args:
            sample: The noisy latent [B, C, h, w].
            timestep: A number, or [B].
            encoder_hidden_states: Text states [B, S, D].
            pictures: [B, N, 3, H, W] in [0, 1].
            kinds: [B, K], 1 for each kind that is among the pictures.
            modes: [B, N, K], 1 at the kind of each picture.
            scales: [B, N], of each picture.
            class_labels: [B] or [B, P], for class-conditioned models.
            added: ``text_embeds`` [B, P] and ``time_ids`` [B, 6] for SD XL.
        """
        time = self._embed(sample, timestep, encoder_hidden_states, class_labels, None, added)
        sinusoids: Tensor = self.control_type_proj(kinds.flatten())
        sinusoids = sinusoids.reshape(kinds.shape[0], -1)
        time = time + self.control_add_embedding(sinusoids.to(time.dtype))
        start = self.conv_in(sample)
        states = start + resized(self._joined(pictures, modes, scales), start)
        return self._residuals(states, time, encoder_hidden_states)

    def _joined(self, pictures: Tensor, modes: Tensor, scales: Tensor) -> Tensor:
        """The states of all pictures as one, [B, C, h, w]."""
        shape = pictures.shape[:2]
        states: Tensor = self.controlnet_cond_embedding(pictures.flatten(0, 1))
        states = states.reshape(*shape, *states.shape[1:])
        tokens = (states.mean(dim=(3, 4)) + modes @ self.task_embedding) * scales[..., None]
        for layer in self.transformer_layes:
            tokens = layer(tokens)
        shifts = self.spatial_ch_projs(tokens)[..., None, None]
        joined: Tensor = ((states + shifts) * scales[..., None, None, None]).sum(dim=1)
        return joined


class ControlNetUnion(nn.Module):
    """``sample, timestep, …, control_image, …, residual_scales -> residuals``, by the names."""

    def __init__(self, model: ControlNetUnionModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        pooled = ("text_embeds", "time_ids")
        added: dict[str, Tensor] = {name: named.pop(name) for name in pooled if name in named}
        scales, last = named.pop("control_scales"), named.pop("residual_scales")
        residuals = self.model.residuals(
            pictures=(picture := named.pop("control_image")),
            kinds=named.pop("control_kinds"),
            modes=named.pop("control_modes"),
            scales=scales.to(picture.dtype),
            added=added,
            **named,
        )
        return times_scales(scaled(self.model.config, residuals, 1.0, False), last)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return wrap(spec, load_native(ControlNetUnionModel, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a ControlNet-Union of perfuse or Diffusers.

    Raises:
        InputError: layers were added to the model or removed.
    """
    ours = native(ControlNetUnionModel, spec, model)
    if not isinstance(ours, ControlNetUnionModel):
        raise InputError(
            f"{spec.name} was given with other layers than a {spec.class_name} has. Give one "
            "without: merge what was added into its weights."
        )
    return ControlNetUnion(ours, spec.signature.input_names)
