"""DDIM backwards: from a clean sample up to the noise that DDIM would make it of (Song 2021)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Grid, Options, Request, choose
from .betas import BetaSettings
from .kinds import host, torch_here
from .prediction import PREDICTIONS, epsilon_of
from .sigmas import Floats
from .table import Array, Row, Schedule
from .variance_preserving import VariancePreserving, converted

__all__ = ["DDIMInverseScheduler", "DDIMInverseSettings"]


@dataclass(frozen=True, kw_only=True)
class DDIMInverseSettings(BetaSettings):
    """The settings of ``DDIMInverseScheduler``."""

    clip_sample: bool = True
    """Clamp the predicted clean sample."""
    set_alpha_to_one: bool = True
    """Let the first step start at no noise rather than at the first training timestep's."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample or v_prediction."""
    clip_sample_range: float = 1.0
    """The range of ``clip_sample``."""
    timestep_spacing: str = "leading"
    """leading or trailing."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be pure noise."""


class DDIMInverseScheduler(VariancePreserving):
    """A step may be taken at any timestep; it goes from the one below up to it."""

    Settings = DDIMInverseSettings
    _deprecated_kwargs = ["set_alpha_to_zero"]  # noqa: RUF012
    settings: DDIMInverseSettings

    def _make(self, settings: Mapping[str, Any]) -> None:
        settings = dict(settings)
        old = settings.pop("set_alpha_to_zero", None)
        if old is not None:
            warnings.warn(
                "set_alpha_to_zero is deprecated, as it is in Diffusers. Use set_alpha_to_one.",
                FutureWarning,
                stacklevel=4,
            )
            settings["set_alpha_to_one"] = old
        super()._make(settings)

    def _checked(self, s: DDIMInverseSettings) -> DDIMInverseSettings:
        choose("prediction_type", s.prediction_type, PREDICTIONS)
        return s

    def _untimed(self) -> Grid:
        return Grid(timesteps=np.arange(self.settings.num_train_timesteps), steps=None)

    @property
    def initial_alpha_cumprod(self) -> Any:
        """What is left of the signal where the first step starts."""
        torch = torch_here()
        return self._final_alpha if torch is None else torch.tensor(float(self._final_alpha))

    def _grid(self, request: Request) -> Grid:
        s, total, count = self.settings, self.settings.num_train_timesteps, request.count
        self._not_too_many(count)
        choose("timestep_spacing", s.timestep_spacing, ("leading", "trailing"))
        points: Floats
        if s.timestep_spacing == "leading":
            points = np.arange(count) * (total // count) + s.steps_offset
        else:
            points = np.round(np.arange(total, 0, -total / count)[::-1]) - 1
        return Grid(timesteps=points.astype(np.int64), steps=count)

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s, total = self.settings, self.settings.num_train_timesteps
        assert grid.steps is not None
        t = grid.timesteps[begin:]
        below = np.minimum(t - total // grid.steps, total - 1)
        a, a_next = self._alpha(below), self._alpha(t)
        one = np.float32(1)
        rows = []
        for i, step in enumerate(t.tolist()):
            signal, sigma = np.sqrt(a[i]), np.sqrt(one - a[i])
            convert, x0 = converted(s.prediction_type, signal, sigma, s.clip_sample)
            with np.errstate(all="ignore"):  # the schedule refuses non-finite values
                epsilon = epsilon_of(s.prediction_type, signal, sigma)
            rows.append(
                Row(
                    timestep=step,
                    convert=convert,
                    update=(np.sqrt(a_next[i]) * x0 + np.sqrt(one - a_next[i]) * epsilon,),
                    denoised=x0,
                    noising=(float(signal), float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows), clip=s.clip_sample_range if s.clip_sample else None)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(
        self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True
    ) -> Any:
        """One step up to any timestep; see ``Scheduler.step``."""
        self._check_steps()
        grid = Grid(timesteps=np.array([int(host(timestep))]), steps=self.num_inference_steps)
        return self._step_alone(self._table(grid, 0, Options()), model_output, sample, return_dict)
