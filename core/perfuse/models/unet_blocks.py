"""The down, middle and up blocks that both UNets are made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D


@dataclass(frozen=True, kw_only=True)
class Resnets:
    """The settings that all residual blocks of a model share; ``make`` creates one."""

    time_channels: int | None
    groups: int
    eps: float
    act_fn: str
    dropout: float = 0.0
    scale_shift: bool = False

    def make(
        self,
        in_channels: int,
        out_channels: int,
        *,
        resample: nn.Module | None = None,
        skip_time_act: bool = False,
        output_scale_factor: float = 1.0,
    ) -> ResnetBlock2D:
        return ResnetBlock2D(
            in_channels,
            out_channels,
            time_channels=self.time_channels,
            groups=self.groups,
            eps=self.eps,
            act_fn=self.act_fn,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            resample=resample,
            skip_time_act=skip_time_act,
            output_scale_factor=output_scale_factor,
        )


class Block(nn.Module):
    """Residual blocks, each followed by an attention where the block has any."""

    attentions: nn.ModuleList | None
    resnets: nn.ModuleList

    def fill(
        self,
        channels: Iterable[tuple[int, int]],
        resnet: Callable[[int, int], nn.Module],
        attention: Callable[[int], nn.Module] | None,
    ) -> None:
        """Create the layers pair by pair (the order of Diffusers), then register them by kind."""
        resnets, attentions = [], []
        for i, (in_channels, out_channels) in enumerate(channels):
            resnets.append(resnet(in_channels, out_channels))
            if attention is not None:
                attentions.append(attention(i))
        self.attentions = nn.ModuleList(attentions) if attention is not None else None
        self.resnets = nn.ModuleList(resnets)

    def attend(self, i: int, hidden: Tensor, context: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.attentions is None:
            return hidden
        output: Tensor = self.attentions[i](hidden, context, bias)
        return output


class DownBlock(Block):
    """Layers at one resolution, then downsampling; also returns the states for skip connections."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        resnet: Callable[[int, int], nn.Module],
        attention: Callable[[int], nn.Module] | None = None,
        downsample: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (layers - 1)
        self.fill([(channels, out_channels) for channels in inputs], resnet, attention)
        self.downsamplers = nn.ModuleList([downsample()]) if downsample is not None else None

    def forward(
        self,
        hidden: Tensor,
        time: Tensor | None = None,
        context: Tensor | None = None,
        bias: Tensor | None = None,
        feature: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the block. A T2I-Adapter's ``feature`` comes before downsampling if it attends."""
        states = self.layers(len(self.resnets), hidden, time, context, bias)
        hidden = states[-1]
        if feature is not None and self.attentions is not None:
            hidden = states[-1] = hidden + resized(feature, hidden)
        if self.downsamplers is not None:
            hidden = self.downsamplers[0](hidden, time)
            states.append(hidden)
        if feature is not None and self.attentions is None:
            hidden = states[-1] = hidden + resized(feature, hidden)
        return hidden, states

    def layers(
        self,
        count: int,
        hidden: Tensor,
        time: Tensor | None,
        context: Tensor | None,
        bias: Tensor | None,
    ) -> list[Tensor]:
        """What each of the first ``count`` layers returns."""
        states = []
        for i, resnet in enumerate(self.resnets[:count]):
            hidden = self.attend(i, resnet(hidden, time), context, bias)
            states.append(hidden)
        return states


def resized(residual: Tensor, like: Tensor) -> Tensor:
    """What is to be added to ``like``, at its height and width: in a graph for any size, by name.

    The two have one size in every call; but torch.export cannot know that a size of its own is
    half of another, rounded up, and would fix both.
    """
    size = like.shape[-2:]
    if all(isinstance(one, int) for one in (*residual.shape[-2:], *size)):
        return residual
    return F.interpolate(residual, size=size, mode="nearest")


class MidBlock(Block):
    """A residual block, then pairs of attention and residual block, at the lowest resolution."""

    def __init__(
        self,
        channels: int,
        *,
        resnet: Callable[[int, int], nn.Module],
        attention: Callable[[int], nn.Module] | None = None,
        layers: int = 1,
    ) -> None:
        super().__init__()
        resnets, attentions = [resnet(channels, channels)], []
        for i in range(layers):
            if attention is not None:
                attentions.append(attention(i))
            resnets.append(resnet(channels, channels))
        self.attentions = nn.ModuleList(attentions) if attention is not None else None
        self.resnets = nn.ModuleList(resnets)

    def forward(
        self,
        hidden: Tensor,
        time: Tensor | None = None,
        context: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        hidden = self.resnets[0](hidden, time)
        for i, resnet in enumerate(self.resnets[1:]):
            hidden = resnet(self.attend(i, hidden, context, bias), time)
        return hidden


class Join(nn.Module):
    """Puts a skip connection's channels behind those of the backbone."""

    def forward(self, hidden: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([hidden, skip], dim=1)


class UpBlock(Block):
    """Layers at one resolution, each concatenated with a skip connection, then upsampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        previous_channels: int,
        *,
        layers: int,
        resnet: Callable[[int, int], nn.Module],
        attention: Callable[[int], nn.Module] | None = None,
        upsample: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        inputs = [previous_channels] + [out_channels] * (layers - 1)
        skips = [out_channels] * (layers - 1) + [in_channels]
        channels = [(a + b, out_channels) for a, b in zip(inputs, skips, strict=True)]
        self.fill(channels, resnet, attention)
        self.join: nn.Module = Join()
        self.upsamplers = nn.ModuleList([upsample()]) if upsample is not None else None

    def forward(
        self,
        hidden: Tensor,
        skips: list[Tensor],
        time: Tensor | None = None,
        context: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Run the block; it pops its skip connections off the end of ``skips``."""
        hidden = self.layers(range(len(self.resnets)), hidden, skips, time, context, bias)
        if self.upsamplers is not None:
            upsampler = self.upsamplers[0]
            if isinstance(upsampler, Upsample2D):
                hidden = upsampler(hidden, skips[-1].shape[-2:] if skips else None)
            else:
                hidden = upsampler(hidden, time)
        return hidden

    def layers(
        self,
        which: range,
        hidden: Tensor,
        skips: list[Tensor],
        time: Tensor | None,
        context: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """Run some of the layers; each pops its skip connection off the end of ``skips``."""
        for i in which:
            hidden = self.resnets[i](self.join(hidden, skips.pop()), time)
            hidden = self.attend(i, hidden, context, bias)
        return hidden


def conv_down(channels: int, padding: int) -> Callable[[], nn.Module]:
    """Makes a downsampling layer with a convolution."""
    return lambda: Downsample2D(channels, use_conv=True, padding=padding)


def conv_up(channels: int) -> Callable[[], nn.Module]:
    """Makes an upsampling layer: nearest neighbour, then a convolution."""
    return lambda: Upsample2D(channels, use_conv=True)


def resnet_down(resnet: Callable[..., ResnetBlock2D], channels: int) -> Callable[[], nn.Module]:
    """Makes a residual block that downsamples."""
    return lambda: resnet(channels, channels, resample=Downsample2D(channels, use_conv=False))


def resnet_up(resnet: Callable[..., ResnetBlock2D], channels: int) -> Callable[[], nn.Module]:
    """Makes a residual block that upsamples."""
    return lambda: resnet(channels, channels, resample=Upsample2D(channels, use_conv=False))


__all__ = [
    "Block",
    "DownBlock",
    "Join",
    "MidBlock",
    "Resnets",
    "UpBlock",
    "conv_down",
    "conv_up",
    "resized",
    "resnet_down",
    "resnet_up",
]
