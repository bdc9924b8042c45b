"""The unconditional UNet (Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec
from perfuse.models.attention import SpatialAttention
from perfuse.models.building import load_native, native
from perfuse.models.embeddings import FourierFeatures, TimestepEmbedding, Timesteps
from perfuse.models.model import Model, as_batch
from perfuse.models.outputs import ModelOutput
from perfuse.models.unet_2d.description import UNet2DConfig
from perfuse.models.unet_blocks import (
    DownBlock,
    MidBlock,
    Resnets,
    UpBlock,
    conv_down,
    conv_up,
    resnet_down,
    resnet_up,
)
from perfuse.sources.weights import Weights


@dataclass(frozen=True)
class UNetOutput(ModelOutput):
    """A UNet's prediction, of the shape of its sample."""

    sample: Tensor


class UNet2DModel(Model):
    """Predicts noise (or whatever its scheduler expects) from a noisy picture and a timestep."""

    config_class: ClassVar[type[UNet2DConfig]] = UNet2DConfig
    config: UNet2DConfig

    def build(self) -> None:
        config = self.config
        widths = config.block_out_channels
        time_channels = config.time_embedding_dim or widths[0] * 4
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self._build_time(time_channels)
        resnets = Resnets(
            time_channels=time_channels,
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            act_fn=config.act_fn,
            dropout=config.dropout,
            scale_shift=config.resnet_time_scale_shift == "scale_shift",
        )
        self.down_blocks = nn.ModuleList(self._down_block(i, resnets) for i in range(len(widths)))
        self.mid_block = self._mid_block(resnets) if config.mid_block_type is not None else None
        self.up_blocks = nn.ModuleList(self._up_block(i, resnets) for i in range(len(widths)))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def _build_time(self, time_channels: int) -> None:
        config, width = self.config, self.config.block_out_channels[0]
        inputs = width
        self.time_proj: nn.Module
        if config.time_embedding_type == "fourier":
            FourierFeatures(width, scale=16, log=True, flip_sin_to_cos=False)
            # Diffusers draws these features twice and keeps the second draw.
            self.time_proj = FourierFeatures(width, scale=16, log=True, flip_sin_to_cos=False)
            inputs = 2 * width
        elif config.time_embedding_type == "learned":
            self.time_proj = nn.Embedding(config.num_train_timesteps or 0, width)
        else:
            self.time_proj = Timesteps(width, config.flip_sin_to_cos, config.freq_shift)
        self.time_embedding = TimestepEmbedding(inputs, time_channels)
        self.class_embedding: nn.Module | None = None
        if config.class_embed_type is None and config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, time_channels)
        elif config.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(inputs, time_channels)
        elif config.class_embed_type == "identity":
            self.class_embedding = nn.Identity()

    def _attention(self, channels: int, groups: int | None, scale: float = 1.0) -> nn.Module:
        return SpatialAttention(
            channels,
            head_dim=self.config.attention_head_dim or channels,
            groups=groups,
            eps=self.config.norm_eps,
            output_scale_factor=scale,
        )

    def _down_block(self, i: int, resnets: Resnets) -> DownBlock:
        config = self.config
        kind, width = config.down_block_types[i], config.block_out_channels[i]
        attends = kind == "AttnDownBlock2D"
        by_resnet = kind == "ResnetDownsampleBlock2D" or (
            attends and config.downsample_type == "resnet"
        )
        down = (
            resnet_down(resnets.make, width)
            if by_resnet
            else conv_down(width, config.downsample_padding)
        )
        return DownBlock(
            config.block_out_channels[max(i - 1, 0)],
            width,
            layers=config.layers_per_block,
            resnet=resnets.make,
            attention=(lambda _: self._attention(width, config.norm_num_groups))
            if attends
            else None,
            downsample=down if i < len(config.block_out_channels) - 1 else None,
        )

    def _mid_block(self, resnets: Resnets) -> MidBlock:
        config, width = self.config, self.config.block_out_channels[-1]
        scale = config.mid_block_scale_factor
        groups = config.attn_norm_num_groups
        if groups is None and not resnets.scale_shift:
            groups = config.norm_num_groups
        return MidBlock(
            width,
            resnet=lambda a, b: resnets.make(a, b, output_scale_factor=scale),
            attention=(lambda _: self._attention(width, groups, scale))
            if config.add_attention
            else None,
        )

    def _up_block(self, i: int, resnets: Resnets) -> UpBlock:
        config = self.config
        widths = config.block_out_channels[::-1]
        kind, width = config.up_block_types[i], widths[i]
        attends = kind == "AttnUpBlock2D"
        by_resnet = kind == "ResnetUpsampleBlock2D" or (
            attends and config.upsample_type == "resnet"
        )
        up = resnet_up(resnets.make, width) if by_resnet else conv_up(width)
        return UpBlock(
            widths[min(i + 1, len(widths) - 1)],
            width,
            widths[max(i - 1, 0)],
            layers=config.layers_per_block + 1,
            resnet=resnets.make,
            attention=(lambda _: self._attention(width, config.norm_num_groups))
            if attends
            else None,
            upsample=up if i < len(widths) - 1 else None,
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetOutput | tuple[Tensor]:
        """Predict from ``sample`` [B, C, H, W] and ``timestep`` (a number, or [B])."""
        config = self.config
        if config.center_input_sample:
            sample = 2 * sample - 1.0
        timesteps = as_batch(timestep, sample)
        if config.time_embedding_type == "learned":
            timesteps = timesteps.long()
        time = self.time_embedding(self.time_proj(timesteps).to(self.dtype))
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("this model is conditioned on a class: pass class_labels [B]")
            if config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(self.dtype)
            time = time + self.class_embedding(class_labels).to(self.dtype)

        sample = self.conv_in(sample)
        skips = [sample]
        for block in self.down_blocks:
            sample, states = block(sample, time)
            skips.extend(states)
        if self.mid_block is not None:
            sample = self.mid_block(sample, time)
        for block in self.up_blocks:
            sample = block(sample, skips, time)
        sample = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        if config.time_embedding_type == "fourier":
            # Score models (Song et al. 2021) divide the output by the noise level.
            sample = sample / timesteps[:, None, None, None]
        return UNetOutput(sample) if return_dict else (sample,)


class UNet2D(nn.Module):
    """``sample, timestep[, class_labels] -> (out_sample,)``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None
    ) -> tuple[Tensor]:
        output: tuple[Tensor] = self.model(sample, timestep, class_labels, return_dict=False)
        return output


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return wrap(spec, load_native(UNet2DModel, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a UNet of perfuse or Diffusers."""
    return UNet2D(native(UNet2DModel, spec, model))
