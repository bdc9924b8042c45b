"""The variance-exploding SDE: a predictor, and a corrector by Langevin steps (Song et al. 2021).

The size of a corrector's step depends on the norms of the noise and of the model's output, which no
table can know. The schedule here is one of its own: rows that correct take their size from these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import Grid, Options, Request, Scheduler
from .betas import Float32s, linspace32
from .kinds import TensorView, cast, draw, host
from .linear import NOISE, OUT, X
from .outputs import StepOutput
from .rounded import exp32
from .table import Array, Row, Schedule, State, to_float32

NAMES = ("score-sde-ve",)

__all__ = ["LangevinSchedule", "ScoreSdeVeScheduler", "ScoreSdeVeSettings"]


@dataclass(frozen=True, kw_only=True)
class ScoreSdeVeSettings:
    """The settings of ``ScoreSdeVeScheduler``."""

    num_train_timesteps: int = 2000
    """Number of noise levels that the model was trained with."""
    snr: float = 0.15
    """How large a corrector's step is: the signal-to-noise ratio of Langevin dynamics."""
    sigma_min: float = 0.01
    """The lowest level."""
    sigma_max: float = 1348.0
    """The highest."""
    sampling_eps: float = 1e-5
    """Where the run ends, of one."""
    correct_steps: int = 1
    """How many corrector's steps come before each of the predictor's."""


@dataclass(frozen=True, kw_only=True)
class LangevinSchedule(Schedule):
    """A table in which some rows correct; their update is found when they are reached."""

    snr: float
    corrects: tuple[bool, ...]
    """Which rows are corrector's steps."""

    def advance(self, i: int, state: State, model_output: Array, noise: Array = None) -> State:
        if not self.corrects[i]:
            return super().advance(i, state, model_output, noise)
        return (_corrected(to_float32(state[0]), model_output, noise, self.snr),)


