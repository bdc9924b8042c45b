"""A transformer whose attentions give what they gave at another step, or say what they give."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from perfuse.contract.architecture import Attentions
from perfuse.errors import InputError
from perfuse.models.model import Model

__all__ = ["Broadcast"]

#: What attentions give of the picture's tokens [B, N, C], by their number.
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

    def __init__(self, number: int, kept: Given, *, joint: bool) -> None:
        super().__init__()
        self.number, self.kept, self.joint = number, kept, joint

    def forward(self, *arguments: Any) -> Any:
        picture = self.kept[self.number]
        return (picture, torch.zeros_like(arguments[1])) if self.joint else picture


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
        self.taken: list[int] = []
        for number, one in enumerate(attentions.each):
            if one.kind not in kinds:
                continue
            parent, _, name = one.module.rpartition(".")
            block = model.get_submodule(parent)
            if one.kind in kept:
                self.taken.append(number)
                block.set_submodule(name, Recalled(number, self.kept, joint=one.joint))
            else:
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
            self.kept[number] = before.flatten(1, 2)
        (predicted,) = self.model(*inputs[:count])
        size = [side // self.patch for side in inputs[0].shape[2:]]
        given = [self.given[number].unflatten(1, size) for number in sorted(self.given)]  # type: ignore[no-untyped-call]
        self.given.clear()
        self.kept.clear()
        return predicted, *given
