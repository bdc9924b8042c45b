"""The blocks of k-diffusion's UNets (Crowson 2022), which the latent upscaler is made of.

They differ from Stable Diffusion's: the time embedding sets scale and shift of every group norm,
attention has no feed-forward network and normalises the text, resampling is a fixed filter, and one
skip connection a block leads from the first half to the second.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.attention import Attention
from perfuse.models.embeddings import activation

__all__ = ["KDownBlock", "KSettings", "KUpBlock"]

#: Channels of a group of every group norm.
_GROUP = 32


@dataclass(frozen=True, kw_only=True)
class KSettings:
    """What all layers of a block share."""

    time_channels: int
    eps: float
    act_fn: str
    dropout: float
    #: Channels of an attention head; ``None`` for a block without attention.
    head_dim: int | None
    #: Channels of the text.
    context_channels: int
    #: Whether pixels attend to each other, too, before they attend to the text.
    self_attention: bool = False


class AdaGroupNorm(nn.Module):
    """A group norm whose scale and shift come from the time embedding (Dhariwal and Nichol 2021)."""

    def __init__(self, time_channels: int, channels: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.linear = nn.Linear(time_channels, 2 * channels)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(time)[:, :, None, None].chunk(2, dim=1)
        output: Tensor = F.group_norm(hidden, self.groups, eps=self.eps) * (1 + scale) + shift
        return output


class KResnet(nn.Module):
    """Two convolutions, each after an ``AdaGroupNorm``, added to the input.

    Args:
        channels: Of the input, between the convolutions, and of the output.
        settings: The block's.
    """

    def __init__(self, channels: tuple[int, int, int], settings: KSettings) -> None:
        super().__init__()
        before, between, after = channels
        time, eps = settings.time_channels, settings.eps
        self.norm1 = AdaGroupNorm(time, before, before // _GROUP, eps)
        self.conv1 = nn.Conv2d(before, between, 3, padding=1)
        self.norm2 = AdaGroupNorm(time, between, between // _GROUP, eps)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = nn.Conv2d(between, after, 3, padding=1)
        self.nonlinearity = activation(settings.act_fn)
        self.conv_shortcut = nn.Conv2d(before, after, 1, bias=False) if before != after else None

    def forward(self, residual: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(residual, time)))
        hidden = self.dropout(self.nonlinearity(self.norm2(hidden, time)))
        if self.conv_shortcut is not None:
            residual = self.conv_shortcut(residual)
        output: Tensor = residual + self.conv2(hidden)
        return output


class CrossAttention(Attention):
    """Attention to the text, which is normalised first."""

    def __init__(self, channels: int, *, heads: int, head_dim: int, context_channels: int) -> None:
        super().__init__(
            channels, heads=heads, head_dim=head_dim, context_channels=context_channels, bias=True
        )
        self.norm_cross = nn.LayerNorm(context_channels)

    def forward(
        self, hidden: Tensor, context: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        return super().forward(hidden, self.norm_cross(context), bias)


class KAttention(nn.Module):
    """The pixels of [B, C, H, W] attend to each other, if they are to, and then to the text."""

    def __init__(self, channels: int, head_dim: int, settings: KSettings) -> None:
        super().__init__()
        heads, groups = channels // head_dim, max(1, channels // _GROUP)
        self.self_attention = settings.self_attention
        if settings.self_attention:
            self.norm1 = AdaGroupNorm(settings.time_channels, channels, groups)
            self.attn1 = Attention(channels, heads=heads, head_dim=head_dim, bias=True)
        self.norm2 = AdaGroupNorm(settings.time_channels, channels, groups)
        self.attn2 = CrossAttention(
            channels,
            heads=heads,
            head_dim=head_dim,
            context_channels=settings.context_channels,
        )

    def forward(
        self, hidden: Tensor, time: Tensor, context: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        size = hidden.shape[-2:]
        if self.self_attention:
            hidden = hidden + _pixels(self.attn1(_tokens(self.norm1(hidden, time))), size)
        attended = self.attn2(_tokens(self.norm2(hidden, time)), context, bias)
        return hidden + _pixels(attended, size)


class KDownsample(nn.Module):
    """Halves height and width with the filter (1, 3, 3, 1) / 8; the picture is mirrored at its edge.

    That filter is three means of two neighbours in a row: the mean is all that an engine needs.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = F.pad(hidden, (1, 1, 1, 1), mode="reflect")
        return F.avg_pool2d(_smoothed(hidden), 2, stride=2)


