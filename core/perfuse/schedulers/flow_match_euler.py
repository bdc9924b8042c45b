"""Euler's method on a rectified flow: x = (1 - sigma) x0 + sigma n (Esser et al. 2024)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Grid, Options
from .euler import refuse_index
from .flow_levels import FlowLevels
from .kinds import draw, host, like
from .linear import NOISE, OUT, X
from .outputs import StepOutput
from .table import Array, Row, Schedule, to_float32

__all__ = ["FlowMatchEulerDiscreteScheduler", "FlowMatchEulerSettings"]


@dataclass(frozen=True, kw_only=True)
class FlowMatchEulerSettings:
    """The settings of ``FlowMatchEulerDiscreteScheduler``."""

    num_train_timesteps: int = 1000
    """What sigma is multiplied by to be a timestep."""
    shift: float = 1.0
    """Moves the levels towards noise, for larger pictures."""
    use_dynamic_shifting: bool = False
    """Shift by ``mu``, which the pipeline finds from the picture's size, instead."""
    base_shift: float | None = 0.5
    """For the pipeline: mu of a picture of ``base_image_seq_len`` tokens."""
    max_shift: float | None = 1.15
    """For the pipeline: mu of a picture of ``max_image_seq_len`` tokens."""
    base_image_seq_len: int | None = 256
    """For the pipeline."""
    max_image_seq_len: int | None = 4096
    """For the pipeline."""
    invert_sigmas: bool = False
    """Let the levels rise to one, where the data is, as some models were trained."""
    shift_terminal: float | None = None
    """Stretch the levels so that this is the last one."""
    use_karras_sigmas: bool = False
    """Descend as Karras et al. 2022 do."""
    use_exponential_sigmas: bool = False
    """Descend evenly in log sigma."""
    use_beta_sigmas: bool = False
    """Descend by a beta distribution; needs scipy."""
    time_shift_type: str = "exponential"
    """How mu shifts: exponential or linear."""
    stochastic_sampling: bool = False
    """Jump to the clean sample and add fresh noise, at every step."""


class FlowMatchEulerDiscreteScheduler(FlowLevels):
    """One model call a step; the levels are shifted twice, as Diffusers does.

    The ends of the descent are those of the shifted training levels, and the descent between them
    is shifted again. Passing ``sigmas=`` goes through one shift only, and through float32.
    """

    Settings = FlowMatchEulerSettings
    needs_steps = False
    second = None
    casts_to_output = True
    settings: FlowMatchEulerSettings

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        levels = self._ended(grid)
        stochastic = self.settings.stochastic_sampling
        clean = 1.0 if self.settings.invert_sigmas else 0.0
        one = np.float32(1)
        rows = []
        for i in range(begin, len(grid.timesteps)):
            sigma, low = levels[i], levels[i + 1]
            if stochastic:
                update = (one - low) * (X - sigma * OUT) + low * NOISE
            else:
                update = X + (low - sigma) * OUT
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(update,),
                    denoised=X + (clean - float(sigma)) * OUT,
                    draws=stochastic,
                    noising=(float(one - sigma), float(sigma)),
                )
            )
        return Schedule(rows=tuple(rows))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the steps for ``step``: as many, or these levels, or these timesteps."""
        self._set(num_inference_steps, device, sigmas=sigmas, mu=mu, timesteps=timesteps)

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
        per_token_timesteps: Array = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One step down; see ``Scheduler.step``. The four ``s_`` are for show, as in Diffusers.

        With ``per_token_timesteps`` [batch, tokens] each token of a sample [batch, tokens, channels]
        is at a level of its own, and goes to the next lower one of the schedule.
        """
        refuse_index(timestep)
        if per_token_timesteps is not None:
            drawn = self._drawn(sample, generator, noise)
            result = self._per_token(model_output, sample, per_token_timesteps, drawn)
            run = self._running(timestep)
            self._run = dataclasses.replace(run, index=run.index + 1)
            return StepOutput(prev_sample=result) if return_dict else (result,)
        return self._step(
            model_output, timestep, sample, return_dict, generator=generator, noise=noise
        )

    def _drawn(self, sample: Array, generator: Any, noise: Array) -> Array:
        if not self.settings.stochastic_sampling or noise is not None:
            return noise
        return draw(sample, generator)

    def _per_token(self, out: Array, sample: Array, timesteps: Array, noise: Array) -> Array:
        """Not a row of a table: the levels differ from token to token."""
        sigma = host(timesteps).astype(np.float32) / np.float32(self.settings.num_train_timesteps)
        levels = self._levels(self._now)[:, None, None]
        low = np.where(levels < sigma - np.float32(1e-6), levels, np.float32(0)).max(axis=0)
        here, there = (like(level[..., None], sample) for level in (sigma, low))
        x, out = to_float32(sample), to_float32(out)
        if noise is None:
            # Diffusers' sign: here its model predicts the way back, from noise to data.
            return x + (here - there) * out
        return (1.0 - there) * (x - here * out) + there * noise
