"""Transformers as a beginning, blocks in a row and an end, so that some of the blocks can be left out.

Methods that leave blocks out keep what these added to the picture's tokens at a step before: First-Block
Cache (https://github.com/chengzeyi/ParaAttention), DBCache (https://github.com/vipshop/cache-dit),
TeaCache (Liu et al. 2024, arXiv:2411.19108), MagCache (Ma et al. 2025, arXiv:2506.09045).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from perfuse.arrays import to_numpy
from perfuse.contract.spec import TensorSpec
from perfuse.errors import InputError
from perfuse.models.block_cut import Cut
from perfuse.models.model import Model
from perfuse.models.outputs import ModelOutput
from perfuse.models.registry import asked, describe

__all__ = [
    "BlockModel",
    "Images",
    "OuterBlocks",
    "Prediction",
    "WithAdded",
    "grid_of",
    "outer_part",
    "with_added",
]

#: Sequences of tokens, each [B, N, C]; the picture's are in the first.
Streams = tuple[Tensor, ...]


@dataclass(frozen=True)
class Prediction(ModelOutput):
    """What a transformer predicts, called as Diffusers' is."""

    #: The prediction; of Z-Image a list of [C, 1, h, w].
    sample: Any


class Images(nn.Module):
    """What adapters of image prompts added to a transformer: inputs after its own, and who reads them."""

    #: How many inputs.
    count: int

    @abstractmethod
    def forward(self, timestep: Tensor, *inputs: Tensor) -> tuple[Any, ...]:
        """For each block that looks at the images, how it does."""


class BlockModel(Model):
    """A transformer of blocks in a row. Its inputs are those of the signature, in their order."""

    #: The attributes that hold the blocks, in the order in which they run.
    rows: ClassVar[tuple[str, ...]] = ("transformer_blocks",)

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        #: ``None`` without adapters of image prompts.
        self.images: Images | None = None

    def start(self, *inputs: Tensor | None, **named: Any) -> tuple[Streams, Any]:
        """``begin``, with the images of adapters, which are the last inputs, if there are any."""
        if self.images is None:
            return self.begin(*inputs, **named)
        own, added = inputs[: -self.images.count], inputs[-self.images.count :]
        return self.begin(*own, looks=self.images(own[1], *added), **named)

    @abstractmethod
    def begin(self, *inputs: Tensor | None, **named: Any) -> tuple[Streams, Any]:
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

    def apart(self, streams: Streams, told: Any) -> Streams:
        """The picture's tokens, and the others, if the blocks have any."""
        return streams

    def together(self, tokens: Streams, told: Any) -> Streams:
        """The streams of what ``apart`` gives."""
        return tokens

    def forward(self, *inputs: Tensor | None, **named: Any) -> Any:
        """The prediction, as ``begin`` says of what.

        With the names of Diffusers' model, ``hidden_states`` or ``x`` for one, it is called as that is:
        the same arguments, a ``Prediction`` or with ``return_dict=False`` a tuple, and no gradients.

        Raises:
            InputError: that call has arguments that perfuse's network does not take.
        """
        if not inputs and "sample" not in named:
            return self._as_diffusers(**named)
        streams, told = self.start(*inputs, **named)
        return (self.finish(self.apart(self.through(streams, told), told)[0], told),)

    def _as_diffusers(self, *, return_dict: bool = True, **named: Any) -> Any:
        name = type(self).__name__
        (spec,) = describe(name, "transformer", "transformer", self.config.to_dict())
        given = {key: one for key, one in named.items() if one is not None and one != {}}
        found = asked(spec, {key: _array(one) for key, one in given.items()})
        if found is None:
            raise InputError(
                f"{name} was called with {', '.join(given)}; perfuse's network takes the arguments that "
                "Diffusers' pipeline gives its own, or by position its own "
                f"{', '.join(spec.signature.input_names)}. For any other call use Diffusers' model."
            )
        inputs = {one.name: self._placed(found[0][one.name], one) for one in spec.signature.inputs}
        with torch.no_grad():
            out = self(*inputs.values())[0]
        outputs = list(found[1]({"out_sample": out}))
        # A model that takes its pictures in a list gives one back.
        listed = any(isinstance(one, list | tuple) for one in given.values())
        sample = outputs if listed else outputs[0]
        return Prediction(sample=sample) if return_dict else (sample,)

    def _placed(self, array: Any, spec: TensorSpec) -> Tensor:
        tensor = torch.as_tensor(np.ascontiguousarray(array), device=self.device)
        return (
            tensor.to(self.dtype)
            if spec.dtype == "float"
            else tensor.to(getattr(torch, spec.dtype))
        )

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
    """``… → (out_sample, sign, added, …)``: what the blocks in the middle add, too.

    ``sign`` is what the first blocks add to the picture's tokens; for none what the first one's
    attention takes. ``added`` is of the picture's tokens, and where there are last blocks, of the
    others.
    """

    def __init__(self, model: BlockModel, here: Cut) -> None:
        super().__init__()
        self.model, self.here = model, here

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        model, here = self.model, self.here
        near, sign, told = _first(model, here, inputs)
        far = model.through(near, told, here.first, here.end)
        pairs = zip(model.apart(far, told), model.apart(near, told), strict=True)
        added = [after - before for after, before in pairs]
        kept = [added[0].unflatten(1, grid_of(inputs[0], here.patch))]  # type: ignore[no-untyped-call]
        if here.kept > 1:
            kept.append(added[1][:, here.between :])
        if here.kept > 2:
            kept.append(added[1][:, : here.between])
        return _finished(model, here, far, told), sign, *kept


