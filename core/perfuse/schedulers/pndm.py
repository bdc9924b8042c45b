"""PNDM: pseudo numerical methods on the manifold of diffusion (Liu et al. 2022).

Four-step linear multistep (PLMS), started with a Heun-like step that calls the model twice at one
timestep, or, with ``skip_prk_steps=False``, with three pseudo Runge-Kutta steps of four calls each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from . import spacing
from .base import KARRAS, Grid, Options, Request, choose
from .betas import BetaSettings
from .kinds import host
from .linear import OUT, Linear, X, slot
from .prediction import x0_of
from .spacing import Int64s
from .table import Array, Row, Schedule
from .variance_preserving import VariancePreserving

__all__ = ["PNDMScheduler", "PNDMSettings"]

_SAVED, _SUM = slot(1), slot(2)  # the sample to return to; the Runge-Kutta sum so far
_PAST = (slot(3), slot(4), slot(5))  # the last three outputs, newest first
_PRK_CALLS = 12


@dataclass(frozen=True, kw_only=True)
class PNDMSettings(BetaSettings):
    """The settings of ``PNDMScheduler``."""

    skip_prk_steps: bool = False
    """Start with a Heun-like step instead of Runge-Kutta ones."""
    set_alpha_to_one: bool = False
    """Let the last step end at no noise rather than at the first training timestep's."""
    prediction_type: str = "epsilon"
    """What the model predicts: epsilon or v_prediction."""
    timestep_spacing: str = "leading"
    """linspace, leading or trailing."""
    steps_offset: int = 0
    """Added to the timesteps of leading spacing."""


@dataclass
class _Symbols:
    """The state as the table is written: what each slot holds before the next call."""

    saved: Linear = _SAVED
    total: Linear = _SUM
    past: list[Linear] = field(default_factory=list)


