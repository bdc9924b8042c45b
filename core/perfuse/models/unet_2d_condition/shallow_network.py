"""The flat modules of a UNet that is cut before its last layers."""

from typing import Self

from torch import Tensor, nn

from perfuse.models.unet_2d_condition.network import (
    UNet2DCondition,
    UNet2DConditionModel,
    own_unet,
)
from perfuse.models.unet_blocks import DownBlock, UpBlock, resized

__all__ = ["Shallow", "WithDeepState"]


class WithDeepState(UNet2DCondition):
    """``… → (out_sample, state)``: the state [B, C, h, w] before the last layers, too."""

    model: UNet2DConditionModel

    def __init__(self, model: nn.Module, names: tuple[str, ...], layers: int) -> None:
        super().__init__(model, names)
        self.layers = layers

    @classmethod
    def of(cls, module: nn.Module, layers: int) -> Self:
        """The flat module of a UNet, rewritten."""
        return cls(*own_unet(module, "to be cut before its last layers"), layers).eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        unet, block = self.model, _last(self.model)
        first = len(block.resnets) - self.layers
        hidden, skips, conditions = unet.trunk(**self.arguments(inputs))
        deep = block.layers(range(first), hidden, skips, *conditions)
        rest = range(first, len(block.resnets))
        return unet.finish(block.layers(rest, deep, skips, *conditions)), deep


class Shallow(UNet2DCondition):
    """``…, state → (out_sample,)``: the last layers, with what feeds their skip connections."""

    model: UNet2DConditionModel

    def __init__(self, model: nn.Module, names: tuple[str, ...], layers: int) -> None:
        super().__init__(model, names)
        self.layers = layers

    @classmethod
    def of(cls, module: nn.Module, names: tuple[str, ...], layers: int) -> Self:
        """The flat module of a UNet, rewritten; the layers that do not run are left out of it."""
        unet, _ = own_unet(module, "to be cut before its last layers")
        down, (*up, _) = unet.down_blocks, unet.up_blocks
        down[0] = _cut(down[0], layers - 1)
        for i in range(1, len(down)):
            down[i] = nn.Identity()
        for i in range(len(up)):
            unet.up_blocks[i] = nn.Identity()
        unet.mid_block = None
        unet.up_blocks[-1] = _without(_last(unet), layers)
        return cls(unet, names, layers).eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        unet, block, given = self.model, _last(self.model), self.arguments(inputs)
        text, added = given.get("encoder_hidden_states"), given["added_cond_kwargs"]
        sample, time = unet.begin(
            given["sample"],
            given["timestep"],
            text,
            given.get("class_labels"),
            given.get("timestep_cond"),
            added,
        )
        context = unet.context(text, added) if text is not None else None
        begin = unet.down_blocks[0]
        assert isinstance(begin, DownBlock)
        skips = [sample, *begin.layers(self.layers - 1, sample, time, context, None)]
        if given["down_block_additional_residuals"] is not None:
            pairs = zip(skips, given["down_block_additional_residuals"], strict=True)
            skips = [skip + resized(residual, skip) for skip, residual in pairs]
        rest = range(len(block.resnets) - self.layers, len(block.resnets))
        return (unet.finish(block.layers(rest, inputs[-1], skips, time, context, None)),)


def _last(unet: UNet2DConditionModel) -> UpBlock:
    block = unet.up_blocks[-1]
    assert isinstance(block, UpBlock)
    return block


def _cut(block: nn.Module, layers: int) -> DownBlock:
    """A block of the first half with its first layers alone."""
    assert isinstance(block, DownBlock)
    block.resnets = block.resnets[:layers]
    block.attentions = block.attentions[:layers] if block.attentions is not None else None
    block.downsamplers = None
    return block


def _without(block: UpBlock, layers: int) -> UpBlock:
    """The last block without the layers before its last ones; their names stay as they are."""
    for i in range(len(block.resnets) - layers):
        block.resnets[i] = nn.Identity()
        if block.attentions is not None:
            block.attentions[i] = nn.Identity()
    return block
