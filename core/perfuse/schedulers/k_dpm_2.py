"""DPM-Solver-2 in the form of Karras et al. 2022 (Alg. 2): the midpoint method in log sigma.

Two model calls a step: one at its start, and one at the geometric mean of its two levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings, Float32s
from .euler import input_scales, level_x0
from .linear import OUT, X, slot
from .noise_levels import ScaledLevels, one_descent
from .rounded import exp32, log32
from .table import Array, Row, Schedule

__all__ = ["KDPM2DiscreteScheduler", "KDPM2Settings", "geometric_mean"]


@dataclass(frozen=True, kw_only=True)
class KDPM2Settings(BetaSettings):
    """The settings of ``KDPM2DiscreteScheduler``."""

    beta_start: float = 0.00085
    """Variance added by the first training timestep."""
    beta_end: float = 0.012
    """Variance added by the last."""
    use_karras_sigmas: bool = False
    """Descend as Karras et al. do."""
    use_exponential_sigmas: bool = False
    """Descend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Descend by a beta distribution; needs scipy."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon or v_prediction."""
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""


class KDPM2DiscreteScheduler(ScaledLevels):
    """Two model calls a step, but one for the last."""

    Settings = KDPM2Settings
    family = KARRAS
    order = 2
    settings: KDPM2Settings

    def _checked(self, s: KDPM2Settings) -> KDPM2Settings:
        choose("prediction_type", s.prediction_type, ("epsilon", "v_prediction"))
        one_descent(s)
        return s

    def _untimed(self) -> Grid:
        return self._grid(Request(num_inference_steps=self.settings.num_train_timesteps))

    def _grid(self, request: Request) -> Grid:
        timesteps, levels = self._visited(request, round_karras=True)
        levels = np.append(levels, 0.0).astype(np.float32)
        between = self._to_t(geometric_mean(levels[:-2], levels[1:-1])).astype(timesteps.dtype)
        calls = np.stack([between, timesteps[1:]], axis=1).ravel()
        return Grid(
            timesteps=np.append(timesteps[:1], calls),
            sigmas=np.concatenate([levels[:1], np.repeat(levels[1:], 2), levels[-1:]]),
            steps=len(timesteps),
        )

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        prediction, levels = self.settings.prediction_type, self._levels(grid)
        rows = []
        for i in range(begin, len(grid.timesteps)):
            first = i // 2 * 2
            high, low = levels[first], levels[first + 1]
            middle = geometric_mean(low, high)
            here, there = (high, middle) if i == first else (middle, low)
            x0 = level_x0(prediction, here)
            slope = OUT if prediction == "epsilon" else (X - x0) / here
            origin = X if i == first else slot(1)
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(origin + (there - high) * slope, origin),
                    denoised=x0,
                    input_scale=float(input_scales(np.array([here]))[0]),
                    noising=(1.0, float(levels[i])),
                )
            )
        return Schedule(rows=tuple(rows), init_noise_sigma=self._first_sigma(grid))

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of a step."""
        return self._run is None or self._run.row % 2 == 0

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: Any = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device, num_train_timesteps=num_train_timesteps)

    def step(
        self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True
    ) -> Any:
        """One call on; see ``Scheduler.step``."""
        return self._step(model_output, timestep, sample, return_dict)


def geometric_mean(a: Float32s, b: Float32s) -> Float32s:
    """The level in the middle of two on a logarithmic scale; zero if one of them is."""
    log_a, log_b = log32(a), log32(b)
    with np.errstate(invalid="ignore"):
        middle = log_b - (log_b - log_a) * np.float32(0.5)
    mean: Float32s = exp32(np.where(np.isneginf(log_a) | np.isneginf(log_b), -np.inf, middle))
    return mean
