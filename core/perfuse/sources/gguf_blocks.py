"""Blocks of GGUF files as integers with a scale for each group, and an offset where they have one.

A row of a matrix is cut into blocks of 32 numbers, or of 256 (the K kinds), which have their scales
in front or behind; the layouts are those of ggml's ``ggml-common.h``. What a K block says of its groups,
a scale of the block times a small integer, is exact in float32. The codes are moved to around zero, and
the offsets with them. A function a kind, and a row of ``KINDS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.quantized import Quantized, Scheme

__all__ = ["KINDS", "Kind"]

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Groups:
    """The numbers of N blocks: ``codes * scale + offset``."""

    #: [N, groups, numbers], from 0 on.
    codes: _Bytes
    #: [N, groups]
    scale: _Floats
    #: Likewise, for the codes from ``middle`` on; ``None`` for nothing.
    offset: _Floats | None = None
    #: The code that is to be zero.
    middle: int


def _halves(blocks: _Bytes, at: int) -> _Floats:
    """The number in half precision at a byte of each block, [N, 1]."""
    pair = np.ascontiguousarray(blocks[:, at : at + 2])
    return pair.view(np.float16).astype(np.float32)


def _bits(values: _Bytes, count: int, width: int) -> _Bytes:
    """Codes of a few bits, which lie ``width`` bytes apart: all lowest ones, then the next; [N, …].

    Each stretch of ``width`` bytes has ``8 / count`` times as many codes.
    """
    shifts = np.arange(0, 8, count, dtype=np.uint8)[:, None]
    parts = values.reshape(len(values), -1, 1, width) >> shifts & np.uint8(2**count - 1)
    return parts.reshape(len(values), -1)


def _fifth_bits(values: _Bytes) -> _Bytes:
    """The highest bit of each of 32 codes, in its place; [N, 32]."""
    return np.unpackbits(values, axis=1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: _Bytes) -> _Groups:
    codes = _bits(blocks[:, 2:], 4, 16)
    return _Groups(codes=codes[:, None], scale=_halves(blocks, 0), middle=8)


def _q4_1(blocks: _Bytes) -> _Groups:
    codes = _bits(blocks[:, 4:], 4, 16)
    scale, offset = _halves(blocks, 0), _halves(blocks, 2)
    return _Groups(codes=codes[:, None], scale=scale, offset=offset, middle=8)


def _q5_0(blocks: _Bytes) -> _Groups:
    codes = _bits(blocks[:, 6:], 4, 16) | _fifth_bits(blocks[:, 2:6])
    return _Groups(codes=codes[:, None], scale=_halves(blocks, 0), middle=16)


def _q5_1(blocks: _Bytes) -> _Groups:
    codes = _bits(blocks[:, 8:], 4, 16) | _fifth_bits(blocks[:, 4:8])
    scale, offset = _halves(blocks, 0), _halves(blocks, 2)
    return _Groups(codes=codes[:, None], scale=scale, offset=offset, middle=16)


def _q8_0(blocks: _Bytes) -> _Groups:
    codes = blocks[:, 2:] ^ np.uint8(128)  # from two's complement to 0 … 255
    return _Groups(codes=codes[:, None], scale=_halves(blocks, 0), middle=128)


def _q2_k(blocks: _Bytes) -> _Groups:
    codes = _bits(blocks[:, 16:80], 2, 32).reshape(-1, 16, 16)
    scale = _halves(blocks, 80) * (blocks[:, :16] & 15)
    offset = -_halves(blocks, 82) * (blocks[:, :16] >> 4)
    return _Groups(codes=codes, scale=scale, offset=offset, middle=2)


def _q3_k(blocks: _Bytes) -> _Groups:
    high = _bits(blocks[:, :32], 1, 32) << np.uint8(2)
    codes = (_bits(blocks[:, 32:96], 2, 32) | high).reshape(-1, 16, 16)
    small = _bits(blocks[:, 96:104], 4, 8) | _bits(blocks[:, 104:108], 2, 4) << 4
    scale = _halves(blocks, 108) * (small.astype(np.float32) - 32)
    return _Groups(codes=codes, scale=scale, middle=4)


def _q4_k(blocks: _Bytes) -> _Groups:
    scale, offset = _of_eight(blocks)
    codes = _bits(blocks[:, 16:], 4, 32).reshape(-1, 8, 32)
    return _Groups(codes=codes, scale=scale, offset=offset, middle=8)


def _q5_k(blocks: _Bytes) -> _Groups:
    scale, offset = _of_eight(blocks)
    high = _bits(blocks[:, 16:48], 1, 32) << np.uint8(4)
    codes = (_bits(blocks[:, 48:], 4, 32) | high).reshape(-1, 8, 32)
    return _Groups(codes=codes, scale=scale, offset=offset, middle=16)


def _q6_k(blocks: _Bytes) -> _Groups:
    high = _bits(blocks[:, 128:192], 2, 32) << np.uint8(4)
    codes = (_bits(blocks[:, :128], 4, 64) | high).reshape(-1, 16, 16)
    small = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return _Groups(codes=codes, scale=_halves(blocks, 208) * small, middle=32)


def _of_eight(blocks: _Bytes) -> tuple[_Floats, _Floats]:
    """Scales and offsets of the eight groups of Q4_K and Q5_K: six bits each, in twelve bytes.

    Those of the first four groups are the low six bits of four bytes each; of the others the low four
    bits are in the last four bytes, and the high two above those of the first.
    """
    first, second, last = (blocks[:, at : at + 4] for at in (4, 8, 12))
    small = np.concatenate([first & 63, last & 15 | first >> 6 << 4], 1)
    least = np.concatenate([second & 63, last >> 4 | second >> 6 << 4], 1)
    return _halves(blocks, 0) * small, -_halves(blocks, 2) * least


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How the blocks of a kind are read."""

    #: Of their bytes, [N, bytes of a block].
    read: Callable[[_Bytes], _Groups]
    #: That its codes are kept in.
    bits: int
    #: How many numbers share a scale.
    group: int
    #: Bytes of a block.
    size: int

    def integers(self, data: _Bytes, shape: tuple[int, ...]) -> Quantized:
        """A matrix of this shape, whose rows are whole blocks, as integers.

        Raises:
            ValueError: there are not as many bytes as it takes, or scales that are not finite.
        """
        found = self.read(data.reshape(-1, self.size))
        scale, offset = found.scale.reshape(shape[0], -1), found.offset
        codes = (found.codes - np.uint8(found.middle)).view(np.int8)  # modulo 256
        if offset is not None:
            offset = offset.reshape(shape[0], -1) + found.middle * scale
        if not np.isfinite(scale if offset is None else scale + offset).all():
            raise ValueError("it has blocks whose scales are not finite")
        return Quantized(
            scheme=Scheme(bits=self.bits, symmetric=True, group=self.group, kept=True),
            codes=codes.reshape(shape),
            scale=scale,
            zero=None,
            offset=offset,
        )


#: Those that are integers with a scale for each group. Others, with tables of numbers, are not.
KINDS: Mapping[str, Kind] = FrozenDict(
    {
        "Q4_0": Kind(read=_q4_0, bits=4, group=32, size=18),
        "Q4_1": Kind(read=_q4_1, bits=4, group=32, size=20),
        "Q5_0": Kind(read=_q5_0, bits=8, group=32, size=22),
        "Q5_1": Kind(read=_q5_1, bits=8, group=32, size=24),
        "Q8_0": Kind(read=_q8_0, bits=8, group=32, size=34),
        "Q2_K": Kind(read=_q2_k, bits=4, group=16, size=84),
        "Q3_K": Kind(read=_q3_k, bits=4, group=16, size=110),
        "Q4_K": Kind(read=_q4_k, bits=4, group=32, size=144),
        "Q5_K": Kind(read=_q5_k, bits=8, group=32, size=176),
        "Q6_K": Kind(read=_q6_k, bits=8, group=16, size=210),
    }
)
