"""The eyes of Qwen 2.5 VL: patches of a picture to states that its language model reads."""

from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.adaptive_norms import RMSNorm
from perfuse.models.language_model.vision import Eyes, VisionSettings
from perfuse.models.rotary import rotate_halves

__all__ = ["VisionModel"]

_EPS = 1e-6


class PatchEmbed(nn.Module):
    """A linear layer, which checkpoints hold as a convolution over the frames of a video."""

    def __init__(self, vision: Eyes, *, bias: bool = False) -> None:
        super().__init__()
        sides = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        self.proj = nn.Conv3d(vision.in_channels, vision.hidden_size, sides, sides, bias=bias)

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight.sum(2).flatten(1)  # all frames are the picture
        return F.linear(patches, weight, self.proj.bias)


class VisionAttention(nn.Module):
    """Attention within each window, or over all patches."""

    def __init__(self, vision: Eyes, *, full: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(vision.hidden_size, 3 * vision.hidden_size)
        self.proj = nn.Linear(vision.hidden_size, vision.hidden_size)
        self.heads, self.full, self.window = vision.num_heads, full, vision.window**2

    def forward(self, hidden: Tensor, bias: Tensor | None, table: Tensor) -> Tensor:
        parts = self.qkv(hidden).chunk(3, dim=-1)
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in parts)
        query, key = rotate_halves(query, table), rotate_halves(key, table)
        if self.full or bias is None:
            mask = None if bias is None else bias[None, None, None]
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            joined = attended.transpose(1, 2).flatten(2)
        else:
            joined = self._in_windows(query, key, value, bias)
        output: Tensor = self.proj(joined)
        return output

    def _in_windows(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (self._split(one.flatten(0, 1), 1) for one in (query, key, value))
        mask = self._split(bias, 0)[None, :, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        apart: Tensor = attended.unflatten(0, (-1, self.heads))  # type: ignore[no-untyped-call]
        # The heads first: that copies, and windows are joined of what is in order. Kernels of attention
        # leave their results in several orders, not in all of which windows could be joined in place.
        return apart.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)

    def _split(self, states: Tensor, axis: int) -> Tensor:
        """Its patches by window."""
        split: Tensor = states.unflatten(axis, (-1, self.window))  # type: ignore[no-untyped-call]
        return split


class VisionMLP(nn.Module):
    """A gated linear unit between two linear layers (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, vision: VisionSettings) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(vision.hidden_size, vision.intermediate_size)
        self.up_proj = nn.Linear(vision.hidden_size, vision.intermediate_size)
        self.down_proj = nn.Linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


class VisionBlock(nn.Module):
    """Attention and a feed-forward network, each normalised first and added to its input."""

    def __init__(self, vision: VisionSettings, *, full: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (RMSNorm(vision.hidden_size, _EPS) for _ in range(2))
        self.attn = VisionAttention(vision, full=full)
        self.mlp = VisionMLP(vision)

    def forward(self, hidden: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), bias, table)
        output: Tensor = hidden + self.mlp(self.norm2(hidden))
        return output


class PatchMerger(nn.Module):
    """Neighbouring patches to one state."""

    def __init__(self, vision: VisionSettings) -> None:
        super().__init__()
        self.ln_q = RMSNorm(vision.hidden_size, _EPS)
        self.each = vision.merge**2
        width = self.each * vision.hidden_size
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, vision.out_hidden_size)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        merged = self.ln_q(hidden).unflatten(1, (-1, self.each)).flatten(2)
        output: Tensor = self.mlp(merged)
        return output


class VisionModel(nn.Module):
    """``patches, patch_bias, rotary`` to ``(picture_states,)``."""

    def __init__(self, vision: VisionSettings) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(vision)
        self.blocks = nn.ModuleList(
            VisionBlock(vision, full=i in vision.full) for i in range(vision.depth)
        )
        self.merger = PatchMerger(vision)

    def forward(self, patches: Tensor, patch_bias: Tensor, rotary: Tensor) -> tuple[Tensor]:
        hidden = self.patch_embed(patches)
        for block in self.blocks:
            hidden = block(hidden, patch_bias, rotary)
        return (self.merger(hidden),)
