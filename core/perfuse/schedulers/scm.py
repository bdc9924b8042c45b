"""SCM: consistency models in trigonometric form (Lu & Song 2024), as Sana-Sprint uses them.

x = cos(t) x0 + sin(t) sigma_data n, for t from a right angle down to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from .base import Grid, Options, Request, Scheduler, choose
from .betas import Float32s, linspace32
from .linear import NOISE, OUT, X
from .table import Array, Row, Schedule

__all__ = ["SCMScheduler", "SCMSettings"]

_FIRST, _BETWEEN = 1.57080, 1.3  # the largest timestep, and the one in the middle of two steps


@dataclass(frozen=True, kw_only=True)
class SCMSettings:
    """The settings of ``SCMScheduler``."""

    num_train_timesteps: int = 1000
    """The most steps that can be asked for."""
    prediction_type: str = "trigflow"
    """What the model predicts: trigflow, the only one."""
    sigma_data: float = 0.5
    """The deviation of the data that the model was trained with."""


class SCMScheduler(Scheduler):
    """Jumps to the clean sample and adds noise again, at every step.

    ``timesteps`` has one entry more than there are model calls, as in Diffusers: where the last
    step ends. The table has the calls alone.
    """

    Settings = SCMSettings
    draws_float32 = True
    settings: SCMSettings

    def _checked(self, s: SCMSettings) -> SCMSettings:
        choose("prediction_type", s.prediction_type, ("trigflow",))
        return s

    def _prepare(self) -> None:
        pass

    def _untimed(self) -> Grid:
        timesteps = np.arange(self.settings.num_train_timesteps)[::-1].copy()
        return Grid(timesteps=timesteps, steps=None)

    def _grid(self, request: Request) -> Grid:
        count, most = request.count, self.settings.num_train_timesteps
        if count > most:
            raise InputError(f"{count} steps were asked for. Use at most {most}.")
        between, given = request.intermediate_timesteps, request.timesteps
        if between is not None and count != 2:
            raise InputError(
                f"intermediate_timesteps= is the one between two steps; {count} were asked for. "
                "Leave it out or pass None."
            )
        if given is not None:
            if request.max_timesteps is not None:
                raise InputError("Pass timesteps= or max_timesteps=, not both.")
            if len(given) != count + 1:
                raise InputError(
                    f"timesteps= has {len(given)} entries; {count} steps have {count + 1}, the "
                    "last where they end. Make them agree."
                )
            return Grid(timesteps=np.asarray(given, dtype=np.float32), steps=count)
        first = _FIRST if request.max_timesteps is None else request.max_timesteps
        if between is not None:
            timesteps = np.array([first, between, 0], dtype=np.float32)
        else:
            timesteps = linspace32(first, 0, count + 1)
        return Grid(timesteps=timesteps, steps=count)

    def _request(self, count: Any, asked: Any) -> Request:
        request = super()._request(count, asked)
        plain = not {"timesteps", "max_timesteps", "intermediate_timesteps"} & {
            key for key, value in asked.items() if value is not None
        }
        if plain and request.num_inference_steps == 2:  # as Diffusers' pipeline asks for two
            return super()._request(count, {**asked, "intermediate_timesteps": _BETWEEN})
        return request

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        cos, sin = _cos_sin(grid.timesteps)
        data = self.settings.sigma_data
        rows = []
        for i in range(begin, len(grid.timesteps) - 1):
            x0 = cos[i] * X - sin[i] * OUT
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(cos[i + 1] * x0 + float(sin[i + 1]) * data * NOISE,),
                    denoised=x0,
                    draws=True,
                    noising=(float(cos[i]), float(sin[i]) * data),
                )
            )
        return Schedule(rows=tuple(rows))

    def _noise_scales(self, timesteps: npt.NDArray[Any]) -> tuple[Any, Any]:
        cos, sin = _cos_sin(timesteps)
        return cos, sin * np.float32(self.settings.sigma_data)

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Any = None,
        device: Any = None,
        max_timesteps: float | None = _FIRST,
        intermediate_timesteps: float | None = _BETWEEN,
    ) -> None:
        """Choose the steps for ``step``; the two angles are those of a run of two steps.

        Raises:
            InputError: they are given for another number of steps, as they are by default.
        """
        if timesteps is None and max_timesteps is None:
            raise InputError("Pass timesteps= or max_timesteps=.")
        self._set(
            num_inference_steps,
            device,
            timesteps=timesteps,
            max_timesteps=max_timesteps,
            intermediate_timesteps=intermediate_timesteps,
        )

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
        """One step down; see ``Scheduler.step``."""
        return self._step(
            model_output, timestep, sample, return_dict, generator=generator, noise=noise
        )


def _cos_sin(t: npt.NDArray[Any]) -> tuple[Float32s, Float32s]:
    angle = t.astype(np.float64)
    if angle.size and angle.max() > 2 * math.pi:  # no angle: nothing was chosen yet
        raise InputError("No steps were chosen yet. Call set_timesteps(n) first.")
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
