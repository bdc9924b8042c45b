"""Noise, drawn on the host and in one place, so that every backend starts from the same numbers.

Two modes, both float32 standard normals from a 64-bit seed:

``torch-cpu``
    The stream of ``torch.Generator("cpu").manual_seed(seed)`` through ``torch.randn``, re-created
    in numpy: a picture that Diffusers made from a seed can be made again. PyTorch's own kernels
    disagree with each other by up to 2.4e-6 from one processor to the next; these values lie
    within 5e-7 of its vectorised kernel (AVX2, AVX-512) and within 4e-6 of its scalar one.
``portable``
    Philox-4x64-10 and Box-Muller: short, counter-based, and with nothing to imitate.

Both are **bitwise the same on every processor**, by construction and not by luck. The integer
streams are numpy's MT19937 and Philox, whose output numpy freezes (NEP 19). Everything after them
is ``+ - * / sqrt``, ``rint``, ``frexp``, comparison and selection, which IEEE 754 defines to the
last bit. ``log``, ``sin`` and ``cos``, which it does not define and which differ between maths
libraries and vector units, are polynomials written out below. Each numpy call rounds its result to
memory before the next one reads it, so no compiler can fuse a multiplication with an addition.

A source is state, as a ``torch.Generator`` is: two draws from one source differ. It is not meant to
be shared between threads.

References: Matsumoto and Nishimura 1998 (MT19937); Salmon et al. 2011 (Philox); Box and Muller
1958; the order of PyTorch's draws was found by measuring PyTorch 2.13.
"""

import math
import operator
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from perfuse.errors import InputError

__all__ = [
    "MODES",
    "BatchNoise",
    "Noise",
    "NoiseSource",
    "TorchNoise",
    "fresh_seed",
    "noise_for",
    "noise_source",
]

MODES = ("torch-cpu", "portable")
"""What a `NoiseSource` can be asked to draw like."""

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Noise(Protocol):
    """Anything that noise can be drawn from."""

    def normal(self, shape: tuple[int, ...]) -> Float32:
        """Draw standard normals of this shape, float32, and move on in the stream."""
        ...


class NoiseSource:
    """A stream of standard normals that a seed determines.

    ``seed`` is any integer that ``torch.Generator.manual_seed`` takes, -2**63 to 2**64 - 1; a
    negative one means itself plus 2**64. As in PyTorch, ``torch-cpu`` uses its low 32 bits only;
    ``portable`` uses all 64. ``mode`` is one of `MODES`. Raises `InputError` for anything else.

    >>> NoiseSource(0).normal((1, 4, 8, 8)).shape
    (1, 4, 8, 8)
    >>> a, b = NoiseSource(7, "portable"), NoiseSource(7, "portable")
    >>> bool((a.normal((5,)) == b.normal((5,))).all())
    True
    """

    def __init__(self, seed: int, mode: str = "torch-cpu") -> None:
        if mode not in MODES:
            raise InputError(f"Noise mode {mode!r} is unknown. There are: {', '.join(MODES)}.")
        self.seed = _checked_seed(seed)
        self.mode = mode
        bits = self.seed % 2**64
        self._stream = _TorchStream(bits) if mode == "torch-cpu" else _PortableStream(bits)

    def normal(self, shape: tuple[int, ...]) -> Float32:
        """Draw standard normals of this shape, float32.

        In ``torch-cpu`` this equals ``torch.randn(shape, generator=g)`` at the same place in the
        stream: draws of fewer than 16 values, and of a count that 16 does not divide, follow
        PyTorch's own rules, so there a short draw is no prefix of a long one. In ``portable`` the
        values are one sequence, however it is cut. Raises `InputError` for a bad shape.
        """
        shape = _checked_shape(shape)
        return self._stream.draw(math.prod(shape)).reshape(shape)

    def __repr__(self) -> str:
        return f"NoiseSource({self.seed}, {self.mode!r})"


