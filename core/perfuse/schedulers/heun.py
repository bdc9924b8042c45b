"""Heun's method on the probability-flow ODE (Karras et al. 2022, Alg. 1).

Two model calls a step: one at its start, and one at the end that Euler's method reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .euler import input_scales, level_x0
from .linear import M, X, slot
from .noise_levels import ScaledLevels, one_descent
from .table import Array, Row, Schedule

__all__ = ["HeunDiscreteScheduler", "HeunSettings"]

_SLOPE, _SAVED = slot(1), slot(2)  # of the first call: its derivative, and its sample


@dataclass(frozen=True, kw_only=True)
class HeunSettings(BetaSettings):
    """The settings of ``HeunDiscreteScheduler``."""

    beta_start: float = 0.00085
    """Variance added by the first training timestep."""
    beta_end: float = 0.012
    """Variance added by the last."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample or v_prediction."""
    use_karras_sigmas: bool = False
    """Descend as Karras et al. do."""
    use_exponential_sigmas: bool = False
    """Descend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Descend by a beta distribution; needs scipy."""
    clip_sample: bool = False
    """Clamp the predicted clean sample."""
    clip_sample_range: float = 1.0
    """The range of ``clip_sample``."""
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""


class HeunDiscreteScheduler(ScaledLevels):
    """Two model calls a step, but one for the last."""

    Settings = HeunSettings
    family = KARRAS
    order = 2
    extra_betas = ("exp",)
    settings: HeunSettings

    def _checked(self, s: HeunSettings) -> HeunSettings:
        choose("prediction_type", s.prediction_type, ("epsilon", "sample", "v_prediction"))
        one_descent(s)
        return s

    def _untimed(self) -> Grid:
        return self._grid(Request(num_inference_steps=self.settings.num_train_timesteps))

    def _grid(self, request: Request) -> Grid:
        timesteps, levels = self._visited(request)
        levels = np.append(levels, 0.0).astype(np.float32)
        return Grid(
            timesteps=np.append(timesteps[:1], np.repeat(timesteps[1:], 2)).astype(np.float32),
            sigmas=np.concatenate([levels[:1], np.repeat(levels[1:-1], 2), levels[-1:]]),
            steps=len(timesteps),
        )

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s, levels = self.settings, self._levels(grid)
        scales = input_scales(levels)
        rows = []
        for i in range(begin, len(grid.timesteps)):
            corrects = (i - begin) % 2 == 1
            here = levels[i]
            x0 = level_x0(s.prediction_type, here)
            slope = (X - (M if s.clip_sample else x0)) / here
            if corrects:
                step = here - levels[i - 1]
                update = _SAVED + step * ((_SLOPE + slope) / 2)
            else:
                update = X + (levels[i + 1] - here) * slope
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    convert=x0 if s.clip_sample else None,
                    update=(update, _SLOPE if corrects else slope, _SAVED if corrects else X),
                    denoised=M if s.clip_sample else x0,
                    input_scale=float(scales[i]),
                    noising=(1.0, float(here)),
                )
            )
        return Schedule(
            rows=tuple(rows),
            init_noise_sigma=self._first_sigma(grid),
            clip=s.clip_sample_range if s.clip_sample else None,
        )

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of a step."""
        return self._run is None or self._run.row % 2 == 0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        num_train_timesteps: int | None = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the steps for ``step``, as many or exactly these."""
        self._set(
            num_inference_steps,
            device,
            num_train_timesteps=num_train_timesteps,
            timesteps=timesteps,
        )

    def step(
        self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True
    ) -> Any:
        """One call on; see ``Scheduler.step``."""
        return self._step(model_output, timestep, sample, return_dict)
