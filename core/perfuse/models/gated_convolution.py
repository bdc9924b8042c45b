"""The feed-forward network of Sana and of its autoencoder: a gated linear unit over pixels."""

from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.adaptive_norms import RMSNorm

__all__ = ["GatedConvolution", "over_channels"]


def over_channels(layer: nn.Module, picture: Tensor) -> Tensor:
    """A layer over the last axis, applied to the channels of [B, C, H, W]."""
    output: Tensor = layer(picture.movedim(1, -1)).movedim(-1, 1)
    return output


class GatedConvolution(nn.Module):
    """Mix-FFN: wider, each channel over 3 by 3 pixels, gated, and back (Xie et al. 2024,
    arXiv:2410.10629, section 2.2): [B, C, H, W] to the same.

    Args:
        channels: C.
        ratio: How much wider it is inside, after the gate.
        normed: Whether its end is normalised, and added to its input.
    """

    def __init__(self, channels: int, ratio: float = 4, *, normed: bool = False) -> None:
        super().__init__()
        inner = int(ratio * channels)
        self.conv_inverted = nn.Conv2d(channels, 2 * inner, 1)
        self.conv_depth = nn.Conv2d(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner)
        self.conv_point = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm = RMSNorm(channels, 1e-5, bias=True) if normed else None

    def forward(self, picture: Tensor) -> Tensor:
        hidden, gate = self.conv_depth(F.silu(self.conv_inverted(picture))).chunk(2, dim=1)
        output: Tensor = self.conv_point(hidden * F.silu(gate))
        return output if self.norm is None else over_channels(self.norm, output) + picture
