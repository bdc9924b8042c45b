"""The noise levels of a rectified flow, x = (1 - sigma) x0 + sigma n (Esser et al. 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np

from perfuse.errors import InputError

from .base import Grid, Request, choose
from .betas import Float32s
from .noise_levels import NoiseLevels, one_descent
from .sigmas import Floats, flow_shift, stretch_to_terminal, time_shift
from .table import Array

__all__ = ["FlowLevels"]


class FlowLevels(NoiseLevels):
    """Levels from one to zero, shifted towards noise; ``shift`` and its kin are settings."""

    def _checked(self, s: Any) -> Any:
        choose("time_shift_type", s.time_shift_type, ("exponential", "linear"))
        one_descent(s)
        return s

    def _prepare(self) -> None:
        s = self.settings
        total = s.num_train_timesteps
        levels: Float32s = np.arange(total, 0, -1, dtype=np.float32) / np.float32(total)
        if not s.use_dynamic_shifting:
            levels = flow_shift(levels, s.shift).astype(np.float32)
        self._trained: Float32s = levels
        self.sigma_max, self.sigma_min = float(levels[0]), float(levels[-1])
        self._shift = s.shift

    @property
    def shift(self) -> float:
        return float(self._shift)

    def set_shift(self, shift: float) -> None:
        """Use another shift from the next ``set_timesteps`` on."""
        self._shift = shift

    def _untimed(self) -> Grid:
        total = np.float32(self.settings.num_train_timesteps)
        return Grid(timesteps=self._trained * total, sigmas=self._trained, steps=None)

    def _grid(self, request: Request) -> Grid:
        s, total = self.settings, self.settings.num_train_timesteps
        if s.use_dynamic_shifting and request.mu is None:
            raise InputError(
                "use_dynamic_shifting=True needs mu=, the shift for this picture's size. Pass "
                "mu=, or make the scheduler with use_dynamic_shifting=False."
            )
        count = self._count(request)
        given = None
        if request.timesteps is not None:
            given = np.asarray(request.timesteps, dtype=np.float32)
        if request.sigmas is not None:
            levels: Floats = np.asarray(request.sigmas, dtype=np.float32)
        elif given is not None:
            levels = given / np.float32(total)
        else:
            levels = np.linspace(self.sigma_max * total, self.sigma_min * total, count) / total
        sigmas = self._shaped(levels, request.mu).astype(np.float32)
        if s.invert_sigmas:
            sigmas = np.float32(1) - sigmas
            given = None
        timesteps = sigmas * np.float32(total) if given is None else given
        end = np.float32(1 if s.invert_sigmas else 0)
        return Grid(timesteps=timesteps, sigmas=np.append(sigmas, end), steps=count)

    def _count(self, request: Request) -> int:
        lengths = {len(v) for v in (request.timesteps, request.sigmas) if v is not None}
        if request.num_inference_steps is not None or not lengths:
            lengths.add(request.count)
        if len(lengths) > 1:
            raise InputError(
                "num_inference_steps, timesteps= and sigmas= ask for different numbers of steps: "
                f"{', '.join(map(str, sorted(lengths)))}. Make them agree, or pass only one."
            )
        return lengths.pop()

    def _shaped(self, levels: Floats, mu: float | None) -> Floats:
        s = self.settings
        if s.use_dynamic_shifting and mu is not None:
            levels = time_shift(levels, mu, s.time_shift_type)
        else:
            levels = flow_shift(levels, self._shift)
        if s.shift_terminal:  # zero means none, as in Diffusers
            levels = stretch_to_terminal(levels, s.shift_terminal)
        return self._descend(levels, len(levels))

    def _signal(self, sigma: Float32s) -> tuple[Float32s, Float32s]:
        return np.float32(1) - sigma, sigma

    def scale_noise(self, sample: Array, timestep: Any, noise: Array = None) -> Array:
        """Diffusers' name for ``add_noise``, with its order of arguments."""
        return self.add_noise(sample, noise, timestep)
