"""DDIM as CogVideoX has it: written with the sample and the clean sample (Yang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Grid, Options
from .cogvideox import CogVideoXAlphas, CogVideoXSettings
from .kinds import as_scalar, host
from .linear import X
from .prediction import x0_of
from .table import Array, Row, Schedule

NAMES = ("cogvideox-ddim",)

__all__ = ["CogVideoXDDIMScheduler", "CogVideoXDDIMSettings"]


@dataclass(frozen=True, kw_only=True)
class CogVideoXDDIMSettings(CogVideoXSettings):
    """The settings of ``CogVideoXDDIMScheduler``."""


class CogVideoXDDIMScheduler(CogVideoXAlphas):
    """One model call a step, no history, no noise."""

    Settings = CogVideoXDDIMSettings

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        assert grid.steps is not None
        t = grid.timesteps[begin:]
        a = self._alpha(t)
        a_next = self._alpha(t - self.settings.num_train_timesteps // grid.steps)
        rows = []
        for i, step in enumerate(t.tolist()):
            signal, sigma = np.sqrt(a[i]), np.sqrt(1 - a[i])
            x0 = x0_of(self.settings.prediction_type, signal, sigma)
            kept = np.sqrt((1 - a_next[i]) / (1 - a[i]))
            rows.append(
                Row(
                    timestep=step,
                    update=(kept * X + (np.sqrt(a_next[i]) - signal * kept) * x0,),
                    denoised=x0,
                    noising=(float(signal), float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows))

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Array = None,
        return_dict: bool = True,
    ) -> Any:
        """One step down from any timestep. What DDIM takes besides has no effect, as in Diffusers."""
        self._check_steps()
        grid = Grid(timesteps=np.array([int(host(timestep))]), steps=self.num_inference_steps)
        return self._step_alone(self._table(grid, 0, Options()), model_output, sample, return_dict)

    def _get_variance(self, timestep: int, prev_timestep: int) -> Any:
        return as_scalar(self._posterior_variance(timestep, prev_timestep))
