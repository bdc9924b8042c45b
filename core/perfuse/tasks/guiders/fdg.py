"""Frequency-decoupled guidance (Sadat et al. 2025, arXiv:2506.19713)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from perfuse.arrays import is_torch, place
from perfuse.contract.guider import Branch, Guider, Moment
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.guiders.contrast import NEGATIVE, POSITIVE, is_within, rescaled
from perfuse.tasks.guiders.numbers import check_fraction, check_interval, check_number
from perfuse.tasks.guiders.projection import weighted

__all__ = ["FrequencyDecoupledGuidance"]

_BLUR = np.array([1, 4, 6, 4, 1], dtype=np.float64) / 16


@dataclass(frozen=True, kw_only=True)
class FrequencyDecoupledGuidance(Guider):
    """Classifier-free guidance with a scale for each level of a Laplacian pyramid.

    Small scales for coarse levels keep variety and colours, large ones for fine levels give detail.
    Settings of a level are listed from the finest to the coarsest; one number is for all.
    """

    #: The scale of each level: this says how many there are.
    guidance_scales: tuple[float, ...] = (10.0, 5.0)
    #: How far to rescale to the conditional prediction's standard deviation, 0 to 1.
    guidance_rescale: float | tuple[float, ...] = 0.0
    #: The weight of the part of the shift that is parallel to the conditional prediction.
    parallel_weights: float | tuple[float, ...] | None = None
    #: Whether to use ``c + g (c - u)`` instead of ``u + g (c - u)``.
    use_original_formulation: bool = False
    #: The fraction of the steps, 0 to 1, at which guidance of a level starts.
    start: float | tuple[float, ...] = 0.0
    #: The fraction at which it stops.
    stop: float | tuple[float, ...] = 1.0
    #: Where to rescale: ``"data"``, once and by the first amount, or ``"freq"``, in each level.
    guidance_rescale_space: str = "data"
    #: Diffusers' switch for sums in float64; here sums of numpy's arrays always are.
    upcast_to_double: bool = True
    #: Whether there is guidance at all.
    enabled: bool = True

    def __post_init__(self) -> None:
        scales = self._listed("guidance_scales")
        for name in ("guidance_rescale", "parallel_weights", "start", "stop"):
            if getattr(self, name) is not None and len(self._listed(name)) != len(scales):
                raise InputError(
                    f"{name} has {len(self._listed(name))} numbers and guidance_scales has "
                    f"{len(scales)}. Give as many, or one for all."
                )
        for start, stop in zip(self._listed("start"), self._listed("stop"), strict=True):
            check_interval("start", start, "stop", stop)
        for amount in self._listed("guidance_rescale"):
            check_fraction("guidance_rescale", amount)
        for name in ("guidance_scales", "parallel_weights"):
            for number in self._listed(name):
                check_number(name, number)
        if self.guidance_rescale_space not in ("data", "freq"):
            raise InputError(
                f"guidance_rescale_space must be data or freq; got {self.guidance_rescale_space!r}."
            )
        for name in ("guidance_scales", "guidance_rescale", "parallel_weights", "start", "stop"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))

    def _listed(self, name: str) -> tuple[float, ...]:
        """A setting as one number a level."""
        value = getattr(self, name)
        if value is None:
            value = 1.0
        if isinstance(value, tuple | list):
            return tuple(value)
        return (value,) * len(self.guidance_scales)

    def _levels(self, moment: Moment) -> tuple[bool, ...]:
        """Whether each level is guided at a step."""
        neutral = 0.0 if self.use_original_formulation else 1.0
        settings = zip(
            self.guidance_scales, self._listed("start"), self._listed("stop"), strict=True
        )
        return tuple(
            self.enabled and not math.isclose(scale, neutral) and is_within(moment, start, stop)
            for scale, start, stop in settings
        )

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (NEGATIVE, POSITIVE) if self.enabled else (POSITIVE,)

    def running(self, moment: Moment) -> tuple[str, ...]:
        return ("negative", "positive") if any(self._levels(moment)) else ("positive",)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        conditional = predictions["positive"]
        if "negative" not in predictions:
            return conditional
        self._check_shape(conditional)
        levels = len(self.guidance_scales)
        both = (pyramid(conditional, levels), pyramid(predictions["negative"], levels))
        guided = [
            self._guided(c, u, level) if runs else c
            for level, (runs, c, u) in enumerate(zip(self._levels(moment), *both, strict=True))
        ]
        whole = summed(guided)
        if self.guidance_rescale_space == "data":
            whole = rescaled(whole, conditional, self._listed("guidance_rescale")[0])
        return whole

    def _check_shape(self, prediction: Array) -> None:
        if prediction.ndim != 4 or min(prediction.shape[2:]) >> (len(self.guidance_scales) - 1) < 1:
            raise InputError(
                f"{len(self.guidance_scales)} guidance_scales were given, each for a level of half "
                f"the size; the denoiser predicts {tuple(prediction.shape)}. Give fewer, for a "
                "denoiser of pictures [batch, channels, height, width]."
            )

    def _guided(self, conditional: Array, without: Array, level: int) -> Array:
        original = self.use_original_formulation
        shift = conditional - without
        weight = self._listed("parallel_weights")[level]
        if not math.isclose(weight, 1.0):
            shift = weighted(shift, conditional, weight)
        base = conditional if original else without
        guided = base + self.guidance_scales[level] * shift
        amount = self._listed("guidance_rescale")[level]
        return rescaled(guided, conditional, amount if self.guidance_rescale_space == "freq" else 0)


# A Laplacian pyramid (Burt and Adelson 1983). Blurring and resizing treat rows and columns alike, so
# that each is one small matrix from either side, for numpy and torch.


def pyramid(array: Array, levels: int) -> list[Array]:
    """What each size of [B, C, H, W] adds to the next smaller one; the smallest one comes last."""
    found = []
    for _ in range(levels - 1):
        smaller = _halved(array)
        found.append(array - _enlarged(smaller, array.shape[-2], array.shape[-1]))
        array = smaller
    return [*found, array]


def summed(levels: list[Array]) -> Array:
    """The inverse of ``pyramid``."""
    whole = levels[-1]
    for level in reversed(levels[:-1]):
        whole = _enlarged(whole, level.shape[-2], level.shape[-1]) + level
    return whole


def _halved(array: Array) -> Array:
    height, width = array.shape[-2:]
    return _from_both_sides(array, *(_resizing(n, n // 2) @ _blurring(n) for n in (height, width)))


def _enlarged(array: Array, height: int, width: int) -> Array:
    sizes = zip(array.shape[-2:], (height, width), strict=True)
    return _from_both_sides(array, *(_blurring(to) @ _resizing(n, to) for n, to in sizes))


def _from_both_sides(array: Array, rows: Any, columns: Any) -> Array:
    device = str(array.device) if is_torch(array) else None
    left, right = (place(m.astype(np.float32), device) for m in (rows, columns.T))
    return left @ array @ right


@cache
def _blurring(size: int) -> Any:
    """The binomial blur of five taps as [size, size]; the border reflects."""
    matrix = np.zeros((size, size))
    for tap, weight in zip(range(-2, 3), _BLUR, strict=True):
        for row in range(size):
            column = abs(row + tap)
            column = min(column, max(2 * (size - 1) - column, 0))
            matrix[row, column] += weight
    return matrix


@cache
def _resizing(size: int, to: int) -> Any:
    """Bilinear interpolation between pixels' centres as [to, size]."""
    places = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    below = np.floor(places).astype(int)
    matrix = np.zeros((to, size))
    matrix[np.arange(to), below] += 1 - (places - below)
    matrix[np.arange(to), np.minimum(below + 1, size - 1)] += places - below
    return matrix
