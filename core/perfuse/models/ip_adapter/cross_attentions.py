"""The cross-attentions of a UNet, as its config tells them, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CrossAttention", "cross_attentions"]


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """One cross-attention of a denoiser, in the order in which adapters number them."""

    #: ``"down"``, ``"up"`` or ``"mid"``; the block in it; the attention in that; the layer in that.
    part: str
    block: int
    attention: int
    layer: int
    #: How often the latents were halved on the way there.
    level: int

    def blocks_of(self, unet: Any) -> Any:
        """The list of transformer blocks that it is in; ``layer`` is its place there."""
        blocks = {"down": unet.down_blocks, "up": unet.up_blocks, "mid": [unet.mid_block]}
        return blocks[self.part][self.block].attentions[self.attention].transformer_blocks


def cross_attentions(config: Mapping[str, Any]) -> tuple[CrossAttention, ...]:
    """The cross-attentions of a UNet by its config: those of the way down, up, and the middle."""
    downs, ups = tuple(config["down_block_types"]), tuple(config["up_block_types"])
    count = len(downs)

    def each(name: str, default: Any) -> list[Any]:
        value = config.get(name, default)
        return list(value) if isinstance(value, list | tuple) else [value] * count

    depths, resnets = each("transformer_layers_per_block", 1), each("layers_per_block", 2)
    reverse = config.get("reverse_transformer_layers_per_block") or depths[::-1]
    found: list[CrossAttention] = []

    def add(part: str, block: int, attentions: int, depth: Any, level: int) -> None:
        for attention in range(attentions):
            layers = depth[attention] if isinstance(depth, list | tuple) else depth
            found.extend(
                CrossAttention(
                    part=part, block=block, attention=attention, layer=layer, level=level
                )
                for layer in range(layers)
            )

    for i, kind in enumerate(downs):
        if kind.startswith("CrossAttn"):
            add("down", i, resnets[i], depths[i], i)
    for i, kind in enumerate(ups):
        if kind.startswith("CrossAttn"):
            add("up", i, resnets[count - 1 - i] + 1, reverse[i], count - 1 - i)
    if str(config.get("mid_block_type", "UNetMidBlock2DCrossAttn")).endswith("CrossAttn"):
        add("mid", 0, 1, depths[-1], count - 1)
    return tuple(found)