class PNDMScheduler(VariancePreserving):
    """One model call more than steps (PLMS), or nine more (Runge-Kutta)."""

    Settings = PNDMSettings
    family = KARRAS
    second = None
    settings: PNDMSettings
    pndm_order = 4

    def _checked(self, settings: PNDMSettings) -> PNDMSettings:
        choose("prediction_type", settings.prediction_type, ("epsilon", "v_prediction"))
        return settings

    def _grid(self, request: Request) -> Grid:
        s, count = self.settings, request.count
        self._not_too_many(count)
        total = s.num_train_timesteps
        points = spacing.single(s.timestep_spacing, total, count, s.steps_offset)
        falling = points.round().astype(np.int64)
        if s.skip_prk_steps:  # the second timestep twice: there and back
            calls = np.concatenate([falling[:2], falling[1:2], falling[2:]])
        else:
            if len(falling) < 4:
                raise InputError(
                    f"{count} steps were asked for; PNDM's Runge-Kutta start takes four. Use at "
                    "least 4 steps or skip_prk_steps=True."
                )
            calls = np.concatenate([self._prk(falling[:4], total // count // 2), falling[3:]])
        return Grid(timesteps=calls, steps=count)

    def _prk(self, first: Int64s, half: int) -> Int64s:
        # Each step's calls: at its start, twice in its middle, at its end.
        pairs = np.stack([first + half, first], axis=1).ravel()[1:]
        return np.repeat(pairs, 2)[1:-1]

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        assert grid.steps is not None
        stride = self.settings.num_train_timesteps // grid.steps
        rows, known = [], 0
        for call, t in enumerate(grid.timesteps[begin:].tolist()):
            now = _Symbols(past=list(_PAST[:known]))
            if not self.settings.skip_prk_steps and call < _PRK_CALLS:
                origin = int(grid.timesteps[call // 4 * 4])
                sample = self._runge_kutta(now, call, t, origin, stride)
            else:
                sample = self._multistep(now, call, t, stride)
            known = min(len(now.past), 3)
            past = [*now.past[:3], *_PAST[known:]]
            signal, sigma = self._scales(t)
            rows.append(
                Row(
                    timestep=t,
                    update=(sample, now.saved, now.total, *past),
                    denoised=x0_of(self.settings.prediction_type, signal, sigma),
                    noising=(signal, sigma),
                )
            )
        return Schedule(rows=tuple(rows))

    def _runge_kutta(self, now: _Symbols, call: int, t: int, origin: int, stride: int) -> Linear:
        """One of the four calls of a Runge-Kutta step (eq. 13)."""
        output = OUT
        match call % 4:
            case 0:
                now.total, now.saved = OUT / 6, X
                now.past = [OUT, *now.past]
            case 1 | 2:
                now.total = _SUM + OUT / 3
            case _:
                output, now.total = _SUM + OUT / 6, X * 0.0
        return self._transfer(now.saved, output, origin, t - (0 if call % 2 else stride // 2))

    def _multistep(self, now: _Symbols, call: int, t: int, stride: int) -> Linear:
        """One linear multistep call, of as high an order as the past allows (eq. 12)."""
        if call == 1:  # back to the first timestep, with both ends of the step known
            (first,) = now.past
            return self._transfer(_SAVED, (OUT + first) / 2, t + stride, t)
        now.past = e = [OUT, *now.past]
        if call == 0:
            now.saved = X
        match len(e):
            case 1:
                output = OUT
            case 2:
                output = (3 * e[0] - e[1]) / 2
            case 3:
                output = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
            case _:
                output = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        return self._transfer(X, output, t, t - stride)

    def _transfer(self, sample: Linear, output: Linear, t: int, after: int) -> Linear:
        """The sample moved from timestep ``t`` to ``after`` along the noise (eq. 11)."""
        a, a_next = self._alpha(np.array([t, after]))
        one = np.float32(1)
        noise = output
        if self.settings.prediction_type == "v_prediction":
            noise = np.sqrt(a) * output + np.sqrt(one - a) * sample
        below = a * np.sqrt(one - a_next) + np.sqrt(a * (one - a) * a_next)
        moved: Linear = np.sqrt(a_next / a) * sample - noise * ((a_next - a) / below)
        return moved

    def _scales(self, t: int) -> tuple[float, float]:
        signal, sigma = self._noise_scales(np.array([t]))
        return float(signal[0]), float(sigma[0])

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """The first call at a timestep: the loop is counted, so the second would be too late."""
        known = self._timesteps if schedule_timesteps is None else host(schedule_timesteps)
        found = np.flatnonzero(known == host(timestep))
        return int(found[0]) if len(found) else super().index_for_timestep(timestep)

    @property
    def prk_timesteps(self) -> npt.NDArray[Any]:
        """The calls of the Runge-Kutta start; numpy, as in Diffusers."""
        if self.settings.skip_prk_steps or self.num_inference_steps is None:
            return np.array([])
        return self._timesteps[:_PRK_CALLS]

    @property
    def plms_timesteps(self) -> npt.NDArray[Any]:
        """The linear multistep calls; numpy, as in Diffusers."""
        return self._timesteps[len(self.prk_timesteps) :]

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(
        self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True
    ) -> Any:
        """One call on; see ``Scheduler.step``."""
        return self._step(model_output, timestep, sample, return_dict)

    def step_prk(
        self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True
    ) -> Any:
        """The next call, which must be one of the Runge-Kutta start.

        Raises:
            InputError: no steps were chosen, or the start is done.
        """
        self._check_steps()
        if (self.step_index or 0) >= len(self.prk_timesteps):
            raise InputError(
                f"step_prk was called after the {len(self.prk_timesteps)} calls of the "
                "Runge-Kutta start. Use step(), which knows which is next."
            )
        return self._step(model_output, timestep, sample, return_dict)

    def step_plms(
        self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True
    ) -> Any:
        """The next call, which must be a linear multistep one.

        Raises:
            InputError: no steps were chosen, or the Runge-Kutta start is not done.
        """
        self._check_steps()
        if (self.step_index or 0) < len(self.prk_timesteps):
            raise InputError(
                f"step_plms was called before the {len(self.prk_timesteps)} calls of the "
                "Runge-Kutta start. Use step(), which knows which is next, or skip_prk_steps=True."
            )
        return self._step(model_output, timestep, sample, return_dict)
