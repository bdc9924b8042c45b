"""DPM-Solver and DPM-Solver++, singlestep, orders 1 to 3 (Lu et al. 2022a, 2022b).

Steps come in blocks of one, two or three model calls; each goes on from the block's first sample.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from . import spacing
from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .exponential import Exponential, points_of
from .linear import Linear, M, X, slot
from .multistep import MultistepLevels
from .noise_levels import descent, len_or_count, one_descent
from .prediction import epsilon_of, x0_of
from .rounded import log32
from .sigmas import Floats, flow_shift
from .table import Array, Row, Schedule, Threshold

NAMES = ("dpmsolver++-singlestep", "dpm++-singlestep")

__all__ = ["DPMSolverSinglestepScheduler", "DPMSolverSinglestepSettings"]

_SAVED = slot(1)  # the sample that the block started from
_PAST = (slot(2), slot(3))  # the last two outputs, newest first


@dataclass(frozen=True, kw_only=True)
class DPMSolverSinglestepSettings(BetaSettings):
    """The settings of ``DPMSolverSinglestepScheduler``."""

    solver_order: int = 2
    """How many model calls a block has: 1, 2 or 3."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon, sample, v_prediction or flow_prediction."""
    thresholding: bool = False
    """Clamp the predicted clean sample to a quantile of itself."""
    dynamic_thresholding_ratio: float = 0.995
    """Which quantile."""
    sample_max_value: float = 1.0
    """The largest range of ``thresholding``."""
    algorithm_type: str = "dpmsolver++"
    """Solve for the noise (dpmsolver) or for the clean sample (++), as an ODE or an SDE (sde-)."""
    solver_type: str = "midpoint"
    """The formula of the higher orders: midpoint or heun."""
    lower_order_final: bool = False
    """Use lower orders at the end, so that any number of steps can be taken."""
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
    final_sigmas_type: str = "zero"
    """Where the last step ends: zero, or sigma_min."""
    lambda_min_clipped: float = -math.inf
    """Leave out the training timesteps whose half log-SNR is below this."""
    variance_type: str | None = None
    """learned or learned_range: the output's second half of channels is not used."""
    use_dynamic_shifting: bool = False
    """Shift a flow's levels by ``mu``, from the picture's size."""
    time_shift_type: str = "exponential"
    """How mu shifts."""


