"""Heun's method on a rectified flow (Esser et al. 2024; Karras et al. 2022, Alg. 1).

Two model calls a step: one at its start, and one at the end that Euler's method reaches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Grid, Options, Request
from .betas import Float32s
from .euler import churned, refuse_index
from .linear import OUT, X, slot
from .noise_levels import NoiseLevels
from .sigmas import flow_shift
from .table import Array, Row, Schedule

__all__ = ["FlowMatchHeunDiscreteScheduler", "FlowMatchHeunSettings"]

_SLOPE, _SAVED = slot(1), slot(2)  # of the first call: its derivative, and its sample


@dataclass(frozen=True, kw_only=True)
class FlowMatchHeunSettings:
    """The settings of ``FlowMatchHeunDiscreteScheduler``."""

    num_train_timesteps: int = 1000
    """What sigma is multiplied by to be a timestep."""
    shift: float = 1.0
    """Moves the levels towards noise, for larger pictures."""


class FlowMatchHeunDiscreteScheduler(NoiseLevels):
    """Two model calls a step, but one for the last; the levels are shifted twice."""

    Settings = FlowMatchHeunSettings
    order = 2
    second = None
    casts_to_output = True
    remembers_float32 = True
    settings: FlowMatchHeunSettings

    def _prepare(self) -> None:
        total = self.settings.num_train_timesteps
        levels = np.arange(total, 0, -1, dtype=np.float32) / np.float32(total)
        self._trained = flow_shift(levels, self.settings.shift).astype(np.float32)
        self.sigma_max, self.sigma_min = float(self._trained[0]), float(self._trained[-1])

    def _untimed(self) -> Grid:
        total = np.float32(self.settings.num_train_timesteps)
        return Grid(timesteps=self._trained * total, sigmas=self._trained, steps=None)

    def _grid(self, request: Request) -> Grid:
        total, count = self.settings.num_train_timesteps, request.count
        even = np.linspace(self.sigma_max * total, self.sigma_min * total, count) / total
        levels = flow_shift(even, self.settings.shift).astype(np.float32)
        timesteps = levels * np.float32(total)
        return Grid(
            timesteps=np.append(timesteps[:1], np.repeat(timesteps[1:], 2)),
            sigmas=np.concatenate([levels[:1], np.repeat(levels[1:], 2), np.zeros(1, np.float32)]),
            steps=count,
        )

    def _signal(self, sigma: Float32s) -> tuple[Float32s, Float32s]:
        return np.float32(1) - sigma, sigma

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        levels = self._ended(grid)
        rows = []
        for i in range(begin, len(grid.timesteps)):
            corrects = (i - begin) % 2 == 1
            high = levels[i - 1] if corrects else levels[i]
            low = levels[i] if corrects else levels[i + 1]
            at, hat = churned(options, high, len(levels) - 1)
            if corrects:  # the churn of this call is added and taken away again, as in Diffusers
                slope = (_SLOPE + OUT) / 2
                update = _SAVED + (low - hat) * slope
            else:
                slope = float(high / hat) * OUT
                update = at + (low - hat) * slope
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(update, slope, _SAVED if corrects else at),
                    denoised=X - float(levels[i]) * OUT,
                    draws=bool(hat > high),
                    noising=(float(np.float32(1) - levels[i]), float(levels[i])),
                )
            )
        return Schedule(rows=tuple(rows))

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of a step."""
        return self._run is None or self._run.row % 2 == 0

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One call on, with as much churn as asked for; see ``Scheduler.step``."""
        refuse_index(timestep)
        options = Options(s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
        return self._step(
            model_output,
            timestep,
            sample,
            return_dict,
            options=options,
            generator=generator,
            noise=noise,
        )

    def scale_noise(self, sample: Array, timestep: Any, noise: Array = None) -> Array:
        """Diffusers' name for ``add_noise``, with its order of arguments."""
        return self.add_noise(sample, noise, timestep)
