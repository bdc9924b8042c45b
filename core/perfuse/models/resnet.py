"""Residual convolution blocks and the resampling between resolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.embeddings import activation


class Downsample2D(nn.Module):
    """Halves height and width, by a strided convolution or by average pooling.

    With ``padding=0`` it pads on the right and at the bottom only, as the encoder of Stable
    Diffusion was trained.
    """

    def __init__(self, channels: int, *, use_conv: bool, padding: int = 1) -> None:
        super().__init__()
        self.asymmetric = use_conv and padding == 0
        self.conv: nn.Module = (
            nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
            if use_conv
            else nn.AvgPool2d(2, stride=2)
        )

    def forward(self, hidden: Tensor, time: Tensor | None = None) -> Tensor:
        if self.asymmetric:
            hidden = F.pad(hidden, (0, 1, 0, 1))
        output: Tensor = self.conv(hidden)
        return output


class Upsample2D(nn.Module):
    """Enlarges by repeating pixels, then convolves.

    The target size is that of the next skip connection: twice the height and width, unless a size
    on the way down was odd. Always using it keeps conditions on the size out of captured graphs.
    """

    def __init__(self, channels: int, *, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, hidden: Tensor, size: torch.Size | tuple[int, int] | None = None) -> Tensor:
        if size is None:
            size = (2 * hidden.shape[-2], 2 * hidden.shape[-1])
        output: Tensor = self.conv(F.interpolate(hidden, size=size, mode="nearest"))
        return output


class ResnetBlock2D(nn.Module):
    """Two normalised convolutions with a residual connection; the time embedding is added between.

    Parameters are created in the order of Diffusers: norm1, conv1, time_emb_proj, norm2, conv2,
    conv_shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_channels: int | None,
        groups: int,
        eps: float,
        act_fn: str,
        dropout: float = 0.0,
        scale_shift: bool = False,
        skip_time_act: bool = False,
        output_scale_factor: float = 1.0,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.skip_time_act = skip_time_act
        self.output_scale_factor = output_scale_factor
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = (
            nn.Linear(time_channels, 2 * out_channels if scale_shift else out_channels)
            if time_channels is not None
            else None
        )
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = activation(act_fn)
        self.resample = resample
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, residual: Tensor, time: Tensor | None = None) -> Tensor:
        hidden = self.nonlinearity(self.norm1(residual))
        if self.resample is not None:
            residual = self.resample(residual)
            hidden = self.resample(hidden)
        hidden = self.conv1(hidden)
        shift: Tensor | None = None
        if self.time_emb_proj is not None and time is not None:
            shift = time if self.skip_time_act else self.nonlinearity(time)
            shift = self.time_emb_proj(shift)[:, :, None, None]
        if self.scale_shift and shift is not None:
            scale, shift = shift.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        elif shift is not None:
            hidden = self.norm2(hidden + shift)
        else:
            hidden = self.norm2(hidden)
        hidden = self.conv2(self.dropout(self.nonlinearity(hidden)))
        if self.conv_shortcut is not None:
            residual = self.conv_shortcut(residual)
        output: Tensor = residual + hidden
        # Skip a division by one: it would be a node in every captured graph.
        return output if self.output_scale_factor == 1 else output / self.output_scale_factor
