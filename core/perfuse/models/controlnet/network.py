"""ControlNet (Zhang et al. 2023, arXiv:2302.05543)."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.building import load_native, native
from perfuse.models.controlnet.description import ControlNetConfig
from perfuse.models.model import check_attention
from perfuse.models.unet_2d_condition.network import Conditioned
from perfuse.models.unet_blocks import resized
from perfuse.sources.weights import Weights

__all__ = ["ControlNetModel", "build", "wrap"]


class ControlNetOutput(NamedTuple):
    """What a ControlNet adds to a UNet."""

    #: One for each skip connection, from the top.
    down_block_res_samples: list[Tensor]
    #: For the output of the middle.
    mid_block_res_sample: Tensor


class PictureEmbedding(nn.Module):
    """A picture [B, 3, 8h, 8w] as the states [B, C, h, w] that are added to the UNet's first."""

    def __init__(self, channels: int, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in itertools.pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = zeroed(nn.Conv2d(widths[-1], channels, 3, padding=1))

    def forward(self, picture: Tensor) -> Tensor:
        states = F.silu(self.conv_in(picture))
        for block in self.blocks:
            states = F.silu(block(states))
        output: Tensor = self.conv_out(states)
        return output


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that adds nothing until it is trained."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ControlNetModel(Conditioned):
    """Reads a picture beside the denoiser's inputs, and returns what to add inside the denoiser."""

    config_class: ClassVar[type[ControlNetConfig]] = ControlNetConfig
    config: ControlNetConfig

    def build(self) -> None:
        config = self.config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        time_channels, time_inputs = self._build_time()
        self._build_text_projection()
        self._build_class_embedding(time_channels, time_inputs)
        self._build_added_embedding(time_channels)
        self.time_embed_act = None
        self._build_picture_embedding()
        resnets = self._resnets(time_channels)
        self.down_blocks = nn.ModuleList()
        self.controlnet_down_blocks = nn.ModuleList([_output(widths[0])])
        for i, width in enumerate(widths):
            self.down_blocks.append(self._down_block(i, resnets))
            states = config.per_block("layers_per_block")[i] + (i < len(widths) - 1)
            self.controlnet_down_blocks.extend(_output(width) for _ in range(states))
        self.controlnet_mid_block = _output(widths[-1])
        self.mid_block = self._mid_block(resnets)

    @classmethod
    def from_unet(
        cls,
        unet: Conditioned,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A ControlNet to train for a UNet: a copy of its first half, which adds nothing yet.

        Args:
            unet: The UNet.
            controlnet_conditioning_channel_order: ``"rgb"`` or ``"bgr"``.
            conditioning_embedding_out_channels: Widths of the layers that read the picture; each
                after the first halves it, so that it comes down to the latents' size.
            load_weights_from_unet: ``False`` for weights at random.
            conditioning_channels: Channels of the picture.
        """
        known = {field.name for field in dataclasses.fields(cls.config_class)}
        shared = known - cls.config_class.absent
        fields = {name: v for name, v in unet.config.to_dict().items() if name in shared}
        net = cls(
            **fields,
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=conditioning_embedding_out_channels,
            conditioning_channels=conditioning_channels,
        )
        if load_weights_from_unet:
            own = net.state_dict()
            net.load_state_dict(
                {n: t for n, t in unet.state_dict().items() if n in own}, strict=False
            )
        return net

    def _build_picture_embedding(self) -> None:
        config = self.config
        self.controlnet_cond_embedding = PictureEmbedding(
            config.block_out_channels[0], config.conditioning_channels, config.embedding_channels
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        class_labels: Tensor | None = None,
        timestep_cond: None = None,
        attention_mask: None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[list[Tensor], Tensor]:
        """The residuals for a UNet's skip connections and its middle.

        Args:
            sample: The noisy latent [B, C, h, w].
            timestep: A number, or [B]; fractions are kept.
            encoder_hidden_states: Text states [B, S, D].
            controlnet_cond: The picture [B, 3, H, W], in [0, 1].
            conditioning_scale: Times every residual.
            class_labels: [B] or [B, P], for class-conditioned models.
            timestep_cond: Not taken.
            attention_mask: Not taken.
            added_cond_kwargs: ``text_embeds`` [B, P] and ``time_ids`` [B, 6] for SD XL.
            cross_attention_kwargs: Not taken but empty, or with a ``scale``.
            guess_mode: Whether the residuals near the top count for less, for no prompt.
            return_dict: ``False`` for a plain tuple.

        Raises:
            InputError: an argument is not taken.
        """
        others = {"timestep_cond": timestep_cond, "attention_mask": attention_mask}
        check_attention(cross_attention_kwargs, **others)
        picture = self._picture(controlnet_cond)
        added = added_cond_kwargs if added_cond_kwargs is not None else {}
        time = self._embed(sample, timestep, encoder_hidden_states, class_labels, None, added)
        start = self.conv_in(sample)
        states = start + resized(picture, start)
        residuals = self._residuals(states, time, encoder_hidden_states)
        residuals = scaled(self.config, residuals, conditioning_scale, guess_mode)
        *down, mid = residuals
        return ControlNetOutput(down, mid) if return_dict else (down, mid)

    def _picture(self, picture: Tensor) -> Tensor:
        if self.config.controlnet_conditioning_channel_order == "bgr":
            picture = picture.flip(1)
        embedded: Tensor = self.controlnet_cond_embedding(picture)
        return embedded

    def _residuals(self, sample: Tensor, time: Tensor, context: Tensor) -> list[Tensor]:
        """The residuals before they are scaled, the middle's last."""
        skips = [sample]
        for block in self.down_blocks:
            sample, states = block(sample, time, context, None)
            skips.extend(states)
        if self.mid_block is not None:
            sample = self.mid_block(sample, time, context, None)
        pairs = zip(self.controlnet_down_blocks, skips, strict=True)
        return [*(layer(skip) for layer, skip in pairs), self.controlnet_mid_block(sample)]


def scaled(
    config: ControlNetConfig, residuals: list[Tensor], scale: float, guess_mode: bool
) -> list[Tensor]:
    """The residuals times their scale, and as one value a channel if the config says so."""
    if guess_mode and not config.global_pool_conditions:
        scales = torch.logspace(-1, 0, len(residuals), device=residuals[0].device) * scale
        residuals = [residual * own for residual, own in zip(residuals, scales, strict=True)]
    elif scale != 1.0:
        residuals = [residual * scale for residual in residuals]
    if config.global_pool_conditions:
        residuals = [residual.mean(dim=(2, 3), keepdim=True) for residual in residuals]
    return residuals


def _output(channels: int) -> nn.Conv2d:
    return zeroed(nn.Conv2d(channels, channels, 1))


class ControlNet(nn.Module):
    """``sample, timestep, …, control_image, residual_scales -> residuals``, by the names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        added = {name: named.pop(name) for name in ("text_embeds", "time_ids") if name in named}
        picture, scales = named.pop("control_image"), named.pop("residual_scales")
        down, mid = self.model(
            **named, controlnet_cond=picture, added_cond_kwargs=added, return_dict=False
        )
        return times_scales([*down, mid], scales)


def times_scales(residuals: list[Tensor], scales: Tensor) -> tuple[Tensor, ...]:
    """Residuals [B, C, h, w] times their scales [B, residuals]."""
    each = scales.to(residuals[0].dtype)[..., None, None, None].unbind(1)
    return tuple(one * scale for one, scale in zip(residuals, each, strict=True))


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return wrap(spec, load_native(ControlNetModel, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a ControlNet of perfuse or Diffusers."""
    return ControlNet(native(ControlNetModel, spec, model), spec.signature.input_names)
