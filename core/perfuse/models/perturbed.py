"""Worse versions of a network of transformer blocks, for guidance away from what they predict."""

import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from perfuse.errors import InputError
from perfuse.models.attention import Attention, BasicTransformerBlock

__all__ = ["perturb"]


class IdentityAttention(nn.Module):
    """Self-attention whose map is the identity: each pixel attends to itself alone (PAG, section 4.1)."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.to_v = attention.to_v
        self.to_out = attention.to_out

    def forward(
        self, hidden: Tensor, context: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        output: Tensor = self.to_out[1](self.to_out[0](self.to_v(hidden)))
        return output


class BlurredBlock(nn.Module):
    """A transformer block whose self-attention has blurred queries (SEG, section 4.2).

    Queries are linear in what they are made of, and a blur's weights add up to 1: that is blurred.
    """

    def __init__(self, block: BasicTransformerBlock, sigma: float) -> None:
        super().__init__()
        self.block = block
        self.sigma = sigma

    def forward(
        self, hidden: Tensor, context: Tensor, bias: Tensor | None, size: torch.Size
    ) -> Tensor:
        block, normal = self.block, self.block.norm1(hidden)
        hidden = block.attn1(_blurred(normal, size, self.sigma), normal) + hidden
        hidden = block.attn2(block.norm2(hidden), context, bias) + hidden
        output: Tensor = block.ff(block.norm3(hidden)) + hidden
        return output


class SkippedBlock(nn.Module):
    """No transformer block: its input as it is."""

    def forward(
        self, hidden: Tensor, context: Tensor, bias: Tensor | None, size: torch.Size
    ) -> Tensor:
        return hidden


def perturb(module: nn.Module, kind: str, layers: tuple[str, ...], amount: float) -> nn.Module:
    """Change the transformer blocks of a flat module whose names have one of ``layers`` in them.

    Args:
        module: What ``build`` of an architecture returns; its ``model`` is changed.
        kind: ``"identity"`` or ``"blur"``, for layers of self-attention, or ``"skip"``, for blocks.
        layers: Regular expressions that are searched for in the layers' names.
        amount: For ``"blur"``, the standard deviation in pixels; less than 0 for an endless blur.

    Raises:
        InputError: the kind is unknown, or there is no such layer.
    """
    if kind not in _KINDS:
        raise InputError(
            f"The denoiser was to be perturbed by {kind!r}; there are {', '.join(_KINDS)}."
        )
    model: nn.Module = getattr(module, "model", module)
    blocks = {
        name: block
        for name, block in model.named_modules()
        if isinstance(block, BasicTransformerBlock)
    }
    if kind != "skip":
        blocks = {f"{n}.attn1": b for n, b in blocks.items() if not b.only_cross_attention}
    for layer in layers:
        if not any(re.search(layer, name) for name in blocks):
            raise InputError(
                f"The denoiser was to be perturbed in layers with {layer!r} in their names; it has "
                f"{', '.join(blocks) or 'no transformer blocks'}. Name a part of one of these."
            )
    for name, block in blocks.items():
        if any(re.search(layer, name) for layer in layers):
            where, _, number = name.removesuffix(".attn1").rpartition(".")
            holder = model.get_submodule(where)
            assert isinstance(holder, nn.ModuleList)
            holder[int(number)] = _KINDS[kind](block, amount)
    return module


def _identity(block: BasicTransformerBlock, amount: float) -> nn.Module:
    block.attn1 = IdentityAttention(block.attn1)  # type: ignore[assignment]
    return block


_KINDS: Mapping[str, Callable[[BasicTransformerBlock, float], nn.Module]] = {
    "identity": _identity,
    "blur": BlurredBlock,
    "skip": lambda block, amount: SkippedBlock(),
}


def _blurred(tokens: Tensor, size: torch.Size, sigma: float) -> Tensor:
    """[B, H * W, C] blurred along height and width."""
    if sigma < 0:
        return tokens.mean(dim=1, keepdim=True).expand_as(tokens)
    picture = tokens.unflatten(1, size).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
    height, width = (_blurring(n, sigma, tokens) for n in size)
    blurred: Tensor = height @ picture @ width.T
    return blurred.flatten(2).transpose(1, 2)


def _blurring(size: int, sigma: float, like: Tensor) -> Tensor:
    """A Gaussian blur of ``size`` pixels as [size, size]; the border reflects.

    The kernel reaches three standard deviations, and at most half of the pixels, as in the paper's
    code. Written in tensors, because an exported graph takes any size.
    """
    reach = math.ceil(6 * sigma) // 2
    offsets = torch.arange(-reach, reach + 1, device=like.device, dtype=torch.float32)
    places = torch.arange(size, device=like.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2) * (offsets.abs() <= size // 2)
    weights = weights / weights.sum()
    last = size - 1
    seen = (last - (last - (places[:, None] + offsets).abs()).abs())[:, None]
    matrix = ((seen == places[:, None]) * weights).sum(dim=-1)
    return matrix.to(like.dtype)