class TorchNoise:
    """A user's own ``torch.Generator``, on whichever device it lives.

    Drawing advances the generator, as drawing with torch would. Raises `InputError` if it is not a
    ``torch.Generator``.
    """

    def __init__(self, generator: Any) -> None:
        if not _is_torch_generator(generator):
            raise InputError(
                f"A torch.Generator was expected, a {type(generator).__name__} was given. "
                "For a seed, use NoiseSource(seed)."
            )
        self.generator = generator

    def normal(self, shape: tuple[int, ...]) -> Float32:
        """Draw standard normals of this shape, float32, on the generator's device."""
        torch = sys.modules["torch"]
        g = self.generator
        drawn = torch.randn(
            _checked_shape(shape), generator=g, device=g.device, dtype=torch.float32
        )
        values: Float32 = drawn.cpu().numpy()
        return values


@dataclass(frozen=True, kw_only=True)
class BatchNoise:
    """Noise for a batch of pictures: from one stream for all of them, or from one stream each.

    With a stream each, a picture does not change when others join its batch.
    """

    sources: tuple[Noise, ...]
    """One for the whole batch, or one for each picture."""
    seeds: tuple[int | None, ...]
    """The seed of each source; None where it is not known, as for a ``torch.Generator``."""

    def normal(self, shape: tuple[int, ...]) -> Float32:
        """Draw standard normals of shape ``(pictures, ...)``, float32.

        One source draws them all at once; several draw ``(1, ...)`` each, in order, as Diffusers
        does with a list of generators. Raises `InputError` if the pictures are not as many as
        the sources.
        """
        if len(self.sources) == 1:
            return self.sources[0].normal(shape)
        pictures = shape[0] if len(shape) > 0 else 0
        if pictures != len(self.sources):
            raise InputError(
                f"Noise of shape {tuple(shape)} was asked for {pictures} pictures, but there are "
                f"{len(self.sources)} seeds or generators. Give one for each picture, or only one."
            )
        return np.concatenate([source.normal((1, *shape[1:])) for source in self.sources])

    def first(self, shape: tuple[int, ...]) -> Float32:
        """Draw as ``normal`` does for the first ``shape[0]`` pictures alone, float32.

        Raises `InputError` if there are fewer sources than that, and more than one.
        """
        if len(self.sources) == 1:
            return self.normal(shape)
        few = BatchNoise(sources=self.sources[: shape[0]], seeds=self.seeds[: shape[0]])
        return few.normal(shape)


def noise_source(given: Any, mode: str = "torch-cpu") -> Noise:
    """Make something to draw from out of a seed, a ``torch.Generator`` or a source made before.

    ``mode`` is for seeds only. Raises `InputError` if ``given`` is none of the three.
    """
    if _is_torch_generator(given):
        return TorchNoise(given)
    if isinstance(given, (np.random.Generator, np.random.RandomState)):
        # Its .normal() takes a mean first: it would draw something, and the wrong thing.
        raise InputError(
            f"A numpy {type(given).__name__} cannot be used as generator: its stream is not "
            "PyTorch's. Give a seed (an integer) or a torch.Generator."
        )
    if callable(getattr(given, "normal", None)) and not isinstance(given, type):
        source: Noise = given
        return source
    return NoiseSource(given, mode)


def noise_for(
    seed: int | Sequence[int] | None = None,
    generator: Any = None,
    *,
    batch: int,
    mode: str = "torch-cpu",
) -> BatchNoise:
    """Choose the noise for ``batch`` pictures from what the user gave.

    One seed or generator makes one stream for the whole batch; a list makes one stream for each
    picture. With neither, and where ``torch.manual_seed`` was called, noise is drawn from torch's
    own stream, as Diffusers draws it; otherwise a seed is taken from the operating system, and
    ``.seeds`` tells which.
    Raises `InputError` if both are given, or if a list is not as long as the batch.

    >>> noise_for([3, 4], batch=2).seeds
    (3, 4)
    """
    if seed is not None and generator is not None:
        raise InputError("Both a seed and a generator were given. Give one of them.")
    if seed is None and generator is None:
        generator = _seeded_by_hand() if mode == "torch-cpu" else None
        seed = fresh_seed() if generator is None else None
    word = "seed" if generator is None else "generator"
    given: Any = seed if generator is None else generator
    each = isinstance(given, (list, tuple, range))
    if each and len(given) != batch:
        raise InputError(
            f"A list of {len(given)} {word}s was given for a batch of {batch} pictures. "
            f"Give {batch}, or a single {word} for all."
        )
    sources = tuple(noise_source(one, mode) for one in (given if each else (given,)))
    return BatchNoise(sources=sources, seeds=tuple(getattr(s, "seed", None) for s in sources))


