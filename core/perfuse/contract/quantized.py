"""Weights in integers: the one place that knows what a scheme makes of a tensor.

A tensor is cut into groups, each with one scale and, unless the scheme is symmetric, one zero point:
``weight = (code - zero) * scale``; those of files that have integers already (``Blocks``) may add an
offset for each group. Exporters and backends only spell that in an engine's words.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from perfuse.contract.changes import plain_name
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.weights import Change, StoredTensor
from perfuse.errors import InputError, WeightsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "KEPT",
    "SCHEMES",
    "Blocks",
    "Calibration",
    "Quantized",
    "Scheme",
    "marks_of",
    "packed",
    "quantized",
]

#: Fewer elements stay as they are: their bits are few, and they are often sensitive.
_SMALLEST = 1024


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the weights of a component become integers."""

    bits: int
    #: Whether zero is the middle of the codes; otherwise each group has a zero point.
    symmetric: bool = False
    #: How many neighbours of a matrix's row share a scale; ``None`` for all of one output.
    group: int | None = None
    #: Whether what the weights are multiplied with is in integers, too: eight bits of a range that
    #: was measured (``Calibration``).
    activations: bool = False
    #: Whether nothing is rounded: the integers are those that the file has, where it has them. Then
    #: ``bits`` is the most that they take.
    kept: bool = False

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of a module becomes integers: matrices and the weights of convolutions."""
        large = math.prod(shape) >= _SMALLEST
        return name.endswith(".weight") and 2 <= len(shape) <= 4 and large

    def on(self, shape: tuple[int, ...]) -> "Scheme":
        """The scheme for a tensor: eight bits an output for what cannot be cut into groups."""
        if self.group is None or (len(shape) == 2 and shape[1] % self.group == 0):
            return self
        return replace(self, bits=8, group=None)

    def of(self, tensor: StoredTensor, name: str) -> "Quantized":
        """A tensor in integers, each rounded to the nearest.

        Args:
            tensor: Its first axis is that of the outputs.
            name: The tensor's name, for the error.

        Raises:
            WeightsError: it has numbers that are not finite.
        """
        import numpy as np

        shape = tensor.array.shape
        scheme = self.on(shape)
        values = tensor.cast("float32").array
        rows = values.reshape(shape[0], -1, scheme.group or values.size // shape[0])
        low = np.minimum(rows.min(2, keepdims=True), 0)
        high = np.maximum(rows.max(2, keepdims=True), 0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise WeightsError(
                f"{name} was to be stored in {scheme.bits} bits; it holds numbers that are not "
                "finite. Save or download the checkpoint again."
            )
        half = 2 ** (scheme.bits - 1) - 1
        first, last = (-half, half) if scheme.symmetric else (0, 2 * half + 1)
        scale = (np.maximum(-low, high) if scheme.symmetric else high - low) / last
        scale[scale == 0] = 1
        zero = np.zeros_like(scale) if scheme.symmetric else np.rint(-low / scale)
        codes = np.clip(np.rint(rows / scale) + zero, first, last)
        kind = np.int8 if scheme.symmetric else np.uint8
        one_each = (shape[0], -1) if scheme.group else (shape[0], *(1,) * (len(shape) - 1))
        return Quantized(
            scheme=scheme,
            codes=codes.astype(kind).reshape(shape),
            scale=scale.astype(np.float32).reshape(one_each),
            zero=None if scheme.symmetric else zero.astype(kind).reshape(one_each),
        )


#: The scheme of weights whose file has them in blocks of integers: they are kept as they are.
KEPT = "gguf"
#: Integer schemes by their names: as ``--precision`` and ``storage`` of a component have them.
SCHEMES: Mapping[str, Scheme] = FrozenDict(
    {
        "int8": Scheme(bits=8),
        "int8_sym": Scheme(bits=8, symmetric=True),
        "int4": Scheme(bits=4, group=32),
        "int4_sym": Scheme(bits=4, symmetric=True, group=32),
        "int4_g64": Scheme(bits=4, group=64),
        "int4_sym_g64": Scheme(bits=4, symmetric=True, group=64),
        "int4_g128": Scheme(bits=4, group=128),
        "int4_sym_g128": Scheme(bits=4, symmetric=True, group=128),
        "w8a8": Scheme(bits=8, symmetric=True, activations=True),
        KEPT: Scheme(bits=8, kept=True),
    }
)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a run on the reference measured of a component, to store it in fewer bits.

    Weights are named as in the model's state dict.
    """

    scheme: str
    #: Identifies the weights that it was measured with: ``marks_of``.
    vectors: Mapping[str, str] = field(default_factory=FrozenDict)
    #: The weights that stay as they are, because what they lose counts most.
    kept: tuple[str, ...] = ()
    #: Weight to the range of what it is multiplied with, as wide as 256 steps of which one is zero.
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=FrozenDict)
    #: The RMS of what predictions lose, as a part of theirs.
    error: float = 0.0
    prompts: tuple[str, ...] = ()
    steps: int = 0

    def __post_init__(self) -> None:
        for name in ("vectors", "ranges"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    def check(self, tensors: Mapping[str, StoredTensor], storage: str) -> None:
        """See that it is of this scheme, and of a component with these tensors.

        Raises:
            InputError: it is not.
        """
        if self.scheme != storage:
            raise InputError(
                f"Weights were to be stored as {storage}; the calibration is for {self.scheme}. Run "
                "perfuse calibrate for this one."
            )
        there = {plain_name(name): one for name, one in tensors.items()}
        known = {name: mark for name, mark in self.vectors.items() if name in there}
        if not known or any(_mark(there[name]) != mark for name, mark in known.items()):
            raise InputError(
                f"Weights were to be stored as {storage}; the calibration is of another model. Run "
                "perfuse calibrate with this one."
            )


def marks_of(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """What identifies a component's weights: some of its vectors, such as biases, by their values."""
    vectors = {
        plain_name(name): one
        for name, one in tensors.items()
        if one.floating and one.array.ndim == 1
    }
    names = sorted(vectors)
    return {name: _mark(vectors[name]) for name in names[:: max(len(names) // 16, 1)]}


def _mark(tensor: StoredTensor) -> str:
    values = tensor.cast("float32").array.tobytes()
    return hashlib.sha256(values).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A tensor in integers: ``(codes - zero) * scale + offset``."""

    scheme: Scheme
    #: In the tensor's layout, one a byte, those of four bits, too: int8, or uint8 with zero points.
    codes: "NDArray[Any]"
    #: Of as many axes: ``[O, 1, …]``, or ``[O, I / group]``; float32.
    scale: "NDArray[np.float32]"
    #: Like ``scale``, of the dtype of ``codes``; ``None`` where it is zero.
    zero: "NDArray[Any] | None"
    #: Like ``scale``: what is added to each number of a group, as blocks of some files have it;
    #: ``None`` for nothing.
    offset: "NDArray[np.float32] | None" = None
    #: The range of what it is multiplied with, where that is to be in integers, too.
    range: tuple[float, float] | None = None

    def changed(self, changes: tuple[Change, ...]) -> "Quantized | None":
        """It after changes of the tensor's layout; ``None`` if the groups do not outlast them."""
        if any(change.kind != "transpose" for change in changes):
            return None
        return self.each(lambda array: _transposed(array, changes))

    @property
    def axis(self) -> int:
        """The axis that is cut into groups; that of the outputs where each has one scale."""
        pairs = list(zip(self.codes.shape, self.scale.shape, strict=True))
        if self.scheme.group is not None:
            return next(i for i, (size, groups) in enumerate(pairs) if size != groups)
        return next((i for i, (_, groups) in enumerate(pairs) if groups > 1), 0)

    @property
    def dequantized(self) -> StoredTensor:
        """The numbers that it stands for, in float32."""
        import numpy as np

        values = self.codes.astype(np.float32)
        if self.zero is not None:
            values -= self._for_each(self.zero)
        values *= self._for_each(self.scale)
        if self.offset is not None:
            values += self._for_each(self.offset)
        return StoredTensor(dtype="float32", array=values)

    def _for_each(self, array: "NDArray[Any]") -> "NDArray[Any]":
        """The scales or zero points, one for each code, or one for all along an axis."""
        for axis, (size, groups) in enumerate(zip(self.codes.shape, array.shape, strict=True)):
            if groups > 1:
                array = array.repeat(size // groups, axis)
        return array

    def each(self, change: "Callable[[NDArray[Any]], NDArray[Any]]") -> "Quantized":
        """It with a function applied to codes, scales, zero points and offsets alike."""
        zero = None if self.zero is None else change(self.zero)
        offset = None if self.offset is None else change(self.offset)
        codes, scale = change(self.codes), change(self.scale)
        return replace(self, codes=codes, scale=scale, zero=zero, offset=offset)


class Blocks(StoredTensor):
    """A tensor that its file has in integers; who asks for numbers is given them in float32."""

    dtype = "float32"

    def __init__(
        self,
        shape: tuple[int, ...],
        integers: "Callable[[], Quantized]",
        numbers: "Callable[[], NDArray[Any]]",
    ) -> None:
        """Read nothing yet.

        Args:
            shape: The matrix's.
            integers: Gives what the file has.
            numbers: Gives what it stands for, in float32.
        """
        self._shape, self._integers, self._numbers = shape, integers, numbers

    @property
    def quantized(self) -> Quantized:
        """The integers."""
        return self._integers()

    @property
    def array(self) -> "NDArray[Any]":
        return self._numbers()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape


def packed(codes: "NDArray[Any]") -> "NDArray[np.uint8]":
    """Codes of four bits two a byte, the first in the lower half; [ceil(size / 2)]."""
    import numpy as np

    flat = codes.reshape(-1).view(np.uint8) & 15
    even = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
    both: NDArray[np.uint8] = even[::2] | (even[1::2] << 4)
    return both


def _transposed(array: "NDArray[Any]", changes: tuple[Change, ...]) -> "NDArray[Any]":
    import numpy as np

    for change in changes:
        array = change.of(array)
    return np.ascontiguousarray(array)


def quantized(
    tensors: Mapping[str, StoredTensor], storage: str, calibration: Calibration | None = None
) -> Mapping[str, "StoredTensor | Quantized"]:
    """The tensors of a module as a component stores them: those that its scheme fits in integers.

    Those that a file has in integers stay so where the scheme keeps these. Each other becomes integers
    when it is asked for, and is not kept.

    Args:
        tensors: By their names in the component's module, in its shapes.
        storage: A component's; what is no integer scheme changes nothing.
        calibration: What was measured of it.

    Raises:
        InputError: the calibration is of another model or scheme.
    """
    scheme = SCHEMES.get(storage)
    if scheme is None:
        return tensors
    if calibration is not None:
        calibration.check(tensors, storage)
    return _Tensors(tensors, scheme, calibration)


class _Tensors(Mapping[str, "StoredTensor | Quantized"]):
    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        scheme: Scheme,
        calibration: Calibration | None,
    ) -> None:
        self._tensors, self._scheme = tensors, scheme
        self._kept = calibration.kept if calibration is not None else ()
        self._ranges = calibration.ranges if calibration is not None else {}

    def __getitem__(self, name: str) -> "StoredTensor | Quantized":
        tensor, plain = self._tensors[name], plain_name(name)
        if self._scheme.kept:
            return tensor.quantized if isinstance(tensor, Blocks) else tensor
        fits = tensor.floating and self._scheme.fits(name, tensor.shape)
        if not fits or plain in self._kept:
            return tensor
        return replace(self._scheme.of(tensor, name), range=self._ranges.get(plain))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