class DPMSolverSinglestepScheduler(MultistepLevels):
    """One model call a step; a block of steps is one of the solver's."""

    Settings = DPMSolverSinglestepSettings
    family = KARRAS
    settings: DPMSolverSinglestepSettings

    def _checked(self, s: DPMSolverSinglestepSettings) -> DPMSolverSinglestepSettings:
        # The names of other classes' solvers, so that their configs can be handed over.
        if s.algorithm_type == "deis":
            s = dataclasses.replace(s, algorithm_type="dpmsolver++")
        if s.solver_type in ("logrho", "bh1", "bh2"):
            s = dataclasses.replace(s, solver_type="midpoint")
        algorithms = ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")
        choose("algorithm_type", s.algorithm_type, algorithms)
        choose("solver_type", s.solver_type, ("midpoint", "heun"))
        choose("final_sigmas_type", s.final_sigmas_type, ("zero", "sigma_min"))
        choose("variance_type", s.variance_type, (None, "learned", "learned_range"))
        choose("solver_order", s.solver_order, (1, 2, 3))
        plus = s.algorithm_type.endswith("++")
        predictions = ("epsilon", "sample", "v_prediction")
        choose("prediction_type", s.prediction_type, (*predictions, *["flow_prediction"] * plus))
        if not plus and s.final_sigmas_type == "zero":
            raise InputError(
                f"algorithm_type {s.algorithm_type!r} cannot step to level zero. Use "
                "final_sigmas_type='sigma_min', or algorithm_type='dpmsolver++'."
            )
        if not plus and s.thresholding:
            raise InputError(
                "thresholding needs the clean sample, which algorithm_type 'dpmsolver' does not "
                "solve for. Use algorithm_type='dpmsolver++'."
            )
        one_descent(s)
        return s

    def _grid(self, request: Request) -> Grid:
        s, count = self.settings, len_or_count(request)
        shaped = descent(s) is not None or s.use_flow_sigmas
        if request.timesteps is not None and descent(s) is not None:
            raise InputError(
                f"timesteps= cannot be used with {descent(s)}: the levels decide the timesteps "
                "there. Pass num_inference_steps."
            )
        if shaped:
            levels, timesteps = self._shaped(request, count)
        else:
            timesteps = self._evenly(request, count)
            levels = self._interpolated(timesteps)
        last = self._trained[0] if s.final_sigmas_type == "sigma_min" else 0.0
        return Grid(
            timesteps=timesteps.astype(np.int64),
            sigmas=np.append(levels, last).astype(np.float32),
            steps=count,
        )

    def _evenly(self, request: Request, count: int) -> npt.NDArray[Any]:
        if request.timesteps is not None:
            return np.asarray(request.timesteps, dtype=np.int64)
        s, a = self.settings, self._alphas_cumprod
        rising = (log32(np.sqrt(a)) - log32(np.sqrt(np.float32(1) - a)))[::-1]
        last = len(a) - int(np.searchsorted(rising, np.float32(s.lambda_min_clipped)))
        return spacing.multistep("linspace", s.num_train_timesteps, last, count, 0)

    def _shaped(self, request: Request, count: int) -> tuple[Floats, Floats]:
        """Levels of a chosen descent or of a flow, and the timesteps that they stand for."""
        s, total = self.settings, self.settings.num_train_timesteps
        if descent(s) is None:
            shift = self._flow_shift(request.mu)
            rest = 1.0 - np.linspace(1, 1 / total, count + 1)
            levels = flow_shift(rest, shift)[::-1][:-1]
            return levels, levels * total
        levels = self._descend(self._trained[::-1], count)
        timesteps = self._to_t(levels)
        return levels, timesteps.round() if s.use_karras_sigmas else timesteps

    def _orders(self, steps: int) -> list[int]:
        """Which of its block each step is, counted from one."""
        s = self.settings
        order = s.solver_order
        uneven = steps % order != 0 or s.final_sigmas_type == "zero"
        blocks, rest = divmod(steps, order)
        orders = list(range(1, order + 1)) * blocks + list(range(1, rest + 1))
        if (s.lower_order_final or uneven) and order > 1 and rest == 0:
            # The last step must be of first order: the last block is cut in two.
            orders[-order:] = [1, 2, 1] if order == 3 else [1, 1]
        if s.final_sigmas_type == "zero":
            orders[-1] = 1
        return orders

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s, n = self.settings, len(grid.timesteps)
        levels = self._levels(grid)
        points = points_of(*self._half_log_snr(levels))
        plus, sde = s.algorithm_type.endswith("++"), s.algorithm_type.startswith("sde")
        solver = Exponential(plus=plus, sde=sde)
        orders = self._orders(n)
        rows = []
        for i in range(begin, n):
            at = points[i]
            level = levels[i] if s.prediction_type == "flow_prediction" else at.sigma
            x0 = x0_of(s.prediction_type, at.alpha, level)
            outputs: list[Linear] = [M, *_PAST]
            order = min(orders[i], i - begin + 1)
            x = X if order == 1 else _SAVED
            with np.errstate(all="ignore"):  # the schedule refuses non-finite values
                update = solver.singlestep(x, outputs, points[i - order + 1 : i + 2], s.solver_type)
            rows.append(
                Row(
                    timestep=int(grid.timesteps[i]),
                    convert=x0 if plus else epsilon_of(s.prediction_type, at.alpha, at.sigma),
                    update=(update, x, *outputs[:2]),
                    denoised=M if plus else x0,
                    draws=sde,
                    noising=(float(at.alpha), float(at.sigma)),
                )
            )
        ratio, maximum = s.dynamic_thresholding_ratio, s.sample_max_value
        return Schedule(
            rows=tuple(rows),
            threshold=Threshold(ratio=ratio, maximum=maximum) if s.thresholding else None,
            drops_variance=s.variance_type is not None and s.prediction_type == "epsilon",
        )

    @property
    def order_list(self) -> list[int]:
        """Which of its block each step is, counted from one."""
        return self._orders(len(self._timesteps))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the steps for ``step``, as many or exactly these; ``mu`` shifts a flow's."""
        self._set(num_inference_steps, device, mu=mu, timesteps=timesteps)

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