def _seeded_by_hand() -> Any:
    """Torch's global generator, if ``torch.manual_seed`` was called; ``None`` otherwise.

    Nothing in torch says so. But a process begins with a seed of 53 or more random bits, and people
    write short ones: a seed of at most 32 bits was chosen by somebody.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "initial_seed") or torch.initial_seed() >= 2**32:
        return None
    return torch.default_generator


def fresh_seed() -> int:
    """Return a seed that nobody chose: 32 bits from the operating system.

    32 because that is all that PyTorch's CPU generator uses, and a person may want to type it.
    """
    return int.from_bytes(os.urandom(4), "little")


def _checked_seed(seed: Any) -> int:
    if not isinstance(seed, (bool, np.bool_)):
        try:
            value = operator.index(seed)
        except TypeError:
            pass
        else:
            if -(2**63) <= value < 2**64:
                return value
            raise InputError(
                f"The seed {value} is outside -2**63 to 2**64 - 1. Give a smaller one."
            )
    raise InputError(
        f"The seed must be an integer, {seed!r} ({type(seed).__name__}) was given. "
        "Give an integer from -2**63 to 2**64 - 1."
    )


def _checked_shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError as exc:
        raise InputError(f"A shape is a tuple of integers; {shape!r} was given.") from exc
    if any(size < 0 for size in sizes):
        raise InputError(f"The shape {sizes} has a negative size. Sizes are 0 or more.")
    return sizes


def _is_torch_generator(given: Any) -> bool:
    # Whoever holds a torch.Generator has imported torch: no need to import it here to find out.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, getattr(torch, "Generator", ()))


class _TorchStream:
    """``torch.randn`` in float32 on ``torch.Generator("cpu")``, draw after draw."""

    BLOCK = 16
    """PyTorch makes normals in blocks of 16: 8 uniforms for the radius, 8 for the angle."""

    def __init__(self, seed: int) -> None:
        self._mt19937 = np.random.RandomState(seed % 2**32)
        self._spare: float | None = None  # the second normal of the last pair of a small draw

    def draw(self, count: int) -> Float32:
        if count < self.BLOCK:
            return self._draw_pairs(count)
        values = self._draw_blocks(self._words(count)[: count - count % self.BLOCK])
        if count % self.BLOCK == 0:
            return values
        # The last 16 values are drawn afresh, over the end of the last whole block.
        tail = self._draw_blocks(self._words(self.BLOCK))
        return np.concatenate([values[: count - self.BLOCK], tail])

    def _words(self, count: int) -> NDArray[np.uint32]:
        return self._mt19937.randint(0, 2**32, size=count, dtype=np.uint32)

    def _draw_blocks(self, words: NDArray[np.uint32]) -> Float32:
        u = (words & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2**-24)
        u = u.reshape(-1, 2, self.BLOCK // 2)
        normals = np.empty_like(u)
        for part in _slices(len(u), _CHUNK // self.BLOCK):
            # Rounded to float32 where PyTorch rounds; the functions themselves are float64.
            log = _log((np.float32(1) - u[part, 0]).astype(np.float64)).astype(np.float32)
            radius = np.sqrt(np.float32(-2) * log)
            theta = np.float32(2 * math.pi) * u[part, 1]
            cos, sin = _cos_sin_of_turns(theta.astype(np.float64) / (2 * math.pi))
            normals[part, 0] = radius * cos.astype(np.float32)
            normals[part, 1] = radius * sin.astype(np.float32)
        return normals.reshape(-1)

    def _draw_pairs(self, count: int) -> Float32:
        """Draw fewer than 16: float64 pairs, of which an odd one is kept for the next small draw.

        A draw of 16 or more leaves the kept one where it is.
        """
        kept = [] if self._spare is None else [self._spare]
        pairs = (max(count - len(kept), 0) + 1) // 2
        words = self._words(4 * pairs).astype(np.uint64).reshape(pairs, 2, 2)
        high, low = words[..., 0], words[..., 1]
        u = ((high << np.uint64(32) | low) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
        radius = np.sqrt(-2 * _log(1 - u[:, 1]))
        cos, sin = _cos_sin_of_turns(u[:, 0])
        values = kept + np.stack([radius * cos, radius * sin], axis=1).reshape(-1).tolist()
        self._spare = values[count] if len(values) > count else None
        return np.array(values[:count], dtype=np.float32)


class _PortableStream:
    """Normal 2i and 2i+1 from words 2i and 2i+1 of Philox-4x64-10 with the seed as key."""

    def __init__(self, seed: int) -> None:
        self._philox = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
        self._spare = np.empty(0, dtype=np.float32)

    def draw(self, count: int) -> Float32:
        pairs = (max(count - len(self._spare), 0) + 1) // 2
        words = self._philox.random_raw(2 * pairs).reshape(pairs, 2) >> np.uint64(11)
        normals = np.empty((pairs, 2), dtype=np.float32)
        for part in _slices(pairs, _CHUNK // 2):
            u1 = (words[part, 0] + np.uint64(1)).astype(
                np.float64
            ) * 2.0**-53  # (0, 1]: log is finite
            u2 = words[part, 1].astype(np.float64) * 2.0**-53  # [0, 1)
            radius = np.sqrt(-2 * _log(u1))
            cos, sin = _cos_sin_of_turns(u2)
            normals[part, 0] = radius * cos
            normals[part, 1] = radius * sin
        values = np.concatenate([self._spare, normals.reshape(-1)])
        self._spare = values[count:].copy()  # a view would keep the whole draw alive
        return values[:count]


_CHUNK = 16384
"""Values worked on at a time, so that the float64 temporaries stay in the processor's cache."""


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, size)]


