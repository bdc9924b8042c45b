"""What all schedulers share: the Diffusers-compatible face over the pure table."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from perfuse.errors import InputError

from .config import Config, merge_config, read_config, split_config, write_config
from .kinds import cast, draw, host, like, promoted
from .table import Array, Schedule, State, to_float32

__all__ = ["KARRAS_FAMILY", "Grid", "Request", "Scheduler", "StepOutput", "choose"]

KARRAS_FAMILY = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
"""The schedulers that can stand in for each other on one checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which steps were asked for, in whichever of the ways Diffusers offers."""

    num_inference_steps: int | None = None
    """How many."""
    timesteps: Any = None
    """Exactly these."""
    sigmas: Any = None
    """Exactly these noise levels."""
    mu: float | None = None
    """The shift that depends on the picture's size."""
    original_inference_steps: int | None = None
    """LCM: the steps of the distillation, from which a subset is taken."""
    strength: float = 1.0
    """LCM: the part of them to use."""

    @property
    def count(self) -> int:
        """The number of steps, where only that can be asked for."""
        if self.num_inference_steps is None:
            raise InputError(
                "The number of steps is missing: pass num_inference_steps, at least 1."
            )
        return self.num_inference_steps


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The steps chosen: Diffusers' ``timesteps`` and ``sigmas`` arrays."""

    timesteps: npt.NDArray[Any]
    """int64 or float32 [n]: what the model is told."""
    sigmas: npt.NDArray[np.float32] | None = None
    """float32 [n + 1]: the noise levels between which the steps go."""
    steps: int | None
    """``num_inference_steps``, which need not be n; None before any was asked for."""


