"""Transformers as a beginning, blocks in a row and an end, so that some of the blocks can be left out.

Methods that leave blocks out keep what these added to the picture's tokens at a step before: First-Block
Cache (https://github.com/chengzeyi/ParaAttention), TeaCache (Liu et al. 2024, arXiv:2411.19108),
MagCache (Ma et al. 2025, arXiv:2506.09045).
"""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from perfuse.errors import InputError
from perfuse.models.model import Model

__all__ = ["BlockModel", "FirstBlocks", "WithAdded", "first_part", "with_added"]

#: Sequences of tokens, each [B, N, C]; the picture's are in the first.
Streams = tuple[Tensor, ...]


class BlockModel(Model):
    """A transformer of blocks in a row. Its inputs are those of the signature, in their order."""

    #: The attributes that hold the blocks, in the order in which they run.
    rows: ClassVar[tuple[str, ...]] = ("transformer_blocks",)

    @abstractmethod
    def begin(self, *inputs: Tensor | None) -> tuple[Streams, Any]:
        """The streams before the first block, and what all blocks and the end are told."""

    @abstractmethod
    def through(
        self, streams: Streams, told: Any, first: int = 0, last: int | None = None
    ) -> Streams:
        """The streams after the blocks ``first`` to ``last``, which is not one of them."""

    @abstractmethod
    def modulated(self, streams: Streams, told: Any) -> Tensor:
        """The first stream as the first block's attention takes it: normalised and modulated."""

    @abstractmethod
    def finish(self, picture: Tensor, told: Any) -> Tensor:
        """What is predicted, of the picture's tokens after the last block."""

    def picture(self, stream: Tensor, told: Any) -> Tensor:
        """The picture's tokens in the first stream."""
        return stream

    def forward(self, *inputs: Tensor | None, **named: Tensor | None) -> tuple[Tensor]:
        """The prediction, as ``begin`` says of what."""
        streams, told = self.begin(*inputs, **named)
        hidden, *_ = self.through(streams, told)
        return (self.finish(self.picture(hidden, told), told),)

    def part(self, row: str, first: int, last: int | None) -> list[nn.Module]:
        """The blocks of a row that are between two numbers, which count the blocks of all rows."""
        return [block for _, block in self.numbered(row, first, last)]

    def numbered(self, row: str, first: int, last: int | None) -> list[tuple[int, nn.Module]]:
        """The same, each with its number in its row."""
        rows: dict[str, Any] = {name: self.get_submodule(name) for name in self.rows}
        before = sum(len(rows[name]) for name in self.rows[: self.rows.index(row)])
        end = None if last is None else max(last - before, 0)
        return list(enumerate(rows[row]))[max(first - before, 0) : end]


class WithAdded(nn.Module):
    """``… → (out_sample, sign, added)``: what the blocks after the first ones add, too.

    ``sign`` is what the first blocks add; for none what the first one's attention takes.
    """

    def __init__(self, model: BlockModel, blocks: int, patch: int | None) -> None:
        super().__init__()
        self.model, self.blocks, self.patch = model, blocks, patch

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        near, sign, told = _first(model, self.blocks, inputs)
        hidden, *_ = model.through(near, told, self.blocks)
        picture = model.picture(hidden, told)
        added = picture - model.picture(near[0], told)
        grid = _grid(inputs[0], self.patch)
        return model.finish(picture, told), sign.unflatten(1, grid), added.unflatten(1, grid)  # type: ignore[no-untyped-call]


class FirstBlocks(nn.Module):
    """``…, added → (out_sample, sign)``: the first blocks and the end, and nothing between them."""

    def __init__(self, model: BlockModel, blocks: int, patch: int | None) -> None:
        super().__init__()
        self.model, self.blocks, self.patch = model, blocks, patch

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        *given, added = inputs
        near, sign, told = _first(model, self.blocks, tuple(given))
        picture = model.picture(near[0], told) + added.flatten(1, -2)
        grid = _grid(inputs[0], self.patch)
        return model.finish(picture, told), sign.unflatten(1, grid)  # type: ignore[no-untyped-call]


def with_added(module: nn.Module, blocks: int, patch: int | None) -> nn.Module:
    """A transformer that also gives what its blocks add; ``patch`` is ``None`` for packed latents."""
    return WithAdded(_of_blocks(module), blocks, patch).eval()


def first_part(module: nn.Module, blocks: int, patch: int | None) -> nn.Module:
    """The first blocks of a transformer and its end; the other blocks are left out of it.

    Of no blocks the first one stays, whose norm is part of what tells how much has changed.
    """
    model = _of_blocks(module)
    number = 0
    for name in model.rows:
        row: Any = model.get_submodule(name)
        for i in range(len(row)):
            if number >= max(blocks, 1):
                row[i] = nn.Identity()
            number += 1
    return FirstBlocks(model, blocks, patch).eval()


def _first(
    model: BlockModel, blocks: int, inputs: tuple[Tensor, ...]
) -> tuple[Streams, Tensor, Any]:
    """The streams after the first blocks, what tells how much those changed, and what is told."""
    streams, told = model.begin(*inputs)
    if not blocks:
        return streams, model.picture(model.modulated(streams, told), told), told
    near = model.through(streams, told, 0, blocks)
    return near, model.picture(near[0] - streams[0], told), told


def _grid(sample: Tensor, patch: int | None) -> tuple[int, ...]:
    """The axes of the picture's tokens: rows and columns, or one if the latents are packed."""
    if patch is None:
        return (sample.shape[1],)
    return sample.shape[2] // patch, sample.shape[3] // patch


def _of_blocks(module: nn.Module) -> BlockModel:
    """perfuse's transformer.

    Raises:
        InputError: it is another library's that perfuse has no model like.
    """
    if not isinstance(module, BlockModel):
        raise InputError(
            f"The denoiser was to be cut after its first blocks; the one that was set is a "
            f"{type(module).__module__} module that perfuse cannot cut. Use the checkpoint's."
        )
    return module
