"""DEIS: an exponential integrator with polynomials in log rho (Zhang & Chen 2022, section 4).

rho = sigma / alpha is the noise level of a sample whose signal is scaled to one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import spacing
from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .linear import OUT, M, X, slot
from .multistep import MultistepLevels
from .noise_levels import descent, one_descent
from .prediction import epsilon_of, x0_of
from .rounded import exp32
from .sigmas import Floats, flow_shift
from .table import Array, Row, Schedule, Threshold

NAMES = ("deis-multistep",)

__all__ = ["DEISMultistepScheduler", "DEISSettings"]


@dataclass(frozen=True, kw_only=True)
class DEISSettings(BetaSettings):
    """The settings of ``DEISMultistepScheduler``."""

    solver_order: int = 2
    """How many model outputs a step combines: 1, 2 or 3."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample, v_prediction or flow_prediction."""
    thresholding: bool = False
    """Clamp the predicted clean sample to a quantile of itself."""
    dynamic_thresholding_ratio: float = 0.995
    """Which quantile."""
    sample_max_value: float = 1.0
    """The largest range of ``thresholding``."""
    algorithm_type: str = "deis"
    """deis, the only one."""
    solver_type: str = "logrho"
    """logrho, the only one."""
    lower_order_final: bool = True
    """Use lower orders at the end of fewer than fifteen steps."""
    use_karras_sigmas: bool = False
    """Descend as Karras et al. 2022 do."""
    use_exponential_sigmas: bool = False
    """Descend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Descend by a beta distribution; needs scipy."""
    use_flow_sigmas: bool = False
    """The levels are those of a flow: x = (1 - sigma) x0 + sigma n."""
    flow_shift: float = 1.0
    """Moves a flow's levels towards noise."""
    timestep_spacing: str = "linspace"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""
    use_dynamic_shifting: bool = False
    """Shift a flow's levels by ``mu``, from the picture's size."""
    time_shift_type: str = "exponential"
    """How mu shifts."""


class DEISMultistepScheduler(MultistepLevels):
    """One model call a step; up to two earlier outputs are kept."""

    Settings = DEISSettings
    family = KARRAS
    settings: DEISSettings

    def _checked(self, s: DEISSettings) -> DEISSettings:
        # The names of other classes' solvers, so that their configs can be handed over.
        if s.algorithm_type in ("dpmsolver", "dpmsolver++"):
            s = dataclasses.replace(s, algorithm_type="deis")
        if s.solver_type in ("midpoint", "heun", "bh1", "bh2"):
            s = dataclasses.replace(s, solver_type="logrho")
        choose("algorithm_type", s.algorithm_type, ("deis",))
        choose("solver_type", s.solver_type, ("logrho",))
        choose("solver_order", s.solver_order, (1, 2, 3))
        predictions = ("epsilon", "sample", "v_prediction", "flow_prediction")
        choose("prediction_type", s.prediction_type, predictions)
        one_descent(s)
        return s

    def _grid(self, request: Request) -> Grid:
        s, total, count = self.settings, self.settings.num_train_timesteps, request.count
        shift = self._flow_shift(request.mu)
        levels: Floats
        timesteps: Floats
        if descent(s) is not None:
            levels = self._descend(self._trained[::-1], count)
            timesteps = self._to_t(levels)
            timesteps, last = timesteps.round() if s.use_karras_sigmas else timesteps, levels[-1]
        elif s.use_flow_sigmas:
            rest = 1.0 - np.linspace(1, 1 / total, count + 1)
            levels = flow_shift(rest, shift)[::-1][:-1]
            timesteps, last = levels * total, levels[-1]
        else:
            timesteps = spacing.multistep(s.timestep_spacing, total, total, count, s.steps_offset)
            levels, last = self._interpolated(timesteps), self._trained[0]
        return Grid(
            timesteps=timesteps.astype(np.int64),
            sigmas=np.append(levels, last).astype(np.float32),
            steps=len(timesteps),
        )

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s, n, levels = self.settings, len(grid.timesteps), self._levels(grid)
        alphas, sigmas, lams = self._half_log_snr(levels)
        few = s.lower_order_final and n < 15
        rows = []
        for i in range(begin, n):
            alpha, sigma = float(alphas[i]), float(sigmas[i])
            flow = s.prediction_type == "flow_prediction"
            x0 = x0_of(s.prediction_type, alpha, float(levels[i]) if flow else sigma)
            if s.thresholding:
                noise = (X - alpha * M) / sigma
            elif flow:
                noise = (1 - float(levels[i])) * OUT + X
            else:
                noise = epsilon_of(s.prediction_type, alpha, sigma)
            outputs = [noise, *(slot(k) for k in range(1, s.solver_order))]
            order = min(s.solver_order, i - begin + 1, *[n - i] * few)
            if order == 1:
                h = lams[i + 1] - lams[i]
                after = (alphas[i + 1] / alphas[i]) * X
                after -= (sigmas[i + 1] * (exp32(h) - 1)) * outputs[0]
            else:
                rho = (sigmas / alphas)[i + 1 :: -1][: order + 1]  # of the end, then backwards
                after = X / alphas[i]
                for output, weight in zip(outputs, _weights(rho), strict=False):
                    after += weight * output
                after = alphas[i + 1] * after
            rows.append(
                Row(
                    timestep=int(grid.timesteps[i]),
                    convert=x0 if s.thresholding else None,
                    update=(after, *outputs[:-1]),
                    denoised=M if s.thresholding else x0,
                    noising=(alpha, sigma),
                )
            )
        ratio, maximum = s.dynamic_thresholding_ratio, s.sample_max_value
        return Schedule(
            rows=tuple(rows),
            threshold=Threshold(ratio=ratio, maximum=maximum) if s.thresholding else None,
        )

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, mu: float | None = None
    ) -> None:
        """Choose the steps for ``step``; ``mu`` shifts a flow's."""
        self._set(num_inference_steps, device, mu=mu)

    def step(
        self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True
    ) -> Any:
        """One step down; see ``Scheduler.step``."""
        return self._step(model_output, timestep, sample, return_dict)


def _weights(rho: Floats) -> list[Any]:
    """What each output counts: the integral over rho, from ``rho[1]`` to ``rho[0]``, of the
    Lagrange polynomials in log rho at ``rho[1:]`` (eq. 15). float32, as Diffusers has it.
    """
    end, nodes = rho[0], rho[1:]

    def line(t: Any, b: Any, c: Any) -> Any:
        """An antiderivative of (log t - log c) / (log b - log c)."""
        return t * (-np.log(c) + np.log(t) - 1) / (np.log(b) - np.log(c))

    def parabola(t: Any, b: Any, c: Any, d: Any) -> Any:
        """An antiderivative of the quadratic that is one at b and zero at c and d."""
        log_t, log_c, log_d = np.log(t), np.log(c), np.log(d)
        above = t * (log_c * (log_d - log_t + 1) - log_d * log_t + log_d + log_t**2 - 2 * log_t + 2)
        return above / ((np.log(b) - log_c) * (np.log(b) - log_d))

    basis = line if len(nodes) == 2 else parabola
    turns = [np.roll(nodes, -k) for k in range(len(nodes))]
    return [basis(end, *turn) - basis(nodes[0], *turn) for turn in turns]
