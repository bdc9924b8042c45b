"""Noise for loops of one's own, as ``diffusers.utils.torch_utils`` has it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from perfuse import _diffusers
from perfuse.errors import InputError

__all__ = ["randn_tensor"]

__getattr__ = partial(_diffusers.borrowed, __name__)


def randn_tensor(
    shape: Sequence[int],
    generator: Generator | list[Generator] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> Tensor:
    """Unit noise of a shape, drawn where the generator is, and then moved.

    Args:
        shape: The shape; the first axis is the batch.
        generator: A generator, or one for each item of the batch; torch's own by default.
        device: Where the noise is to be; the CPU by default.
        dtype: Of the noise; torch's default by default.
        layout: Of the noise; strided by default.

    Raises:
        InputError: there are more or fewer generators than items.
    """
    if not isinstance(generator, list):
        return _drawn(tuple(shape), generator, device, dtype, layout)
    if len(generator) == 1:
        return _drawn(tuple(shape), generator[0], device, dtype, layout)
    if len(generator) != shape[0]:
        raise InputError(
            f"{len(generator)} generators were given for a batch of {shape[0]}. Give one, or one "
            "for each item."
        )
    item = (1, *shape[1:])
    return torch.cat([_drawn(item, one, device, dtype, layout) for one in generator])


def _drawn(
    shape: tuple[int, ...],
    generator: Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    layout: torch.layout | None,
) -> Tensor:
    where: Any = "cpu" if device is None else device
    drawn_on = where if generator is None else generator.device
    kind = torch.strided if layout is None else layout
    noise = torch.randn(shape, generator=generator, device=drawn_on, dtype=dtype, layout=kind)
    return noise.to(where)
