"""Euler's method with the preconditioning of Karras et al. 2022 (Alg. 2 without its correction)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from perfuse.errors import InputError

from .base import KARRAS, Grid, Options, Request
from .edm import EDMLevels, EDMSettings
from .euler import churned, refuse_index
from .kinds import cast
from .outputs import StepOutput
from .sigmas import Floats
from .table import Array, Row, Schedule, to_float32

__all__ = ["EDMEulerScheduler", "EDMEulerSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMEulerSettings(EDMSettings):
    """The settings of ``EDMEulerScheduler``."""


class EDMEulerScheduler(EDMLevels):
    """One model call a step; the model's timestep is log(sigma) / 4."""

    Settings = EDMEulerSettings
    family = KARRAS
    hands_to = ""  # it is taken for one of the family, and takes itself for none
    needs_steps = False
    casts_to_output = True
    settings: EDMEulerSettings

    def _untimed(self) -> Grid:
        total = self.settings.num_train_timesteps
        grid = self._along(np.arange(total + 1, dtype=np.float64) / total)
        return dataclasses.replace(grid, steps=None)

    def _grid(self, request: Request) -> Grid:
        if request.sigmas is None:
            return self._along(np.linspace(0, 1, request.count))
        if request.num_inference_steps is not None:
            raise InputError("Pass num_inference_steps or sigmas=, not both.")
        return self._along(np.asarray(request.sigmas, dtype=np.float64))

    def _along(self, ramp: Floats) -> Grid:
        levels = self._descent(ramp)
        last = levels[-1] if self.settings.final_sigmas_type == "sigma_min" else np.float32(0)
        return Grid(
            timesteps=self._model_timesteps(levels),
            sigmas=np.append(levels, last),
            steps=len(levels),
        )

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        levels, prediction = self._levels(grid), self.settings.prediction_type
        rows = []
        for i in range(begin, len(grid.timesteps)):
            sigma = levels[i]
            at, hat = churned(options, sigma, len(levels) - 1)
            x0 = self._denoised(hat, prediction).substitute({0: at})
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(at + (levels[i + 1] - hat) * ((at - x0) / hat),),
                    denoised=self._denoised(sigma, prediction),
                    second=x0,
                    draws=bool(hat > sigma),
                    input_scale=self._input_scale(sigma),
                    noising=(1.0, float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows), init_noise_sigma=self._init_noise_sigma(grid))

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None
    ) -> None:
        """Choose the steps for ``step``; ``sigmas`` are places on the descent, from zero to one."""
        self._set(num_inference_steps, device, sigmas=sigmas)

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
        pred_original_sample: Array = None,
        *,
        noise: Array = None,
    ) -> Any:
        """One step down, towards ``pred_original_sample`` if given; see ``Scheduler.step``."""
        refuse_index(timestep)
        if pred_original_sample is not None:
            return self._toward(pred_original_sample, model_output, timestep, sample, return_dict)
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

    def _toward(
        self, clean: Array, model_output: Array, timestep: Any, sample: Array, return_dict: bool
    ) -> Any:
        run = self._running(timestep)
        here, there = self._levels(run.grid)[run.index : run.index + 2].tolist()
        x = to_float32(sample)
        after = x + (x - to_float32(clean)) / here * (there - here)
        self._run = dataclasses.replace(run, index=run.index + 1)
        result = StepOutput(prev_sample=cast(after, model_output.dtype), pred_original_sample=clean)
        return result if return_dict else result.to_tuple()
