"""DPM-Solver-2 with ancestral noise (Karras et al. 2022, Alg. 2, as in k-diffusion).

Two model calls a step: the midpoint method below the next level, and noise up to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings, Float32s
from .euler import input_scales, level_x0
from .k_dpm_2 import geometric_mean
from .linear import NOISE, OUT, X, slot
from .noise_levels import ScaledLevels, one_descent
from .table import Array, Row, Schedule

__all__ = ["KDPM2AncestralDiscreteScheduler", "KDPM2AncestralSettings"]


@dataclass(frozen=True, kw_only=True)
class KDPM2AncestralSettings(BetaSettings):
    """The settings of ``KDPM2AncestralDiscreteScheduler``."""

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


class KDPM2AncestralDiscreteScheduler(ScaledLevels):
    """Two model calls a step, but one for the last; the second draws."""

    Settings = KDPM2AncestralSettings
    family = KARRAS
    order = 2
    settings: KDPM2AncestralSettings

    def _checked(self, s: KDPM2AncestralSettings) -> KDPM2AncestralSettings:
        choose("prediction_type", s.prediction_type, ("epsilon", "v_prediction"))
        one_descent(s)
        return s

    def _untimed(self) -> Grid:
        return self._grid(Request(num_inference_steps=self.settings.num_train_timesteps))

    def _grid(self, request: Request) -> Grid:
        timesteps, levels = self._visited(request, round_karras=True)
        levels = np.append(levels, 0.0).astype(np.float32)
        middle = _middle(levels[:-1], levels[1:])
        between = self._to_t(middle[:-1]).astype(timesteps.dtype)
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
            up, down = _up_and_down(high, low)
            middle = _middle(high, low)
            here, there = (high, middle) if i == first else (middle, down)
            x0 = level_x0(prediction, here)
            slope = OUT if prediction == "epsilon" else (X - x0) / here
            origin = X if i == first else slot(1)
            update = origin + (there - high) * slope
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(update if i == first else update + up * NOISE, origin),
                    denoised=x0,
                    draws=i != first,
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
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One call on; see ``Scheduler.step``."""
        return self._step(
            model_output, timestep, sample, return_dict, generator=generator, noise=noise
        )


def _up_and_down(high: Float32s, low: Float32s) -> tuple[Float32s, Float32s]:
    """The noise that is added at the end of a step, and the level before it is."""
    up = np.sqrt(np.square(low) * (np.square(high) - np.square(low)) / np.square(high))
    return up, np.sqrt(np.square(low) - np.square(up))


def _middle(high: Float32s, low: Float32s) -> Float32s:
    """The level of the second call: between the first one's and that before the noise."""
    return geometric_mean(_up_and_down(high, low)[1], high)
