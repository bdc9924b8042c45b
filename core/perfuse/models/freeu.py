"""FreeU: a UNet's backbone strengthened, its skip connections without the lowest frequencies.

Si et al. 2023, https://arxiv.org/abs/2309.11497, with the filter as Diffusers has it: the four
frequencies (0, 0), (-1, 0), (0, -1) and (-1, -1) of the discrete Fourier transform are scaled, and the
real part is taken. That is a projection on seven waves, so neither a Fourier transform nor complex
numbers are needed.
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["FreeUJoin", "low_frequencies"]


def low_frequencies(x: Tensor) -> Tensor:
    """The real part of the four lowest frequencies of ``x`` [B, C, H, W], float32."""
    height, width = x.shape[-2:]
    rows = (
        torch.arange(height, device=x.device, dtype=torch.float32)[:, None] * (2 * math.pi) / height
    )
    columns = torch.arange(width, device=x.device, dtype=torch.float32) * (2 * math.pi) / width
    # Re(Σ x e^(-iφ) · e^(iφ')) = Σ x cos φ · cos φ' + Σ x sin φ · sin φ', the same for -φ.
    phases = [0 * rows + 0 * columns, rows + 0 * columns, 0 * rows + columns, rows + columns]
    waves = torch.stack([wave(phase) for phase in phases for wave in (torch.cos, torch.sin)])
    waves = waves.flatten(1)  # [8, HW]; one of them is 0
    amounts = x.float().flatten(2) @ waves.transpose(0, 1) / (height * width)
    return (amounts @ waves).reshape(x.shape)


class FreeUJoin(nn.Module):
    """Puts a skip connection behind the backbone, both rescaled."""

    def __init__(self, *, skip: float, backbone: float) -> None:
        super().__init__()
        self.skip = skip
        self.backbone = backbone

    def forward(self, hidden: Tensor, skip: Tensor) -> Tensor:
        half = hidden.shape[1] // 2
        skip = (skip.float() + (self.skip - 1) * low_frequencies(skip)).to(skip.dtype)
        return torch.cat([hidden[:, :half] * self.backbone, hidden[:, half:], skip], dim=1)