@dataclass(frozen=True)
class StepOutput:
    """What ``step`` returns."""

    prev_sample: Array
    """The sample at the next, lower noise level."""
    pred_original_sample: Array = None
    """The clean sample that the step aimed at, where Diffusers gives it."""

    @property
    def denoised(self) -> Array:
        """LCM's name for it."""
        return self.pred_original_sample

    def __getitem__(self, key: int | str) -> Array:
        if isinstance(key, str):
            return getattr(self, key)
        return (self.prev_sample, self.pred_original_sample)[key]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Where the face is in a loop of ``step`` calls."""

    schedule: Schedule
    start: int
    index: int
    state: State | None = None


class Scheduler(ABC):
    """A scheduler with the methods that Diffusers' have.

    ``schedule`` gives the pure table and touches nothing; pipelines use that. ``set_timesteps``
    and ``step`` keep their place in the object, as Diffusers' do.
    """

    order: ClassVar[int] = 1
    """Model calls a timestep; always 1, the table lists every call."""
    Settings: ClassVar[type[Any]]
    """The dataclass of this class's settings, with Diffusers' names and defaults."""
    accepts: ClassVar[frozenset[str]] = frozenset()
    """What ``set_timesteps`` takes besides the number of steps: fields of ``Request``."""
    family: ClassVar[tuple[str, ...]] = ()
    """The classes that a config can be handed to."""
    scales_input: ClassVar[bool] = False
    gives_denoised: ClassVar[bool] = True
    casts_to_output: ClassVar[bool] = False
    """Whether the result has the model output's dtype rather than the promoted one."""

    settings: Any
    config: Config

    def __init__(self, **settings: Any) -> None:
        known = {f.name for f in dataclasses.fields(self.Settings)}
        for key in settings:
            if key not in known:
                raise InputError(
                    f"{type(self).__name__} has no setting {key!r}. It has: "
                    f"{', '.join(sorted(known))}. For a config with more keys use from_config."
                )
        self.settings = self._checked(self.Settings(**settings))
        total = self.settings.num_train_timesteps
        if not isinstance(total, int) or total < 1:
            raise InputError(f"num_train_timesteps must be at least 1; got {total!r}.")
        shown = {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.Settings)}
        self.config = merge_config(type(self).__name__, shown, set(settings), {})
        self._prepare()
        self._place(self._untimed())

    # What a scheduler defines.

    def _checked(self, settings: Any) -> Any:
        """The settings, or an error that says which of them cannot be used."""
        return settings

    @abstractmethod
    def _prepare(self) -> None:
        """Compute what depends on the settings alone."""

    @abstractmethod
    def _untimed(self) -> Grid:
        """The grid before any number of steps was asked for: all training timesteps."""

    @abstractmethod
    def _grid(self, request: Request) -> Grid:
        """The steps for a request."""

    @abstractmethod
    def _table(self, grid: Grid, start: int, eta: float) -> Schedule:
        """The table for a grid, from its step ``start`` on."""

    @abstractmethod
    def _noise_scales(self, timesteps: npt.NDArray[Any]) -> tuple[Any, Any]:
        """Scales of clean sample and noise at each timestep, float32."""

    def _init_noise_sigma(self, grid: Grid) -> float:
        return 1.0

    # The pure path.

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        eta: float = 0.0,
        start: int = 0,
        **more: Any,
    ) -> Schedule:
        """The table for this many steps, from step ``start`` on. The scheduler is not changed.

        ``eta`` is DDIM's share of noise, and means nothing elsewhere.

        Raises:
            InputError: the steps asked for are none, too many, or in a form it does not take.
        """
        grid = self._grid(self._request(num_inference_steps, timesteps, sigmas, mu, more))
        if not 0 <= start < max(len(grid.timesteps), 1):
            raise InputError(
                f"start={start} is not one of the {len(grid.timesteps)} steps of this schedule. "
                f"Use 0 to {len(grid.timesteps) - 1}."
            )
        return self._table(grid, start, eta)

    def _request(
        self, count: Any, timesteps: Any, sigmas: Any, mu: float | None, more: Mapping[str, Any]
    ) -> Request:
        asked = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu, **more}
        asked = {key: value for key, value in asked.items() if value is not None}
        for key in asked:
            if key not in self.accepts:
                takes = ", ".join(["num_inference_steps", *sorted(self.accepts)])
                raise InputError(f"{type(self).__name__} takes no {key}=. It takes: {takes}.")
        if count is not None:
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
                raise InputError(
                    f"num_inference_steps must be a whole number of at least 1; got {count!r}."
                )
            count = int(count)
        for key in ("timesteps", "sigmas"):
            if key in asked and len(host(asked[key])) == 0:
                raise InputError(f"{key}= is empty. Pass at least one value or leave it out.")
        return Request(num_inference_steps=count, **asked)

    # The face.

    def _place(self, grid: Grid) -> None:
        self._now = grid
        self._run: _Run | None = None
        self._begin_index: int | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **more: Any,
    ) -> None:
        """Choose the steps for ``step``. ``device`` is taken and not needed: tables are numpy."""
        self._place(self._grid(self._request(num_inference_steps, timesteps, sigmas, mu, more)))

    @property
    def timesteps(self) -> npt.NDArray[Any]:
        """The model calls in order, int64 where whole and float32 where fractional."""
        return self._now.timesteps

    @property
    def num_inference_steps(self) -> int | None:
        return self._now.steps

    @property
    def init_noise_sigma(self) -> float:
        """What unit noise is multiplied by to be the first sample."""
        return self._init_noise_sigma(self._now)

    @property
    def step_index(self) -> int | None:
        return None if self._run is None else self._run.index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this step instead of looking the first timestep up."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: Any) -> int:
        """The step of a timestep; of the second one where it occurs twice, as in Diffusers."""
        found = np.flatnonzero(self.timesteps == host(timestep))
        if len(found) == 0:
            raise InputError(
                f"Timestep {timestep} is not one of this scheduler's. Pass one of "
                "scheduler.timesteps, not its position in the list."
            )
        return int(found[1 if len(found) > 1 else 0])

    def _running(self, timestep: Any) -> _Run:
        if self._run is None:
            start = self._begin_index
            if start is None:
                # Not the second of two equal timesteps where a run starts at the top.
                top = host(timestep) == self.timesteps[0]
                start = 0 if top else self.index_for_timestep(timestep)
            table = self._table(self._now, start, 0.0)
            self._run = _Run(schedule=table, start=start, index=start)
        return self._run

    def scale_model_input(self, sample: Array, timestep: Any = None) -> Array:
        """The sample as the model wants to see it at this timestep."""
        if not self.scales_input:
            return sample
        run = self._running(timestep)
        return run.schedule.scale_input(run.index - run.start, sample)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        *,
        eta: float = 0.0,
        generator: Any = None,
        noise: Array = None,
        variance_noise: Array = None,
        return_dict: bool = True,
    ) -> Any:
        """One step down, from the sample at ``timestep`` and what the model said about it.

        ``noise`` or ``variance_noise`` is used where the step draws; else ``generator`` is.

        Raises:
            InputError: no steps were chosen, they are all done, or the timestep is none of them.
        """
        if self.num_inference_steps is None:
            raise InputError("No steps were chosen yet. Call set_timesteps(n) before step().")
        run = self._running(timestep)
        i = run.index - run.start
        if i >= len(run.schedule):
            raise InputError(
                f"All {len(run.schedule)} steps are done. Call set_timesteps again for a new run."
            )
        sample32 = to_float32(sample)
        state = run.schedule.start(sample32) if run.state is None else (sample32, *run.state[1:])
        given = _one_noise(noise, variance_noise, generator)
        state, result = self._apply(
            run.schedule, i, state, model_output, sample, given, generator, return_dict
        )
        self._run = dataclasses.replace(run, index=run.index + 1, state=state)
        return result

    def _apply_alone(
        self,
        table: Schedule,
        model_output: Array,
        sample: Array,
        noise: Array,
        variance_noise: Array,
        generator: Any,
        return_dict: bool,
    ) -> Any:
        """The result of a table of one step, for schedulers that keep no state."""
        given = _one_noise(noise, variance_noise, generator)
        state = table.start(sample)
        return self._apply(table, 0, state, model_output, sample, given, generator, return_dict)[1]

    def _apply(
        self,
        schedule: Schedule,
        i: int,
        state: State,
        model_output: Array,
        sample: Array,
        noise: Array,
        generator: Any,
        return_dict: bool,
    ) -> tuple[State, Any]:
        if schedule.draws[i] and noise is None:
            noise = draw(state[0], generator)
        after = schedule.advance(i, state, model_output, noise)
        dtype = model_output.dtype if self.casts_to_output else promoted(sample, model_output)
        results = [cast(after[0], dtype)]
        if self.gives_denoised:
            results.append(cast(schedule.denoised(i, state, model_output), dtype))
        return after, StepOutput(*results) if return_dict else tuple(results)

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Any) -> Array:
        """Clean samples brought to the noise levels of ``timesteps`` [batch]."""
        signal, sigma = self._noise_scales(np.atleast_1d(host(timesteps)))
        return self._mix(signal, original_samples, sigma, noise)

    def _mix(self, a: Any, x: Array, b: Any, y: Array) -> Array:
        shape = (-1,) + (1,) * (x.ndim - 1)
        a, b = (like(np.asarray(c, dtype=np.float32).reshape(shape), x) for c in (a, b))
        return cast(a * x + b * y, x.dtype)

    # Configs and files.

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | Config, **overrides: Any) -> Self:
        """The same settings in this class, from a parsed file or another scheduler's ``config``.

        What it does not know is kept aside in ``config``, what was a default is not carried over.
        """
        if not isinstance(config, Mapping):
            raise InputError(
                f"from_config takes a config, a mapping of settings; got {config!r}. For a folder "
                f"use {cls.__name__}.from_pretrained(folder)."
            )
        known = {f.name for f in dataclasses.fields(cls.Settings)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise InputError(f"{cls.__name__} has no setting {unknown[0]!r}.")
        settings, aside = split_config(config, known, overrides)
        scheduler = cls(**settings)
        scheduler.config = Config({**scheduler.config, **aside, "_class_name": cls.__name__})
        return scheduler

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], subfolder: str | None = None, **overrides: Any
    ) -> Self:
        """Read ``scheduler_config.json`` from a local folder.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return cls.from_config(read_config(folder, subfolder), **overrides)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``scheduler_config.json`` into a folder, which is made if need be."""
        write_config(folder, self.config)

    @property
    def compatibles(self) -> list[type[Scheduler]]:
        """The classes that this scheduler's config can be handed to."""
        from . import scheduler_class

        names = dict.fromkeys((type(self).__name__, *self.family))
        return [scheduler_class(name) for name in names]

    def __len__(self) -> int:
        return int(self.settings.num_train_timesteps)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self.config)!r})"


def choose(name: str, value: Any, options: tuple[Any, ...]) -> None:
    """Refuse a setting that is none of its options."""
    if value not in options:
        known = ", ".join(repr(option) for option in options)
        raise InputError(f"{name} {value!r} is not known here. Use one of: {known}.")


def _one_noise(noise: Array, variance_noise: Array, generator: Any) -> Array:
    given = [n for n in (noise, variance_noise) if n is not None]
    if len(given) > 1 or (given and generator is not None):
        raise InputError(
            "More than one source of noise was given. Pass noise= or generator=, not both."
        )
    return given[0] if given else None
