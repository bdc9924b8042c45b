"""DPM-Solver++ (2M) on the SDE, as CogVideoX has it (Yang et al. 2024).

``step`` takes the last clean sample from the caller and draws twice a step, as Diffusers' does, of
which it uses the second. The table draws once: given the noise that is used both give the same
trajectory, given the same seed they do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Grid, Options
from .cogvideox import CogVideoXAlphas, CogVideoXSettings
from .kinds import as_scalar, draw, host
from .linear import NOISE, Linear, X, slot
from .outputs import StepOutput
from .prediction import x0_of
from .table import Array, Row, Schedule, to_float32

NAMES = ("cogvideox-dpm",)

__all__ = ["CogVideoXDPMScheduler", "CogVideoXDPMSettings"]

_BEFORE = slot(1)  # the clean sample of the step before


@dataclass(frozen=True, kw_only=True)
class CogVideoXDPMSettings(CogVideoXSettings):
    """The settings of ``CogVideoXDPMScheduler``."""


class CogVideoXDPMScheduler(CogVideoXAlphas):
    """One model call a step; the clean sample of the step before is kept."""

    Settings = CogVideoXDPMSettings

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        t = grid.timesteps
        rows = [
            self._row(int(t[i]), int(t[i - 1]) if i > begin else None, grid.steps)
            for i in range(begin, len(t))
        ]
        return Schedule(rows=tuple(rows))

    def _row(self, t: int, back: int | None, steps: int | None) -> Row:
        assert steps is not None
        after = t - self.settings.num_train_timesteps // steps
        a, a_next = self._alpha(np.array([t, after]))
        signal, sigma = np.sqrt(a), np.sqrt(1 - a)
        x0 = x0_of(self.settings.prediction_type, signal, sigma)
        with np.errstate(all="ignore"):  # lambda is infinite where there is no signal or no noise
            lam, lam_next = _half_log_snr(a), _half_log_snr(a_next)
            h = lam_next - lam
            aim: Linear = x0
            if back is not None and after >= 0:
                r = (lam - _half_log_snr(self._alpha(np.array([back]))[0])) / h
                aim = float(1 + 1 / (2 * r)) * x0 - float(1 / (2 * r)) * _BEFORE
            keep = np.sqrt((1 - a_next) / (1 - a)) * np.exp(-h)
            update = keep * X - np.expm1(-2 * h) * np.sqrt(a_next) * aim
            fresh = np.sqrt(1 - a_next) * np.sqrt(1 - np.exp(-2 * h))
        return Row(
            timestep=t,
            update=(update + float(fresh) * NOISE, x0),
            denoised=x0,
            draws=True,
            noising=(float(signal), float(sigma)),
        )

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(  # type: ignore[override]
        self,
        model_output: Array,
        old_pred_original_sample: Array,
        timestep: Any,
        timestep_back: Any,
        sample: Array,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Array = None,
        return_dict: bool = False,
        *,
        noise: Array = None,
    ) -> Any:
        """One step down from any timestep, given the last clean sample and its timestep, or None.

        The result is a tuple at the first step and at the last, whatever ``return_dict``: as in
        Diffusers, where ``eta``, the clipping and ``variance_noise`` have no effect either.
        """
        self._check_steps()
        t = int(host(timestep))
        last = t < self.settings.num_train_timesteps // int(self.num_inference_steps or 1)
        first = old_pred_original_sample is None
        back = None if first or timestep_back is None else int(host(timestep_back))
        table = Schedule(rows=(self._row(t, back, self.num_inference_steps),))
        if noise is None:
            noise = draw(sample, generator, sample.dtype)
            if not (first or last):
                noise = draw(sample, generator, sample.dtype)
        before = to_float32(sample if first else old_pred_original_sample)
        state = (to_float32(sample), before)
        _, result = self._apply(table, 0, state, model_output, sample, noise, None, True)
        plain = first or last or not return_dict
        return result.to_tuple() if plain else StepOutput(result)

    def _get_variance(self, timestep: int, prev_timestep: int) -> Any:
        return as_scalar(self._posterior_variance(timestep, prev_timestep))


def _half_log_snr(a: Any) -> Any:
    return np.log(np.sqrt(a / (1 - a)))
