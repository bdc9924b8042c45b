"""The flat module of a UNet whose cross-attentions may take what they gave before."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from perfuse.models.attention import BasicTransformerBlock
from perfuse.models.ip_adapter.cross_attentions import cross_attentions
from perfuse.models.unet_2d_condition.network import UNet2DCondition, own_unet
from perfuse.models.unet_blocks import resized

__all__ = ["Gated"]


class Gate(NamedTuple):
    """The text states and the gate, which take the place of text states alone."""

    #: [B, S, C].
    text: Tensor
    #: [B]: 0 for what is computed, 1 for what was kept.
    closed: Tensor
    #: Whether all gates are known to be closed, so that nothing is to be computed.
    shut: bool
    #: For each cross-attention what it gave before, [B, C, h, w].
    kept: tuple[Tensor, ...]
    #: What each passes on now, by its number; filled as the network runs.
    given: dict[int, Tensor]


class GatedBlock(nn.Module):
    """A transformer block whose cross-attention takes what was kept where the gate is closed."""

    def __init__(self, block: BasicTransformerBlock, index: int) -> None:
        super().__init__()
        self.index = index
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2
        self.norm3, self.ff = block.norm3, block.ff

    def forward(
        self, hidden: Tensor, context: Gate, bias: Tensor | None, size: torch.Size
    ) -> Tensor:
        hidden = self.attn1(self.norm1(hidden)) + hidden
        kept = context.kept[self.index]
        if context.shut:
            passed = kept.flatten(2).transpose(1, 2)
        else:
            computed = self.attn2(self.norm2(hidden), context.text, bias)
            kept = resized(kept, computed.unflatten(1, size).permute(0, 3, 1, 2))
            closed = context.closed[:, None, None] > 0.5
            passed = torch.where(closed, kept.flatten(2).transpose(1, 2), computed)
        picture = passed.reshape(passed.shape[0], *size, passed.shape[-1]).permute(0, 3, 1, 2)
        context.given[self.index] = picture
        hidden = passed + hidden
        output: Tensor = self.ff(self.norm3(hidden)) + hidden
        return output


class Gated(UNet2DCondition):
    """``…, gate, kept_attention_0, … → (out_sample, attention_0, …)``."""

    @classmethod
    def of(cls, module: nn.Module, config: Mapping[str, Any]) -> Self:
        """The flat module of a UNet, rewritten."""
        unet, names = own_unet(module, "to have a gate for its cross-attentions")
        for index, place in enumerate(cross_attentions(config)):
            blocks = place.blocks_of(unet)
            blocks[place.layer] = GatedBlock(blocks[place.layer], index)
        return cls(unet, names).eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        own, (closed, *kept) = inputs[: len(self.names)], inputs[len(self.names) :]
        arguments = self.arguments(own)
        # A graph has no branches: it computes both sides and takes one.
        shut = not torch.compiler.is_compiling() and bool((closed > 0.5).all())
        gate = Gate(arguments.pop("encoder_hidden_states"), closed, shut, tuple(kept), {})
        output: tuple[Tensor] = self.model(
            encoder_hidden_states=gate, return_dict=False, **arguments
        )
        return (*output, *(gate.given[i] for i in range(len(kept))))
