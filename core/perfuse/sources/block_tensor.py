"""A torch tensor that is blocks of integers, for weights that a file has so.

Whatever computes with one is given its numbers, made for that once; moving and casting keep the blocks.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from perfuse.contract.quantized import Blocks, Quantized, Scheme, packed
from perfuse.errors import InputError

__all__ = ["BlockTensor"]

_aten = torch.ops.aten
#: What gives a tensor as it is.
_SAME = (_aten.detach.default, _aten.alias.default, _aten.clone.default)


class BlockTensor(Tensor):
    """A matrix [O, I] that is integers, with a scale and at most an offset for each group of a row."""

    _codes: Tensor  # four bits two a byte, [O * I / 2], or int8 [O * I]
    _scale: Tensor  # [O, groups], float32 in whatever precision is computed
    _offset: Tensor | None
    _scheme: Scheme

    @staticmethod
    def __new__(
        cls,
        codes: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        scheme: Scheme,
        dtype: torch.dtype,
    ) -> Self:
        """A tensor of these parts that takes part in computations in ``dtype``."""
        assert scheme.group is not None  # blocks have groups
        shape = (scale.shape[0], scale.shape[1] * scheme.group)
        made: Self = Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=codes.device, requires_grad=False
        )
        made._codes, made._scale, made._offset, made._scheme = codes, scale, offset, scheme
        return made

    @classmethod
    def of(cls, blocks: Blocks) -> "BlockTensor":
        """The blocks of a file, in float32."""
        found = blocks.quantized
        codes = packed(found.codes) if found.scheme.bits == 4 else found.codes.reshape(-1)
        offset = None if found.offset is None else torch.from_numpy(found.offset)
        scale = torch.from_numpy(found.scale)
        return cls(torch.from_numpy(codes), scale, offset, found.scheme, torch.float32)

    @property
    def blocks(self) -> Blocks:
        """The integers in numpy, one a byte, when they are asked for."""
        return Blocks(
            tuple(self.shape),
            integers=self._quantized,
            numbers=lambda: self._quantized().dequantized.array,
        )

    def _quantized(self) -> Quantized:
        return Quantized(
            scheme=self._scheme,
            codes=self._integers().reshape(self.shape).cpu().numpy(),
            scale=self._scale.cpu().numpy(),
            zero=None,
            offset=None if self._offset is None else self._offset.cpu().numpy(),
        )

    def dequantized(self) -> Tensor:
        """Its numbers, a tensor like any other: computed in float32, then rounded to its dtype."""
        groups = self._integers().reshape(*self._scale.shape, -1)
        values = groups.to(torch.float32).mul_(self._scale[..., None])
        if self._offset is not None:
            values += self._offset[..., None]
        return values.reshape(self.shape).to(self.dtype)

    def _integers(self) -> Tensor:
        if self._scheme.bits != 4:
            return self._codes
        halves = torch.stack((self._codes & 15, self._codes >> 4), -1)
        return (halves ^ 8).view(torch.int8) - 8

    def _moved(self, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> Tensor:
        dtype = self.dtype if dtype is None else dtype
        if not dtype.is_floating_point:
            return self.dequantized().to(device=device, dtype=dtype)
        codes, scale, offset = self._codes, self._scale, self._offset
        if device is not None:
            codes, scale = codes.to(device), scale.to(device)
            offset = None if offset is None else offset.to(device)
        return type(self)(codes, scale, offset, self._scheme, dtype)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        first = args[0] if args else None
        if isinstance(first, BlockTensor):
            if func in _SAME:
                return first._moved()
            if func is _aten._to_copy.default:
                return first._moved(**(kwargs or {}))
            if func is _aten.view.default and tuple(args[1]) == tuple(first.shape):
                return first._moved()
            if func._schema.is_mutable:
                raise InputError(
                    "A weight was to be changed in its place; it is in the blocks of a GGUF file. "
                    "Open the file with a precision, which makes numbers of them: "
                    "precision='float32'."
                )
        given, named = tree_map_only(BlockTensor, BlockTensor.dequantized, (args, kwargs or {}))
        return func(*given, **named)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """What its parts take."""
        parts = (self._codes, self._scale, self._offset)
        return sum(one.nbytes for one in parts if one is not None)

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        """For ``torch.compile``: the names of its parts, and the rest."""
        parts = ["_codes", "_scale", *(["_offset"] if self._offset is not None else [])]
        return parts, (self._scheme, self.dtype)

    @classmethod
    def __tensor_unflatten__(cls, parts: Any, rest: Any, size: Any, stride: Any) -> Self:
        return cls(parts["_codes"], parts["_scale"], parts.get("_offset"), *rest)

    def numpy(self, *, force: bool = False) -> Any:
        """Its numbers as an array."""
        return self.dequantized().numpy(force=force)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        bits, group = self._scheme.bits, self._scheme.group
        return f"BlockTensor({list(self.shape)}, {self.dtype}, {bits} bits, groups of {group})"
