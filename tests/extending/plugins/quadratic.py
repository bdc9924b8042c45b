"""A scheduler: DDIM's steps (Song et al. 2020, eq. 12) at timesteps that crowd towards the end."""

from dataclasses import dataclass

import numpy as np

from perfuse import hookimpl
from perfuse.schedulers.base import Grid
from perfuse.schedulers.betas import BetaSettings
from perfuse.schedulers.linear import X
from perfuse.schedulers.table import Row, Schedule
from perfuse.schedulers.variance_preserving import VariancePreserving, converted, falling


@hookimpl
def perfuse_schedulers():
    return {"QuadraticScheduler": f"{__name__}:QuadraticScheduler"}


@dataclass(frozen=True, kw_only=True)
class Settings(BetaSettings):
    prediction_type: str = "epsilon"


class QuadraticScheduler(VariancePreserving):
    Settings = Settings

    def _grid(self, request):
        last = self.settings.num_train_timesteps - 1
        rising = np.linspace(0, 1, request.count) ** 2 * last
        return Grid(timesteps=rising.round().astype(np.int64)[::-1], steps=request.count)

    def _table(self, grid, begin, options):
        here, after = grid.timesteps, falling(grid.timesteps, -1)
        rows = []
        for t, a, a_after in zip(here, self._alpha(here), self._alpha(after), strict=True):
            signal, sigma = np.sqrt(a), np.sqrt(1 - a)
            _, x0 = converted(self.settings.prediction_type, signal, sigma, False)
            noise = (X - signal * x0) / sigma
            rows.append(
                Row(
                    timestep=int(t),
                    update=(np.sqrt(a_after) * x0 + np.sqrt(1 - a_after) * noise,),
                    denoised=x0,
                    noising=(float(signal), float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows[begin:]))

    def set_timesteps(self, num_inference_steps=None, device=None):
        self._set(num_inference_steps, device)

    def step(self, model_output, timestep, sample, return_dict=True):
        return self._step(model_output, timestep, sample, return_dict)
