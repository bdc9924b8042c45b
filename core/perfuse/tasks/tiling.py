"""An autoencoder in pieces: pictures one by one, and large ones in tiles, so that memory stays small.

Tiles overlap by a quarter. Over the overlap one goes over into the next with linear weights, so that
where two decodings differ there is no seam. Sizes and order are those of Diffusers' autoencoders.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from perfuse.arrays import concatenate, is_torch, place
from perfuse.contract.spec import Array
from perfuse.contract.steps import Tools

__all__ = ["in_pieces"]

#: The part of a tile that the next one covers, too.
_OVERLAP = 0.25

Run = Callable[..., Array]


def in_pieces(
    tools: Tools, run: Run, array: Array, *, tile: int, into: int, beside: Sequence[Array] = ()
) -> Array:
    """What a half of the autoencoder makes of an array, in the pieces that the pipeline is set to.

    Args:
        tools: The pipeline; its ``vae_slicing`` and ``vae_tiling`` say what to take apart.
        run: The half: [B, C, H, W], and the same part of each array beside, to [B, C', H', W'].
        array: Pictures or latents [B, C, H, W].
        tile: The side of a tile of the array. An array that is no larger stays whole.
        into: The side of what a tile becomes.
        beside: Arrays of the size of what is made.
    """
    if tools.vae_slicing and len(array) > 1:
        ones = [tuple(one[i : i + 1] for one in (array, *beside)) for i in range(len(array))]
        return concatenate([_one(tools, run, one, tile, into) for one in ones])
    return _one(tools, run, (array, *beside), tile, into)


def _one(tools: Tools, run: Run, arrays: Sequence[Array], tile: int, into: int) -> Array:
    large = max(arrays[0].shape[-2:]) > tile
    return _tiled(run, arrays, tile, into) if tools.vae_tiling and large else run(*arrays)


def _tiled(run: Run, arrays: Sequence[Array], tile: int, into: int) -> Array:
    step, overlap = int(tile * (1 - _OVERLAP)), int(into * _OVERLAP)
    kept = into - overlap
    above: list[Array] = []
    rows = []
    for top in range(0, arrays[0].shape[2], step):
        row: list[Array] = []
        for left in range(0, arrays[0].shape[3], step):
            made = run(*_parts(arrays, top, left, tile, into))
            if above:
                made = _joined(above[len(row)], made, overlap, axis=2)
            if row:
                made = _joined(row[-1], made, overlap, axis=3)
            row.append(made)
        rows.append(concatenate([made[:, :, :kept, :kept] for made in row], axis=3))
        above = row
    return concatenate(rows, axis=2)


def _parts(arrays: Sequence[Array], top: int, left: int, tile: int, into: int) -> Iterator[Array]:
    """One tile of an array, and of those beside it the part that is made of it."""
    scales = (1, *[into // tile] * (len(arrays) - 1))
    for array, scale in zip(arrays, scales, strict=True):
        side = tile * scale
        down, right = top * scale, left * scale
        yield array[:, :, down : down + side, right : right + side]


def _joined(before: Array, after: Array, overlap: int, axis: int) -> Array:
    """A tile whose beginning goes over from the end of the tile before it."""
    size = before.shape[axis]
    overlap = min(size, after.shape[axis], overlap)
    weight: Any = np.arange(overlap, dtype=np.float32) / np.float32(max(overlap, 1))
    weight = weight[:, None] if axis == 2 else weight
    if is_torch(after):
        weight = place(weight, after.device)
    end, beginning = _cut(before, size - overlap, size, axis), _cut(after, 0, overlap, axis)
    blended = end * (1 - weight) + beginning * weight
    return concatenate([blended, _cut(after, overlap, after.shape[axis], axis)], axis=axis)


def _cut(array: Array, start: int, stop: int, axis: int) -> Array:
    return array[:, :, start:stop] if axis == 2 else array[:, :, :, start:stop]