class ScoreSdeVeScheduler(Scheduler):
    """The model is given the noise level itself, and returns the score, -n / sigma.

    The table has ``correct_steps`` and one model calls a step. Its last step adds no noise: what
    Diffusers' pipeline shows is ``prev_sample_mean``.
    """

    Settings = ScoreSdeVeSettings
    needs_steps = False
    second = "prev_sample_mean"
    settings: ScoreSdeVeSettings

    sigmas = TensorView()
    """The level at each timestep."""
    discrete_sigmas = TensorView()
    """The noise levels of training, ascending, as many as ``set_sigmas`` was given."""

    def _prepare(self) -> None:
        pass

    def _untimed(self) -> Grid:
        return self._grid(Request(num_inference_steps=self.settings.num_train_timesteps))

    def _grid(self, request: Request) -> Grid:
        s, count = self.settings, request.count
        end = s.sampling_eps if request.sampling_eps is None else request.sampling_eps
        timesteps = linspace32(1, end, count)
        ratio = np.float32(s.sigma_max / s.sigma_min)
        sigmas = np.float32(s.sigma_min) * np.power(ratio, timesteps, dtype=np.float32)
        return Grid(timesteps=timesteps, sigmas=sigmas, steps=count)

    def _trained(self, count: int, low: float, high: float) -> Float32s:
        levels: Float32s = exp32(linspace32(math.log(low), math.log(high), count))
        return levels

    def _place(self, grid: Grid) -> None:
        before = self.__dict__.get("_sigmas", grid.sigmas)
        super()._place(grid)
        self._sigmas = before  # set_sigmas is what changes them
        if "_discrete_sigmas" not in self.__dict__:
            s = self.settings
            self._discrete_sigmas = self._trained(s.num_train_timesteps, s.sigma_min, s.sigma_max)

    def _init_noise_sigma(self, grid: Grid) -> float:
        return float(self.settings.sigma_max)

    def _table(self, grid: Grid, begin: int, options: Options) -> LangevinSchedule:
        s, t = self.settings, grid.timesteps
        assert grid.sigmas is not None
        levels = self._trained(len(t), s.sigma_min, s.sigma_max)
        rows: list[Row] = []
        corrects: list[bool] = []
        for i in range(begin, len(t)):
            row = self._row(t[i], grid.sigmas[i], levels, len(t), i == len(t) - 1)
            rows += [row] * (s.correct_steps + 1)
            corrects += [True] * s.correct_steps + [False]
        return LangevinSchedule(
            rows=tuple(rows),
            init_noise_sigma=self._init_noise_sigma(grid),
            snr=s.snr,
            corrects=tuple(corrects),
        )

    def _row(self, t: Any, told: Any, levels: Float32s, count: int, last: bool) -> Row:
        place = int(np.float32(t) * np.float32(count - 1))
        sigma = levels[place]
        below = np.float32(0) if place == 0 else levels[place - 1]
        variance = np.square(sigma) - np.square(below)
        mean = X + variance * OUT
        return Row(
            timestep=float(told),
            update=(mean if last else mean + np.sqrt(variance) * NOISE,),
            denoised=X + np.square(sigma) * OUT,
            second=mean,
            draws=True,
            noising=(1.0, float(sigma)),
        )

    def _noise_scales(self, timesteps: npt.NDArray[Any]) -> tuple[Any, Any]:
        sigma = self._discrete_sigmas[timesteps.astype(np.int64)]
        return np.ones_like(sigma), sigma

    def set_timesteps(
        self, num_inference_steps: int, sampling_eps: float | None = None, device: Any = None
    ) -> None:
        """Choose the steps for ``step_pred``. Call ``set_sigmas`` with the same number as well."""
        self._set(num_inference_steps, device, sampling_eps=sampling_eps)

    def set_sigmas(
        self,
        num_inference_steps: int,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sampling_eps: float | None = None,
    ) -> None:
        """Choose the levels that ``step_pred`` goes between, as many as there are steps."""
        s = self.settings
        low = s.sigma_min if sigma_min is None else sigma_min
        high = s.sigma_max if sigma_max is None else sigma_max
        self._discrete_sigmas = self._trained(num_inference_steps, low, high)
        self._sigmas = np.array([low * (high / low) ** t for t in self._timesteps], np.float32)

    def get_adjacent_sigma(self, timesteps: Any, t: Any) -> Any:
        """The level below that of each place in ``discrete_sigmas``; zero below the lowest."""
        places = host(timesteps)
        found = np.where(places == 0, np.float32(0), self._discrete_sigmas[places - 1])
        return (
            found
            if isinstance(timesteps, np.ndarray)
            else timesteps.new_tensor(found, dtype=t.dtype)
        )

    def step_pred(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One step of the predictor, from any timestep from one to zero."""
        count = len(self._timesteps)
        t = np.float32(host(timestep).reshape(-1)[0])
        row = self._row(t, t, self._discrete_sigmas, count, False)
        return self._step_alone(
            Schedule(rows=(row,)),
            model_output,
            sample,
            return_dict,
            generator=generator,
            noise=noise,
        )

    def step(self, model_output: Array, timestep: Any, sample: Array, *args: Any, **kw: Any) -> Any:
        """The same as ``step_pred``."""
        return self.step_pred(model_output, timestep, sample, *args, **kw)

    def step_correct(
        self,
        model_output: Array,
        sample: Array,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One Langevin step at the level where the sample is."""
        noise = draw(sample, generator) if noise is None else noise
        after = _corrected(to_float32(sample), model_output, noise, self.settings.snr)
        after = cast(after, sample.dtype)
        return StepOutput(prev_sample=after) if return_dict else (after,)


def _corrected(x: Array, model_output: Array, noise: Array, snr: float) -> Array:
    """Song et al. 2021, Alg. 4: the batch's mean norms give one step size for all of it."""
    score, noise = to_float32(model_output), to_float32(noise)
    size = 2.0 * (snr * _norm(noise) / _norm(score)) ** 2
    return x + size * score + (2.0 * size) ** 0.5 * noise


def _norm(array: Array) -> Any:
    flat = array.reshape(array.shape[0], -1)
    return ((flat * flat).sum(1) ** 0.5).mean()