class OuterBlocks(nn.Module):
    """``…, added, … → (out_sample, sign)``: the first blocks, the last ones and the end."""

    def __init__(self, model: BlockModel, here: Cut) -> None:
        super().__init__()
        self.model, self.here = model, here

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        model, here = self.model, self.here
        near, sign, told = _first(model, here, inputs[: -here.kept])
        picture, *others = inputs[-here.kept :]
        added = [picture.flatten(1, -2)]
        if others:  # those between picture and text come first
            added.append(torch.cat(others[::-1], dim=1))
        before = model.apart(near, told)
        after = (*(a + b for a, b in zip(before, added, strict=False)), *before[len(added) :])
        return _finished(model, here, model.together(after, told), told), sign


def _array(given: Any) -> Any:
    """Arrays for tensors, also in a list."""
    if isinstance(given, list | tuple):
        return [_array(one) for one in given]
    return to_numpy(given.detach()) if isinstance(given, Tensor) else given


def with_added(module: nn.Module, here: Cut) -> nn.Module:
    """A transformer that also gives what its blocks add."""
    return WithAdded(_of_blocks(module), here).eval()


def outer_part(module: nn.Module, here: Cut) -> nn.Module:
    """The first blocks of a transformer, its last ones and its end; the others are left out of it.

    Of no first blocks the first one stays, whose norm is part of what tells how much has changed.
    """
    model = _of_blocks(module)
    number = 0
    for name in model.rows:
        row: Any = model.get_submodule(name)
        for i in range(len(row)):
            if max(here.first, 1) <= number < here.end:
                row[i] = nn.Identity()
            number += 1
    return OuterBlocks(model, here).eval()


def _first(model: BlockModel, here: Cut, inputs: tuple[Tensor, ...]) -> tuple[Streams, Tensor, Any]:
    """The streams after the first blocks, what tells how much those changed, and what is told."""
    streams, told = model.start(*inputs)
    near = model.through(streams, told, 0, here.first) if here.first else streams
    if here.first:
        sign = model.apart(near, told)[0] - model.apart(streams, told)[0]
    else:
        sign = model.apart((model.modulated(streams, told), *streams[1:]), told)[0]
    return near, sign.unflatten(1, grid_of(inputs[0], here.patch)), told  # type: ignore[no-untyped-call]


def _finished(model: BlockModel, here: Cut, streams: Streams, told: Any) -> Tensor:
    """What is predicted, of the streams before the last blocks."""
    return model.finish(model.apart(model.through(streams, told, here.end), told)[0], told)


def grid_of(sample: Tensor, patch: int | None) -> tuple[int, ...]:
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
