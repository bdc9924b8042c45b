"""LCM on a rectified flow, with an optional growth of the sample (SwD, Starodubcev et al. 2025).

Where ``scale_factors`` are set the sample grows between steps: that is no sum of arrays of one
shape and no row of a table, and is done by ``step`` alone, with torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.errors import InputError

from .base import Grid, Options
from .euler import refuse_index
from .flow_levels import FlowLevels
from .kinds import cast, draw, torch_here
from .linear import NOISE, OUT, X
from .outputs import StepOutput
from .table import Array, Row, Schedule, to_float32

__all__ = ["FlowMatchLCMScheduler", "FlowMatchLCMSettings"]


@dataclass(frozen=True, kw_only=True)
class FlowMatchLCMSettings:
    """The settings of ``FlowMatchLCMScheduler``."""

    num_train_timesteps: int = 1000
    """What sigma is multiplied by to be a timestep."""
    shift: float = 1.0
    """Moves the levels towards noise, for larger pictures."""
    use_dynamic_shifting: bool = False
    """Shift by ``mu``, which the pipeline finds from the picture's size, instead."""
    base_shift: float = 0.5
    """For the pipeline: mu of a picture of ``base_image_seq_len`` tokens."""
    max_shift: float = 1.15
    """For the pipeline: mu of a picture of ``max_image_seq_len`` tokens."""
    base_image_seq_len: int = 256
    """For the pipeline."""
    max_image_seq_len: int = 4096
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
    scale_factors: Sequence[float] | None = None
    """How large the sample is after each step but the last, against the first one."""
    upscale_mode: str = "bicubic"
    """How it is made larger: a mode of torch's ``interpolate``."""


class FlowMatchLCMScheduler(FlowLevels):
    """Jumps to the clean sample and adds noise again, at every step."""

    Settings = FlowMatchLCMSettings
    needs_steps = False
    second = None
    casts_to_output = True
    draws_float32 = True
    settings: FlowMatchLCMSettings

    def _prepare(self) -> None:
        super()._prepare()
        self._scale_factors = self.settings.scale_factors
        self._upscale_mode = self.settings.upscale_mode

    def set_scale_factors(self, scale_factors: Sequence[float], upscale_mode: str) -> None:
        """Let ``step`` make the sample grow like this."""
        self._scale_factors, self._upscale_mode = scale_factors, upscale_mode

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        if self._scale_factors:
            raise InputError(
                "scale_factors make the sample grow between steps, which a table cannot. Call "
                "step() yourself, or leave them out."
            )
        return self._steps(grid, begin)

    def _steps(self, grid: Grid, begin: int) -> Schedule:
        levels, one = self._ended(grid), np.float32(1)
        clean = 1.0 if self.settings.invert_sigmas else 0.0
        rows = []
        for i in range(begin, len(grid.timesteps)):
            sigma, low = levels[i], levels[i + 1]
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=((one - low) * (X - sigma * OUT) + low * NOISE,),
                    denoised=X + (clean - float(sigma)) * OUT,
                    draws=True,
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
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Array = None,
    ) -> Any:
        """One step down; see ``Scheduler.step``."""
        refuse_index(timestep)
        if self._scale_factors:
            return self._grow(model_output, timestep, sample, generator, noise, return_dict)
        return self._step(
            model_output, timestep, sample, return_dict, generator=generator, noise=noise
        )

    def _grow(
        self, out: Array, timestep: Any, sample: Array, generator: Any, noise: Array, named: bool
    ) -> Any:
        torch, factors = torch_here(), list(self._scale_factors or ())
        if torch is None or not hasattr(sample, "detach"):
            raise InputError("scale_factors need torch. Pass torch tensors, or leave them out.")
        if len(self._timesteps) != len(factors) + 1:
            raise InputError(
                f"{len(factors)} scale_factors were given for {len(self._timesteps)} steps. Give "
                "one for each step but the last."
            )
        at = self._place_of(timestep, out)
        here, there = self._levels(self._now)[at : at + 2].tolist()
        clean = to_float32(sample) - here * out
        if at < len(factors):
            size = [round(factors[at] * side) for side in self._first_size]
            clean = torch.nn.functional.interpolate(clean, size=size, mode=self._upscale_mode)
        noise = draw(clean, generator) if noise is None else noise
        after = cast((1 - there) * clean + there * noise, out.dtype)
        return StepOutput(prev_sample=after) if named else (after,)

    def _place_of(self, timestep: Any, out: Array) -> int:
        """The index of this step, and on to the next; the first step sets the size."""
        if self._run is None:
            self._first_size = tuple(out.shape[2:])
            factors, self._scale_factors = self._scale_factors, None
            run = self._running(timestep)
            self._scale_factors = factors
        else:
            run = self._run
        self._run = dataclasses.replace(run, index=run.index + 1)
        return run.index
