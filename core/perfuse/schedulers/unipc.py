"""UniPC: a predictor and a corrector of any order at one model call a step (Zhao et al. 2023)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perfuse.errors import InputError

from . import spacing
from .base import KARRAS, Grid, Options, Request, Scheduler, choose
from .betas import BetaSettings
from .linear import Linear, M, X, slot
from .multistep import MultistepLevels
from .noise_levels import descent, one_descent
from .prediction import epsilon_of, x0_of
from .rounded import expm1_32
from .sigmas import Floats, flow_shift, sigma_to_t, stretch_to_terminal, time_shift
from .table import Array, Row, Schedule, Threshold
from .variance_preserving import VariancePreserving

__all__ = ["UniPCMultistepScheduler", "UniPCSettings"]

_LAST = slot(1)  # the corrected sample of the step before


@dataclass(frozen=True, kw_only=True)
class UniPCSettings(BetaSettings):
    """The settings of ``UniPCMultistepScheduler``."""

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
    predict_x0: bool = True
    """Solve for the clean sample rather than for the noise."""
    solver_type: str = "bh2"
    """The function B(h): bh1 for h, bh2 for exp(h) - 1."""
    lower_order_final: bool = True
    """Use lower orders at the end, where the levels fall steeply."""
    disable_corrector: Sequence[int] = field(default_factory=list)
    """Steps whose result is not corrected."""
    solver_p: Any = None
    """Another scheduler of perfuse as the predictor; it must take the same steps."""
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
    final_sigmas_type: str = "zero"
    """Where the last step ends: zero, or sigma_min."""
    rescale_betas_zero_snr: bool = False
    """Let the last training timestep be almost pure noise."""
    use_dynamic_shifting: bool = False
    """Shift a flow's levels by ``mu``, from the picture's size."""
    time_shift_type: str = "exponential"
    """How mu shifts."""
    sigma_min: float | None = None
    """The lowest level of a shaped descent; None: the first training level."""
    sigma_max: float | None = None
    """The highest; None: the last training level."""
    shift_terminal: float | None = None
    """Stretch a flow's levels so that this is the last one."""


