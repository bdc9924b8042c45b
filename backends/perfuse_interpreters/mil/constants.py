"""MIL's compressed constants: functions that decompress weights.

They run once, when a program is read. Source: coremltools' documentation of MIL, ``constexpr_ops.py``
of iOS 16 and ``compression.py`` of iOS 18.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from perfuse.errors import ArtifactError
from perfuse_interpreters.mil.weights import unpacked

__all__ = ["CONSTANTS"]


def _affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor
) -> Tensor:
    """iOS 16: ``scale * (quantized_data - zero_point)``, each for all or one an index of an axis."""
    along = [1] * quantized_data.ndim
    along[int(axis)] = -1
    scales, zeros = (
        one.float().reshape(along) if one.ndim else one.float() for one in (scale, zero_point)
    )
    return (scales * (quantized_data.float() - zeros)).to(scale.dtype)


def _blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """iOS 18: ``scale * (data - offset)``, a scale for each block of a size that follows."""
    shifted = data.float()
    if offset is not None:
        shifted = shifted - _spread(offset.float(), data.shape)
    return (_spread(scale.float(), data.shape) * shifted).to(scale.dtype)


def _spread(blocks: Tensor, shape: torch.Size) -> Tensor:
    """Each element of a tensor repeated over its block."""
    for axis, size in enumerate(shape):
        if size % blocks.shape[axis]:
            raise ArtifactError(f"{blocks.shape[axis]} blocks do not divide a size of {size}")
        blocks = blocks.repeat_interleave(size // blocks.shape[axis], axis)
    return blocks


def _lut_to_dense(
    indices: Tensor,
    lut: Tensor,
    shape: Tensor | None = None,
    vector_axis: Tensor | None = None,
) -> Tensor:
    """A palette's values by their indices.

    Args:
        indices: iOS 16: bytes of packed indices, with ``shape``. iOS 18: an index an element.
        lut: iOS 16: a palette [P]. iOS 18: a palette for each block of the indices, each entry a
            vector [*blocks, P, V].
        shape: Of the result; iOS 16 alone.
        vector_axis: Along which a vector is laid out; the first where it has one element.
    """
    if shape is not None:
        sizes = shape.tolist()
        bits = (lut.numel() - 1).bit_length()
        if lut.numel() != 2**bits or indices.numel() != -(-bits * torch.Size(sizes).numel() // 8):
            raise ArtifactError(
                f"{indices.numel()} bytes of indices into {lut.numel()} values do not make {sizes}"
            )
        found = unpacked(indices.numpy(), bits, torch.Size(sizes).numel())
        return lut[torch.from_numpy(found).long()].reshape(sizes)
    rank = indices.ndim
    if lut.ndim != rank + 2 or any(n % b for n, b in zip(indices.shape, lut.shape, strict=False)):
        raise ArtifactError(f"a table of {list(lut.shape)} does not fit {list(indices.shape)}")
    blocks = []
    for axis, (size, count) in enumerate(zip(indices.shape, lut.shape, strict=False)):
        along = [-1 if other == axis else 1 for other in range(rank)]
        blocks.append((torch.arange(size) // (size // count)).reshape(along))
    vectors = lut[(*blocks, indices.long())]
    axis = int(vector_axis) % rank if vector_axis is not None else 0
    return vectors.movedim(-1, axis + 1).flatten(axis, axis + 1)


#: Function by MIL's name.
CONSTANTS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "constexpr_affine_dequantize": _affine_dequantize,
        "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
        "constexpr_lut_to_dense": _lut_to_dense,
    }
)
