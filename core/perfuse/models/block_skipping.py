"""Worse versions of a transformer of blocks that are left out, for skip-layer guidance.

A class of blocks says in ``streams`` how many of its inputs, the first ones, it gives back changed.
"""

import re
from typing import Any

from torch import nn

from perfuse.errors import InputError

__all__ = ["perturb"]


class SkippedBlock(nn.Module):
    """No block: its first inputs as they are."""

    def __init__(self, streams: int) -> None:
        super().__init__()
        self.streams = streams

    def forward(self, *inputs: Any) -> Any:
        return inputs[0] if self.streams == 1 else inputs[: self.streams]


def perturb(module: nn.Module, kind: str, layers: tuple[str, ...], amount: float) -> nn.Module:
    """Leave out the blocks whose names have one of ``layers`` in them, a regular expression each.

    Raises:
        InputError: the kind is not ``"skip"``, or there is no such block.
    """
    if kind != "skip":
        raise InputError(
            f"The denoiser was to be perturbed by {kind!r}; of this architecture blocks can be left "
            "out alone: 'skip'. Use skip-layer guidance, or none by a worse version."
        )
    blocks = {name: one for name, one in module.named_modules() if hasattr(one, "streams")}
    for layer in layers:
        if not any(re.search(layer, name) for name in blocks):
            raise InputError(
                f"Blocks with {layer!r} in their names were to be left out; the denoiser has "
                f"{', '.join(blocks)}. Name a part of one of these."
            )
    for name, block in blocks.items():
        if any(re.search(layer, name) for layer in layers):
            where, _, number = name.rpartition(".")
            holder: Any = module.get_submodule(where)
            holder[int(number)] = SkippedBlock(block.streams)
    return module