class UniPCMultistepScheduler(MultistepLevels):
    """The corrector improves the last sample with the output that was computed for the next."""

    Settings = UniPCSettings
    family = KARRAS
    settings: UniPCSettings

    def _checked(self, s: UniPCSettings) -> UniPCSettings:
        # The names of other classes' solvers, so that their configs can be handed over.
        if s.solver_type in ("midpoint", "heun", "logrho"):
            s = dataclasses.replace(s, solver_type="bh2")
        choose("solver_type", s.solver_type, ("bh1", "bh2"))
        choose("final_sigmas_type", s.final_sigmas_type, ("zero", "sigma_min"))
        choose("time_shift_type", s.time_shift_type, ("exponential", "linear"))
        predictions = ("epsilon", "sample", "v_prediction")
        flow = ["flow_prediction"] * s.predict_x0
        choose("prediction_type", s.prediction_type, (*predictions, *flow))
        if s.solver_p is not None and not isinstance(s.solver_p, Scheduler):
            raise InputError(
                f"solver_p must be a scheduler of perfuse, such as DDIMScheduler(); got "
                f"{s.solver_p!r}."
            )
        if s.shift_terminal is not None and not s.use_flow_sigmas:
            raise InputError("shift_terminal is for flows. Leave it out or set use_flow_sigmas.")
        if isinstance(s.solver_order, bool) or s.solver_order < 1:
            raise InputError(f"solver_order must be at least 1; got {s.solver_order!r}.")
        one_descent(s)
        return s

    def _grid(self, request: Request) -> Grid:
        s, total = self.settings, self.settings.num_train_timesteps
        if s.use_dynamic_shifting and request.mu is None:
            raise InputError(
                "use_dynamic_shifting=True needs mu=, the shift for this picture's size. Pass "
                "mu=, or make the scheduler with use_dynamic_shifting=False."
            )
        if request.sigmas is not None and not s.use_flow_sigmas:
            raise InputError("sigmas= is for flows. Pass num_inference_steps instead.")
        count = request.count if request.sigmas is None else len(request.sigmas)
        timesteps: Floats
        if descent(s) is None and not s.use_flow_sigmas:
            timesteps = spacing.multistep(s.timestep_spacing, total, total, count, s.steps_offset)
            levels = self._interpolated(timesteps)
            last = self._trained[0]
        else:
            levels, timesteps = self._shaped(request, count)
            last = levels[-1]
        end = last if s.final_sigmas_type == "sigma_min" else 0.0
        return Grid(
            timesteps=timesteps.astype(np.int64),
            sigmas=np.append(levels, end).astype(np.float32),
            steps=len(timesteps),
        )

    def _shaped(self, request: Request, count: int) -> tuple[Floats, Floats]:
        """Levels of a chosen descent or of a flow, and the timesteps that they stand for."""
        s, total = self.settings, self.settings.num_train_timesteps
        given = None if request.sigmas is None else np.array(request.sigmas)
        shape = descent(s)
        if shape is None:
            if given is None:
                given = np.linspace(1, 1 / total, count + 1)[:-1]
            levels = self._flow(given, request.mu)
            return levels, levels * total
        base = self._trained if given is None else given
        levels = self._descend(base[::-1], count)
        if shape != "use_karras_sigmas":
            return levels, sigma_to_t(levels, np.log(base))
        if s.use_flow_sigmas:
            levels = levels / (levels + 1)
            return levels, levels * total
        return levels, self._to_t(levels).round()

    def _flow(self, levels: Floats, mu: float | None) -> Floats:
        s = self.settings
        if s.use_dynamic_shifting and mu is not None:
            levels = time_shift(levels, mu, s.time_shift_type)
        else:
            levels = flow_shift(levels, s.flow_shift)
        if s.shift_terminal:  # zero means none, as in Diffusers
            levels = stretch_to_terminal(levels, s.shift_terminal)
        if abs(levels[0] - 1) < 1e-6:  # at level one nothing is left of the signal: lambda = -inf
            levels = levels.copy()
            levels[0] -= 1e-6
        return levels

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        s = self.settings
        levels, n = self._levels(grid), len(grid.timesteps)
        solver = _Solver(
            points=self._half_log_snr(levels), predict_x0=s.predict_x0, bh1=s.solver_type == "bh1"
        )
        past = [slot(2 + k) for k in range(s.solver_order)]  # earlier outputs, newest first
        predictor = self._predictor(grid, begin, 2 + s.solver_order)
        rows, order = [], 0
        for i in range(begin, n):
            sample = X
            with np.errstate(all="ignore"):  # the schedule refuses non-finite values
                if i > begin and i - 1 not in s.disable_corrector:
                    sample = solver.correct(i, order, past)
                order = min(s.solver_order, n - i) if s.lower_order_final else s.solver_order
                order = min(order, i - begin + 1)
                update = solver.predict(i, order, sample, [M, *past])
                memory: tuple[Linear, ...] = ()
                if predictor is not None:
                    update, *rest = predictor[i - begin](sample)
                    memory = tuple(rest)
            alpha, sigma = (float(v[i]) for v in solver.points[:2])
            x0 = x0_of(
                s.prediction_type,
                alpha,
                float(levels[i]) if s.prediction_type == "flow_prediction" else sigma,
            )
            noise = epsilon_of(s.prediction_type, alpha, sigma)
            rows.append(
                Row(
                    timestep=int(grid.timesteps[i]),
                    convert=x0 if s.predict_x0 else noise,
                    update=(update, sample, M, *past[:-1], *memory),
                    denoised=M if s.predict_x0 else x0,
                    noising=(alpha, sigma),
                )
            )
        ratio, maximum = s.dynamic_thresholding_ratio, s.sample_max_value
        clamps = s.thresholding and s.predict_x0
        return Schedule(
            rows=tuple(rows),
            threshold=Threshold(ratio=ratio, maximum=maximum) if clamps else None,
        )

    def _predictor(
        self, grid: Grid, begin: int, slots: int
    ) -> list[Callable[[Linear], tuple[Linear, ...]]] | None:
        """The updates of ``solver_p``, given the corrected sample; its state comes after ``slots``.

        Raises:
            InputError: it takes other steps, clamps, or draws.
        """
        solver = self.settings.solver_p
        if solver is None:
            return None
        if isinstance(solver, VariancePreserving):  # DDIM can step from any timestep
            table = solver._table(grid, begin, Options())
        else:
            table = solver.schedule(len(grid.timesteps), begin=begin)
        same = np.array_equal(table.timesteps, grid.timesteps[begin:].astype(np.float32))
        if not same or table.clip is not None or table.threshold is not None or any(table.draws):
            raise InputError(
                f"solver_p {type(solver).__name__} must take the same timesteps, without clamp and "
                "noise. Make it from this scheduler's config, with clip_sample=False."
            )

        def update(row: Row, sample: Linear) -> tuple[Linear, ...]:
            memory = {k: slot(slots + k - 1) for k in range(1, len(row.update))}
            seen = {0: sample, **memory}
            if row.convert is not None:
                seen[M.terms[0][0]] = row.convert.substitute(seen)
            return tuple([linear.substitute(seen) for linear in row.update])

        return [functools.partial(update, row) for row in table.rows]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Choose the steps for ``step``, as many or, of a flow, exactly these levels."""
        self._set(num_inference_steps, device, sigmas=sigmas, mu=mu)

    def step(
        self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True
    ) -> Any:
        """One step down; see ``Scheduler.step``."""
        return self._step(model_output, timestep, sample, return_dict)


@dataclass(frozen=True, kw_only=True)
class _Solver:
    """The formulas of the paper's section 3, over one list of levels."""

    points: tuple[Floats, Floats, Floats]
    """alpha, sigma and lambda of each level."""
    predict_x0: bool
    bh1: bool

    def predict(self, i: int, order: int, sample: Linear, outputs: list[Linear]) -> Linear:
        """UniP: the sample at level i + 1 from outputs at level i and before."""
        base, scale, r, rho, b = self._step(i, order, sample, outputs[0])
        if order == 1:
            return base
        weights = [0.5] if order == 2 else _solved(rho[:-1, :-1], b[:-1])
        return base - self._differences(weights, r, outputs) * float(scale)

    def correct(self, i: int, order: int, past: list[Linear]) -> Linear:
        """UniC: the sample at level i once more, now that the output there is known."""
        base, scale, r, rho, b = self._step(i - 1, order, _LAST, past[0])
        weights = [0.5] if order == 1 else _solved(rho, b)
        ahead = (M - past[0]) * float(weights[-1])
        return base - (self._differences(weights[:-1], r, past) + ahead) * float(scale)

    def _differences(self, weights: Any, r: Any, outputs: list[Linear]) -> Linear:
        total = X * 0.0
        for k, weight in enumerate(weights):
            total += (outputs[k + 1] - outputs[0]) / float(r[k]) * float(weight)
        return total

    def _step(
        self, i: int, order: int, sample: Linear, m0: Linear
    ) -> tuple[Linear, Any, Floats, Floats, Floats]:
        """The first-order step from level i to i + 1, its residual's scale, and r, R, b."""
        alpha, sigma, lam = self.points
        h = lam[i + 1] - lam[i]
        r = np.array([(lam[i - k] - lam[i]) / h for k in range(1, order)] + [1], np.float32)
        hh = -h if self.predict_x0 else h
        phi_1 = expm1_32(hh)
        b_h = hh if self.bh1 else phi_1
        phi_k, factorial = phi_1 / hh - 1, 1
        b = []
        for k in range(1, order + 1):
            b.append(phi_k * factorial / b_h)
            factorial *= k + 1
            phi_k = phi_k / hh - 1 / factorial
        rho = np.stack([r**k for k in range(order)])
        if self.predict_x0:
            base = (sigma[i + 1] / sigma[i]) * sample - (alpha[i + 1] * phi_1) * m0
            scale = alpha[i + 1] * b_h
        else:
            base = (alpha[i + 1] / alpha[i]) * sample - (sigma[i + 1] * phi_1) * m0
            scale = sigma[i + 1] * b_h
        return base, scale, r, rho, np.array(b, np.float32)


def _solved(matrix: Floats, b: Floats) -> Floats:
    try:
        weights: Floats = np.linalg.solve(matrix, b)
    except np.linalg.LinAlgError:  # two levels coincide: left for the schedule to refuse
        weights = np.full(len(b), np.nan)
    return weights
