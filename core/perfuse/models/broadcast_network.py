"""A transformer whose attentions give what they gave at another step, or say what they give."""

from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

from perfuse.contract.architecture import Attended, Attentions
from perfuse.errors import InputError
from perfuse.models.blocks import grid_of
from perfuse.models.model import Model

__all__ = ["Broadcast"]

#: What attentions give, by their number: the picture's tokens [B, N, C], or the text's with them.
Given = dict[int, Tensor]


class Recorded(nn.Module):
    """An attention that also writes down what it gives."""

    def __init__(self, attention: nn.Module, number: int, given: Given) -> None:
        super().__init__()
        self.attention, self.number, self.given = attention, number, given

    def forward(self, *arguments: Any) -> Any:
        output = self.attention(*arguments)
        self.given[self.number] = output[0] if isinstance(output, tuple) else output
        return output


class Recalled(nn.Module):
    """What stands for an attention: what that gave before."""

    def __init__(self, number: int, kept: Given, one: Attended) -> None:
        super().__init__()
        self.number, self.kept, self.one = number, kept, one

    def forward(self, *arguments: Any) -> Any:
        picture = self.kept[self.number]
        if self.one.joint:
            return picture, torch.zeros_like(arguments[1])
        if not self.one.text:
            return picture
        others = arguments[0].shape[1] - picture.shape[1]
        nothing = torch.zeros_like(arguments[0][:, :others])
        both = (nothing, picture) if self.one.text == "before" else (picture, nothing)
        return torch.cat(both, dim=1)


class Broadcast(nn.Module):
    """``…, attention_N, … → (out_sample, attention_M, …)``."""

    def __init__(
        self, model: Model, attentions: Attentions, kinds: tuple[str, ...], kept: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.model, self.patch = model, attentions.patch
        #: Filled while the model runs, and empty before and after.
        self.given: Given = {}
        self.kept: Given = {}
        self.computed: list[tuple[int, Attended]] = []
        self.taken: list[int] = []
        for number, one in enumerate(attentions.each):
            if one.kind not in kinds:
                continue
            parent, _, name = one.module.rpartition(".")
            block = model.get_submodule(parent)
            if one.kind in kept:
                self.taken.append(number)
                block.set_submodule(name, Recalled(number, self.kept, one))
            else:
                self.computed.append((number, one))
                attention = block.get_submodule(name)
                block.set_submodule(name, Recorded(attention, number, self.given))

    @classmethod
    def of(
        cls,
        module: nn.Module,
        attentions: Attentions,
        kinds: tuple[str, ...],
        kept: tuple[str, ...],
    ) -> Self:
        """perfuse's transformer, rewritten.

        Raises:
            InputError: it is another library's that perfuse has no model like.
        """
        if not isinstance(module, Model):
            raise InputError(
                f"The denoiser's attentions were to be kept; the one that was set is a "
                f"{type(module).__module__} module that perfuse cannot rewrite. Use the checkpoint's."
            )
        return cls(module, attentions, kinds, kept).eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        count = len(inputs) - len(self.taken)
        for number, before in zip(self.taken, inputs[count:], strict=True):
            self.kept[number] = before.flatten(1, -2)
        (predicted,) = self.model(*inputs[:count])
        grid = grid_of(inputs[0], self.patch)
        given = []
        for number, one in self.computed:
            found = self.given[number]
            if one.text:
                first = found.shape[1] - prod(grid) if one.text == "before" else 0
                found = found[:, first : first + prod(grid)]
            given.append(found.unflatten(1, grid))  # type: ignore[no-untyped-call]
        self.given.clear()
        self.kept.clear()
        return predicted, *given