class KUpsample(nn.Module):
    """Doubles height and width with the filter (1, 3, 3, 1) / 4; mirrored at the edge."""

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = F.pad(hidden, (1, 1, 1, 1), mode="reflect")
        size = 2 * hidden.shape[-2], 2 * hidden.shape[-1]
        return _smoothed(F.interpolate(hidden, size=size, mode="nearest"))[:, :, 1:-1, 1:-1]


def _smoothed(hidden: Tensor) -> Tensor:
    """Filtered with (1, 2, 1) / 4 in both directions; two pixels less in each."""
    return F.avg_pool2d(F.avg_pool2d(hidden, 2, stride=1), 2, stride=1)


class KBlock(nn.Module):
    """Residual blocks, each followed by an attention where the block has any."""

    resnets: nn.ModuleList
    attentions: nn.ModuleList | None

    def fill(self, channels: Iterable[tuple[int, int, int]], settings: KSettings) -> None:
        """Create the layers pair by pair (the order of Diffusers), then register them by kind."""
        resnets, attentions = [], []
        for one in channels:
            resnets.append(KResnet(one, settings))
            if settings.head_dim is not None:
                attentions.append(KAttention(one[-1], settings.head_dim, settings))
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions) if attentions else None

    def run(
        self, hidden: Tensor, time: Tensor, context: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            hidden = resnet(hidden, time)
            if self.attentions is not None:
                hidden = self.attentions[i](hidden, time, context, bias)
        return hidden


class KDownBlock(KBlock):
    """Layers at one resolution, then downsampling; the lowest resolution has no skip connection."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        settings: KSettings,
        downsample: bool,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (layers - 1)
        self.fill([(channels, out_channels, out_channels) for channels in inputs], settings)
        self.downsamplers = nn.ModuleList([KDownsample()]) if downsample else None

    def forward(
        self,
        hidden: Tensor,
        time: Tensor,
        context: Tensor | None = None,
        bias: Tensor | None = None,
        feature: Tensor | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Run the block. No T2I-Adapter was made for such a UNet: ``feature`` is ``None``."""
        hidden = self.run(hidden, time, context, bias)
        if self.downsamplers is None:
            return hidden, ()
        return self.downsamplers[0](hidden), (hidden,)


class KUpBlock(KBlock):
    """Layers at one resolution after a skip connection, then upsampling.

    Args:
        in_channels: Of the block above, which the last layer leads to.
        out_channels: Of this block.
        layers: How many there are.
        settings: Of the layers.
        joins: Whether a skip connection comes in; none does at the lowest resolution.
        upsample: Whether another resolution follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        settings: KSettings,
        joins: bool,
        upsample: bool,
    ) -> None:
        super().__init__()
        self.joins = joins
        first = 2 * out_channels if joins else out_channels
        inputs = [first] + [out_channels] * (layers - 1)
        outputs = [out_channels] * (layers - 1) + [in_channels]
        pairs = zip(inputs, outputs, strict=True)
        self.fill([(before, out_channels, after) for before, after in pairs], settings)
        self.upsamplers = nn.ModuleList([KUpsample()]) if upsample else None

    def forward(
        self,
        hidden: Tensor,
        skips: list[Tensor],
        time: Tensor,
        context: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Run the block; it pops its skip connection off the end of ``skips``."""
        if self.joins:
            hidden = torch.cat([hidden, skips.pop()], dim=1)
        hidden = self.run(hidden, time, context, bias)
        return self.upsamplers[0](hidden) if self.upsamplers is not None else hidden


def _tokens(hidden: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H * W, C]."""
    return hidden.permute(0, 2, 3, 1).flatten(1, 2)


def _pixels(tokens: Tensor, size: torch.Size) -> Tensor:
    """[B, H * W, C] to [B, C, H, W]."""
    pixels: Tensor = tokens.unflatten(1, size).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
    return pixels
