"""Improved pseudo linear multistep, of order four (Liu et al. 2022; Crowson's v-diffusion)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import Grid, Options, Request, Scheduler
from .betas import Float32s, linspace32
from .kinds import TensorView
from .linear import OUT, X, slot
from .table import Array, Row, Schedule

__all__ = ["IPNDMScheduler", "IPNDMSettings"]


@dataclass(frozen=True, kw_only=True)
class IPNDMSettings:
    """The settings of ``IPNDMScheduler``."""

    num_train_timesteps: int = 1000
    """Steps that are taken where none were asked for."""
    trained_betas: Sequence[float] | None = None
    """The noise's scales themselves, one more than there are steps."""


class IPNDMScheduler(Scheduler):
    """x = alpha x0 + beta n on a quarter of a circle; timesteps run from one to zero."""

    Settings = IPNDMSettings
    needs_steps = False
    second = None
    settings: IPNDMSettings
    pndm_order = 4

    betas = TensorView()
    """The noise's scale at each step, and at the end."""
    alphas = TensorView()
    """The clean sample's."""

    def _prepare(self) -> None:
        pass

    def _untimed(self) -> Grid:
        return self._grid(Request(num_inference_steps=self.settings.num_train_timesteps))

    def _grid(self, request: Request) -> Grid:
        count = request.count
        alphas, betas = self._scales(count)
        angles = np.arctan2(betas, alphas, dtype=np.float64).astype(np.float32)
        timesteps: Float32s = angles / np.float32(np.pi) * np.float32(2)
        return Grid(timesteps=timesteps[:-1], steps=count)

    def _scales(self, count: int) -> tuple[Float32s, Float32s]:
        if self.settings.trained_betas is not None:
            betas = np.asarray(self.settings.trained_betas, dtype=np.float32)
        else:
            steps = np.append(linspace32(1, 0, count + 1)[:-1], np.float32(0))
            quarter = (steps * np.float32(np.pi) / np.float32(2)).astype(np.float64)
            betas = np.square(np.sin(quarter).astype(np.float32))
        return np.sqrt(np.float32(1) - np.square(betas)), betas

    def _place(self, grid: Grid) -> None:
        super()._place(grid)
        assert grid.steps is not None
        self._alphas, self._betas = self._scales(grid.steps)

    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        assert grid.steps is not None
        alphas, betas = self._scales(grid.steps)
        past = [slot(1), slot(2), slot(3)]
        rows = []
        for i in range(begin, len(grid.timesteps)):
            a, b = alphas[i], betas[i]
            e = [b * X + a * OUT, *past]
            match i - begin:
                case 0:
                    noise = e[0]
                case 1:
                    noise = (3 * e[0] - e[1]) / 2
                case 2:
                    noise = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
                case _:
                    noise = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
            clean = (X - b * noise) / max(float(a), 1e-8)
            rows.append(
                Row(
                    timestep=float(grid.timesteps[i]),
                    update=(alphas[i + 1] * clean + betas[i + 1] * noise, *e[:3]),
                    denoised=a * X - b * OUT,
                    noising=(float(a), float(b)),
                )
            )
        return Schedule(rows=tuple(rows))

    def _noise_scales(self, timesteps: npt.NDArray[Any]) -> tuple[Any, Any]:
        indices = [self.index_for_timestep(t) for t in timesteps]
        return self._alphas[indices], self._betas[indices]

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the steps for ``step``."""
        self._set(num_inference_steps, device)

    def step(
        self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True
    ) -> Any:
        """One step down; see ``Scheduler.step``."""
        return self._step(model_output, timestep, sample, return_dict)
