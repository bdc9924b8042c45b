"""Linear multistep: Adams-Bashforth between unequal noise levels (Katherine Crowson, k-diffusion)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial

from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .euler import input_scales, level_x0
from .linear import OUT, X, slot
from .noise_levels import ScaledLevels, one_descent
from .sigmas import Floats
from .table import Array, Row, Schedule

__all__ = ["LMSDiscreteScheduler", "LMSSettings"]


@dataclass(frozen=True, kw_only=True)
class LMSSettings(BetaSettings):
    """The settings of ``LMSDiscreteScheduler``."""

    use_karras_sigmas: bool = False
    """Descend as Karras et al. 2022 do."""
    use_exponential_sigmas: bool = False
    """Descend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Descend by a beta distribution; needs scipy."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample or v_prediction."""
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""


class LMSDiscreteScheduler(ScaledLevels):
    """One model call a step; up to three earlier derivatives are kept."""

    Settings = LMSSettings
    family = KARRAS
    settings: LMSSettings

    def _checked(self, s: LMSSettings) -> LMSSettings:
        choose("prediction_type", s.prediction_type, ("epsilon", "sample", "v_prediction"))
        one_descent(s)
        return s

    def _untimed(self) -> Grid:
        return self._grid(Request(num_inference_steps=self.settings.num_train_timesteps))

    def _grid(self, request: Request) -> Grid:
        timesteps, levels = self._visited(request)
        return Grid(
            timesteps=timesteps.astype(np.float32),
            sigmas=np.append(levels, 0.0).astype(np.float32),
            steps=len(timesteps),
        )

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        prediction, levels = self.settings.prediction_type, self._levels(grid)
        scales = input_scales(levels)
        past = [slot(k) for k in range(1, options.order)]
        rows = []
        for i in range(begin, len(grid.timesteps)):
            x0 = level_x0(prediction, levels[i])
            slope = OUT if prediction == "epsilon" else (X - x0) / levels[i]
            update = X
            # As in Diffusers the weights are those of the whole schedule even where a run begins
            # inside it, and the derivatives that are missing there count as nothing.
            weights = _weights(levels[: i + 2].astype(np.float64), min(i + 1, options.order))
            for weight, derivative in zip(weights[: i - begin + 1], [slope, *past], strict=False):
                update += weight * derivative
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(update, *[slope, *past][: len(past)]),
                    denoised=x0,
                    input_scale=float(scales[i]),
                    noising=(1.0, float(levels[i])),
                )
            )
        return Schedule(rows=tuple(rows), init_noise_sigma=self._first_sigma(grid))

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        order: int = 4,
        return_dict: bool = True,
    ) -> Any:
        """One step down, from up to ``order`` derivatives; see ``Scheduler.step``."""
        options = Options(order=order)
        return self._step(model_output, timestep, sample, return_dict, options=options)

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The weight of the derivative ``current_order`` steps back, in a step of this order."""
        levels = self._levels(self._now)[: t + 2].astype(np.float64)
        return _weights(levels, order)[current_order]


def _weights(levels: Floats, order: int) -> list[float]:
    """Integrals, over the last step of ``levels``, of the Lagrange polynomials at those before."""
    known = levels[:-1][::-1][:order]
    weights = []
    for j, level in enumerate(known):
        basis = Polynomial([1.0])
        for other in np.delete(known, j):
            basis *= Polynomial([-other, 1.0]) / (level - other)
        integral = basis.integ(lbnd=levels[-2])
        weights.append(float(integral(levels[-1])))
    return weights