# Taylor series. Up to pi/4 the first term left out is below 1e-19 of the result; the atanh series
# runs to z**10 with z < 0.0295, where it is below 1e-18. Far below what rounding to float32 shows.
_SIN = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(9))
_COS = tuple((-1) ** k / math.factorial(2 * k) for k in range(10))
_ATANH = tuple(2 / (2 * k + 1) for k in range(11))
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
# Of the quadrants 0 to 3.
_COS_SIGN = np.array([1.0, -1.0, -1.0, 1.0])
_SIN_SIGN = np.array([1.0, 1.0, -1.0, -1.0])


def _polynomial(coefficients: Sequence[float], z: Float64) -> Float64:
    """Evaluate ``c[0] + c[1] z + c[2] z**2 + ...`` by Horner's rule."""
    total = np.full_like(z, coefficients[-1])
    for c in coefficients[-2::-1]:
        total *= z
        total += c
    return total


def _log(x: Float64) -> Float64:
    """Return the natural logarithm of x > 0, from IEEE 754 operations only.

    x = m 2**e with m in [sqrt(1/2), sqrt(2)), and log m = 2 atanh((m - 1) / (m + 1)).
    """
    m, e = np.frexp(x)
    low = m < _SQRT_HALF
    m = np.where(low, m + m, m)
    s = (m - 1) / (m + 1)
    log: Float64 = s * _polynomial(_ATANH, s * s) + (e - low) * _LN2
    return log


def _cos_sin_of_turns(t: Float64) -> tuple[Float64, Float64]:
    """Return cos(2 pi t) and sin(2 pi t) for t >= 0, from IEEE 754 operations only."""
    quarters = 4 * t
    nearest = np.rint(quarters)
    x = (quarters - nearest) * (math.pi / 2)  # the subtraction is exact; |x| <= pi/4
    z = x * x
    cos, sin = _polynomial(_COS, z), x * _polynomial(_SIN, z)
    quadrant = nearest.astype(np.intp) & 3
    odd = quadrant & 1 == 1
    return (
        _COS_SIGN[quadrant] * np.where(odd, sin, cos),
        _SIN_SIGN[quadrant] * np.where(odd, cos, sin),
    )
