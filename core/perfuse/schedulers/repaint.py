"""RePaint: inpainting with an unconditional model (Lugmayr et al. 2022).

At every step the part that is known is put in from the picture itself, at the step's noise level,
and now and then the sample is noised again by ``jump_length`` steps and denoised once more.

A product of the mask and the sample is no row of a table of sums, so the schedule is one of its own:
its state holds the known picture and the mask as well. A jump is one row there, with one draw for
the ten that Diffusers makes: the same distribution, another stream. The loop asks the model at that
row too, and nothing is done with the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Grid, Options, Request
from .kinds import as_scalar, cast, draw, host
from .linear import NOISE, OUT, X
from .table import Array, Row, Schedule, State, to_float32
from .variance_preserving import VariancePreserving, converted

__all__ = ["RePaintSchedule", "RePaintScheduler", "RePaintSettings"]


@dataclass(frozen=True, kw_only=True)
class RePaintSettings:
    """The settings of ``RePaintScheduler``."""

    num_train_timesteps: int = 1000
    """Number of noise levels that the model was trained with."""
    beta_start: float = 0.0001
    """Variance added by the first of them."""
    beta_end: float = 0.02
    """Variance added by the last."""
    beta_schedule: str = "linear"
    """How the variance grows in between: linear, scaled_linear, squaredcos_cap_v2, sigmoid."""
    eta: float = 0.0
    """The share of noise: 0 as DDIM, 1 as DDPM."""
    trained_betas: Sequence[float] | None = None
    """The variances themselves, instead of the four settings above."""
    clip_sample: bool = True
    """Clamp the predicted clean sample to [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class RePaintSchedule(Schedule):
    """A table whose state is the sample, the known picture, and where it is known.

    >>> state = schedule.masked(noise, picture, mask)                         # doctest: +SKIP
    """

    known: tuple[tuple[float, float] | None, ...]
    """Scales of the known picture and of its noise after each step; None where it is not put in."""

    def masked(self, x: Array, known: Array, mask: Array) -> State:
        """The state before the first step; ``mask`` is one where the picture is known."""
        return to_float32(x), to_float32(known), to_float32(mask)

    def start(self, x: Array) -> State:
        """The state of a run without a known picture."""
        x = to_float32(x)
        return x, x, x * 0.0

    def advance(self, i: int, state: State, model_output: Array, noise: Array = None) -> State:
        x, known, mask = state
        (x,) = super().advance(i, (x,), model_output, noise)
        scales = self.known[i]
        if scales is not None:
            put_in = scales[0] * known + scales[1] * to_float32(noise)
            x = mask * put_in + (1.0 - mask) * x
        return x, known, mask

    def denoised(self, i: int, state: State, model_output: Array) -> Array:
        return super().denoised(i, state[:1], model_output)


class RePaintScheduler(VariancePreserving):
    """``timesteps`` falls and jumps up again, as in Diffusers; where it rises call ``undo_step``."""

    Settings = RePaintSettings
    extra_betas = ("sigmoid",)
    settings: RePaintSettings

    @property
    def eta(self) -> float:
        """The share of noise."""
        return self.settings.eta

    def _grid(self, request: Request) -> Grid:
        total = self.settings.num_train_timesteps
        count = min(total, request.count)
        length = 10 if request.jump_length is None else request.jump_length
        often = 10 if request.jump_n_sample is None else request.jump_n_sample
        jumps = {start: often - 1 for start in range(0, count - length, length)}
        path, t = [], count
        while t >= 1:
            t -= 1
            path.append(t)
            if jumps.get(t, 0) > 0:
                jumps[t] -= 1
                path.extend(range(t + 1, t + length + 1))
                t += length
        return Grid(timesteps=np.array(path) * (total // count), steps=count)

    def _table(self, grid: Grid, begin: int, options: Options) -> RePaintSchedule:
        rows: list[Row] = []
        known: list[tuple[float, float] | None] = []
        last = None
        for t in grid.timesteps[begin:].tolist():
            if last is None or t < last:
                row, scales = self._down(t, grid.steps)
                rows.append(row)
                known.append(scales)
            elif known[-1] is None:  # one jump goes on
                rows[-1] = self._up(last, grid.steps, rows[-1])
            else:
                rows.append(self._up(last, grid.steps, None))
                known.append(None)
            last = t
        clip = 1.0 if self.settings.clip_sample else None
        return RePaintSchedule(rows=tuple(rows), clip=clip, known=tuple(known))

    def _down(self, t: int, steps: int | None) -> tuple[Row, tuple[float, float]]:
        after = t - self._stride(steps)
        a, a_next = self._alpha(np.array([t, after]))
        one, s = np.float32(1), self.settings
        signal, sigma = np.sqrt(a), np.sqrt(one - a)
        convert, x0 = converted("epsilon", signal, sigma, s.clip_sample)
        deviation = np.float32(s.eta) * np.sqrt(self._posterior_variance(t, after)[0])
        direction = np.sqrt(one - a_next - np.square(deviation))
        unknown = np.sqrt(a_next) * x0 + direction * OUT
        if t > 0 and s.eta > 0:
            unknown += deviation * NOISE
        row = Row(
            timestep=t,
            convert=convert,
            update=(unknown,),
            denoised=x0,
            draws=True,
            noising=(float(signal), float(sigma)),
        )
        return row, (float(np.sqrt(a_next)), float(np.sqrt(one - a_next)))

    def _up(self, t: int, steps: int | None, before: Row | None) -> Row:
        """A step up from ``t``, after those of ``before``, as one with one draw."""
        scale, variance = 1.0, 0.0
        if before is not None:
            terms = dict(before.update[0].terms)
            scale, variance = terms[X.terms[0][0]], terms[NOISE.terms[0][0]] ** 2
        for beta in self._betas[t : t + self._stride(steps)].astype(np.float64):
            scale, variance = scale * (1 - beta) ** 0.5, variance * (1 - beta) + beta
        signal, sigma = (float(v[0]) for v in self._noise_scales(np.array([t])))
        return Row(
            timestep=t,
            update=(scale * X + variance**0.5 * NOISE,),
            denoised=(X - sigma * OUT) / signal,
            draws=True,
            noising=(signal, sigma),
        )

    def _stride(self, steps: int | None) -> int:
        return int(self.settings.num_train_timesteps // (1 if steps is None else steps))

    def set_timesteps(
        self,
        num_inference_steps: int,
        jump_length: int = 10,
        jump_n_sample: int = 10,
        device: Any = None,
    ) -> None:
        """Choose the steps for ``step``, ``jump_n_sample`` times over every ``jump_length``."""
        self._set(num_inference_steps, device, jump_length=jump_length, jump_n_sample=jump_n_sample)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        original_image: Array,
        mask: Array,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One step down from any timestep; ``mask`` is one where ``original_image`` is known."""
        self._check_steps()
        row, known = self._down(int(host(timestep)), self.num_inference_steps)
        clip = 1.0 if self.settings.clip_sample else None
        table = RePaintSchedule(rows=(row,), clip=clip, known=(known,))
        state = table.masked(sample, original_image, mask)
        return self._apply(table, 0, state, model_output, sample, noise, generator, return_dict)[1]

    def undo_step(
        self, sample: Array, timestep: Any, generator: Any = None, *, noises: Any = None
    ) -> Array:
        """The sample one step noisier; ``noises`` are used, in order, instead of drawing."""
        t = int(host(timestep))
        given = None if noises is None else iter(noises)
        for beta in self._betas[t : t + self._stride(self.num_inference_steps)].tolist():
            fresh = draw(sample, generator, sample.dtype) if given is None else next(given)
            sample = cast((1 - beta) ** 0.5 * sample + beta**0.5 * fresh, sample.dtype)
        return sample

    def _get_variance(self, t: int) -> Any:
        return as_scalar(self._posterior_variance(t, t - self._stride(self.num_inference_steps)))
