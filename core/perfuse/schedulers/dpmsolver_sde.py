"""DPM-Solver++ (2S) on the reverse SDE, with Brownian noise (Lu et al. 2022b; k-diffusion).

Two model calls a step. The noise of both comes from one Brownian path: that of the second call
covers the interval of the first, so it is what the first drew plus something new, and a table row
can say so: the first draw is kept in the state.

Diffusers draws its path from torchsde, which this file does not need: the path here is made of the
pipeline's own noise, or, where ``step`` is called by hand, of a ``NoiseSource`` seeded with
``noise_sampler_seed``. Given the same path both give the same trajectory; the same seed does not
give the same path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.arrays.noise import NoiseSource

from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .euler import input_scales, level_x0
from .linear import NOISE, OUT, Linear, X, slot
from .noise_levels import ScaledLevels, one_descent
from .rounded import exp32, log32
from .table import Array, Row, Schedule

__all__ = ["DPMSolverSDEScheduler", "DPMSolverSDESettings"]

_SAVED, _DRAWN = slot(1), slot(2)  # of the first call: its sample, and its noise


@dataclass(frozen=True, kw_only=True)
class DPMSolverSDESettings(BetaSettings):
    """The settings of ``DPMSolverSDEScheduler``."""

    beta_start: float = 0.00085
    """Variance added by the first training timestep."""
    beta_end: float = 0.012
    """Variance added by the last."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon or v_prediction."""
    use_karras_sigmas: bool = False
    """Descend as Karras et al. do."""
    use_exponential_sigmas: bool = False
    """Descend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Descend by a beta distribution; needs scipy."""
    noise_sampler_seed: int | None = None
    """The seed of the noise of ``step``; None for random noise."""
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""


class DPMSolverSDEScheduler(ScaledLevels):
    """Two model calls a step, but one for the last."""

    Settings = DPMSolverSDESettings
    family = KARRAS
    order = 2
    settings: DPMSolverSDESettings

    def _checked(self, s: DPMSolverSDESettings) -> DPMSolverSDESettings:
        choose("prediction_type", s.prediction_type, ("epsilon", "v_prediction"))
        one_descent(s)
        return s

    def _untimed(self) -> Grid:
        return self._grid(Request(num_inference_steps=self.settings.num_train_timesteps))

    def _grid(self, request: Request) -> Grid:
        timesteps, levels = self._visited(request)
        log_levels = np.log(levels)
        between = self._to_t(np.exp(log_levels[:-1] + np.diff(log_levels) * 0.5))
        calls = np.stack([between, timesteps[1:]], axis=1).ravel()
        levels = np.append(levels, 0.0).astype(np.float32)
        return Grid(
            timesteps=np.append(timesteps[:1], calls).astype(np.float64),
            sigmas=np.concatenate([levels[:1], np.repeat(levels[1:-1], 2), levels[-1:]]),
            steps=len(timesteps),
        )

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        prediction, levels = self.settings.prediction_type, self._levels(grid)
        rows = []
        for i in range(begin, len(grid.timesteps)):
            first = i // 2 * 2
            high, low = levels[first], levels[first + 1]
            log_high = log32(high)
            middle = exp32(log_high + (log32(low) - log_high) * np.float32(0.5))
            here = high if i == first else middle
            x0 = level_x0(prediction, here)
            noise: Linear = NOISE
            if low == 0:
                slope = OUT if prediction == "epsilon" else (X - x0) / high
                update = X - high * slope
            elif i == first:
                update = _toward(X, x0, high, middle, noise * options.s_noise)
            else:
                # The path from high to low: the part that the first call drew, and the rest.
                noise = _DRAWN * float(np.sqrt((high - middle) / (high - low)))
                noise += NOISE * float(np.sqrt((middle - low) / (high - low)))
                update = _toward(_SAVED, x0, high, low, noise * options.s_noise)
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(update, X, NOISE) if low > 0 else (update, X, X),
                    denoised=x0,
                    draws=bool(low > 0),
                    input_scale=float(input_scales(np.array([here]))[0]),
                    noising=(1.0, float(levels[i])),
                )
            )
        return Schedule(rows=tuple(rows), init_noise_sigma=self._first_sigma(grid))

    def _place(self, grid: Grid) -> None:
        super()._place(grid)
        seed = self.settings.noise_sampler_seed
        self._source = None if seed is None else NoiseSource(seed)

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
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        return_dict: bool = True,
        s_noise: float = 1.0,
        *,
        noise: Array = None,
    ) -> Any:
        """One call on; see ``Scheduler.step``."""
        return self._step(
            model_output,
            timestep,
            sample,
            return_dict,
            options=Options(s_noise=s_noise),
            generator=self._source if noise is None else None,
            noise=noise,
        )


def _toward(x: Linear, x0: Linear, high: Any, low: Any, noise: Linear) -> Linear:
    """From level ``high`` below ``low`` and up to it again with noise."""
    up = low * np.minimum(1, np.sqrt((np.square(high) - np.square(low)) / np.square(high)))
    down = np.sqrt(np.square(low) - np.square(up))
    ratio = down / high
    after: Linear = ratio * x + (1 - ratio) * x0 + float(up) * noise
    return after
