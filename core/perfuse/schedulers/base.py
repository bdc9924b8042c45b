"""What all schedulers share: the Diffusers-compatible face over the pure table."""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from perfuse import _diffusers
from perfuse.errors import InputError

from .config import Configured, merge_config
from .kinds import TensorView, cast, draw, host, like, promoted, torch_here
from .outputs import StepOutput
from .sigmas import calculate_shift
from .table import Array, Schedule, State, to_float32

__all__ = ["KARRAS", "Grid", "Options", "Request", "Scheduler", "StepOutput", "choose"]

_MOST = 10**6
"""The most noise levels of a model; those that there are have 1000."""

KARRAS = "karras"
"""The family of those that can stand in for each other on one Stable Diffusion checkpoint."""


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
    num_train_timesteps: int | None = None
    """Heun and KDPM2: as if the model had been trained with so many."""
    max_timesteps: float | None = None
    """SCM: where the run starts, in radians."""
    intermediate_timesteps: float | None = None
    """SCM: the step in between, of two."""
    sampling_eps: float | None = None
    """ScoreSdeVe: where the run ends."""
    jump_length: int | None = None
    """RePaint: how many steps are taken back at once."""
    jump_n_sample: int | None = None
    """RePaint: how often."""

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
    """int64 or float32 [n]: the timesteps that the model is given."""
    sigmas: npt.NDArray[np.float32] | None = None
    """float32 [n + 1]: the noise levels between which the steps go."""
    steps: int | None
    """``num_inference_steps``, which need not be n; None before any was asked for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What Diffusers passes to ``step``, and a table has to know beforehand."""

    eta: float | None = None
    """DDIM's and TCD's share of noise; None: the class's own."""
    clipped_output: bool = False
    """DDIM: take the noise from the clamped clean sample."""
    order: int = 4
    """LMS: how many outputs a step combines."""
    s_churn: float = 0.0
    """Karras et al. 2022, Alg. 2: how much noise is added before a step."""
    s_tmin: float = 0.0
    """The lowest level at which it is."""
    s_tmax: float = math.inf
    """The highest."""
    s_noise: float = 1.0
    """The deviation of that noise."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Where the face is in a loop of ``step`` calls."""

    grid: Grid
    options: Options
    schedule: Schedule
    begin: int
    index: int
    state: State | None = None

    @property
    def row(self) -> int:
        return self.index - self.begin


class Scheduler(Configured, ABC):
    """A scheduler with the methods that Diffusers' have.

    ``schedule`` gives the pure table and touches nothing; pipelines use that. ``set_timesteps``
    and ``step`` keep their place in the object, as Diffusers' do. Arrays are shown as torch tensors
    wherever the process has torch imported, and as numpy arrays elsewhere.

    A scheduler is one file: this class's part that is its own, with ``Settings`` and the methods
    below, found by its name. Other names for it on the command line are in the file's ``NAMES``.
    """

    order: ClassVar[int] = 1
    """Model calls a step, where a pipeline has to know it."""
    Settings: ClassVar[type[Any]]
    """The dataclass of this class's settings, with Diffusers' names, order and defaults."""
    family: ClassVar[str | None] = None
    """What it belongs to: its config can be handed to, and taken from, every other member."""
    hands_to: ClassVar[str | None] = None
    """The family whose members can take its config, if it is another; "": no other class can."""
    needs_steps: ClassVar[bool] = True
    """Whether ``step`` refuses to run before ``set_timesteps``."""
    scales_input: ClassVar[bool] = False
    second: ClassVar[str | None] = "pred_original_sample"
    """The name of the second result of ``step``, if it has one."""
    casts_to_output: ClassVar[bool] = False
    """Whether the result has the model output's dtype rather than the promoted one."""
    remembers_float32: ClassVar[bool] = False
    """Whether ``step`` keeps float32 between steps, where others round to half precision."""
    draws_float32: ClassVar[bool] = False
    """Whether noise is drawn in float32 whatever the model output's dtype."""

    settings: Any
    timesteps = TensorView()
    """The model calls in order, int64 where whole and float32 where fractional."""
    num_inference_steps: int | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class a constructor with the arguments that its settings name, in order."""
        super().__init_subclass__(**kwargs)
        if "Settings" in vars(cls):
            setattr(cls, "__init__", _constructor(cls.Settings, bool(cls._deprecated_kwargs)))  # noqa: B010

    def __init__(self, *values: Any, **settings: Any) -> None:
        raise TypeError(f"{type(self).__name__} has no Settings")

    def _make(self, settings: Mapping[str, Any]) -> None:
        known = self._known()
        for key in settings:
            if key not in known:
                raise InputError(
                    f"{type(self).__name__} has no setting {key!r}. It has: "
                    f"{', '.join(sorted(known))}. For a config with more keys use from_config."
                )
        total = settings.get("num_train_timesteps", 1)
        if isinstance(total, bool) or not isinstance(total, int) or not 1 <= total <= _MOST:
            raise InputError(f"num_train_timesteps must be from 1 to {_MOST}; got {total!r}.")
        kind: Any = self.Settings
        for key, kinds in _kinds(kind).items():
            if key in settings and not _fits(settings[key], kinds):
                names = " or ".join(_CALLED.get(kind, "a list") for kind in kinds)
                raise InputError(f"{key} is {settings[key]!r:.80}; {names} was expected.")
        self.settings = made = self._checked(self.Settings(**settings))
        shown = {f.name: getattr(made, f.name) for f in dataclasses.fields(self.Settings)}
        self._internal_dict = merge_config(type(self).__name__, shown, set(settings), {})
        self.is_scale_input_called = False
        self._prepare()
        self._place(self._untimed())

    @classmethod
    def _known(cls) -> set[str]:
        return {f.name for f in dataclasses.fields(cls.Settings)}

    # What a scheduler defines.

    def _checked(self, settings: Any) -> Any:
        """The settings; ``InputError`` if one cannot be used."""
        return settings

    @abstractmethod
    def _prepare(self) -> None:
        """Compute everything that depends only on the settings."""

    @abstractmethod
    def _untimed(self) -> Grid:
        """The grid before any number of steps was asked for: all training timesteps."""

    @abstractmethod
    def _grid(self, request: Request) -> Grid:
        """The steps for a request."""

    @abstractmethod
    def _table(self, grid: Grid, begin: int, options: Options) -> Schedule:
        """The table for a grid, from its step ``begin`` on."""

    @abstractmethod
    def _noise_scales(self, timesteps: npt.NDArray[Any]) -> tuple[Any, Any]:
        """Scales of clean sample and noise at each timestep, float32."""

    def _init_noise_sigma(self, grid: Grid) -> Any:
        return 1.0

    # The pure path.

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        eta: float | None = None,
        begin: int = 0,
        **more: Any,
    ) -> Schedule:
        """The table for this many steps, from model call ``begin`` on; the scheduler is unchanged.

        ``begin=t * scheduler.order`` is what Diffusers' pipelines reach with ``timesteps[t:]`` and
        ``set_begin_index(t)`` for image-to-image: methods that look back have nothing to look at
        there, and start as they do at the top. ``mu`` is the shift for the picture's size, see
        ``mu_for``. ``eta`` is the share of noise of DDIM and TCD, and means nothing elsewhere.
        ``more`` is what else the class's ``set_timesteps`` or ``step`` takes.

        Raises:
            InputError: the steps asked for are none, too many, or in a form it does not take.
        """
        options = {key: more.pop(key) for key in _OPTIONS & set(more)}
        asked = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu, **more}
        grid = self._grid(self._request(num_inference_steps, asked))
        calls = len(grid.timesteps)
        if not 0 <= begin < max(calls, 1) or begin % self.order:
            every = f", a multiple of {self.order}" if self.order > 1 else ""
            raise InputError(
                f"begin={begin} is not one of the {calls} steps of this schedule. "
                f"Use 0 to {calls - 1}{every}."
            )
        return self._table(grid, begin, Options(eta=eta, **options))

    def mu_for(self, image_seq_len: int) -> float:
        """The ``mu`` of a picture of so many tokens, by the ends that the config names."""
        ends = {
            "base_seq_len": "base_image_seq_len",
            "max_seq_len": "max_image_seq_len",
            "base_shift": "base_shift",
            "max_shift": "max_shift",
        }
        given = {end: self.config.get(key) for end, key in ends.items()}
        known = {end: value for end, value in given.items() if value is not None}
        return calculate_shift(image_seq_len, **known)

    @classmethod
    def takes(cls, argument: str) -> bool:
        """Whether ``schedule`` takes an argument, such as ``"sigmas"``, which not every class does."""
        return argument in cls._takes()

    @classmethod
    def _takes(cls) -> tuple[str, ...]:
        """What ``set_timesteps`` takes besides the number of steps and the device."""
        names = inspect.signature(cls.set_timesteps).parameters
        return tuple(name for name in names if name in _REQUESTS)

    def _request(self, count: Any, asked: Mapping[str, Any]) -> Request:
        asked = {key: value for key, value in asked.items() if value is not None}
        takes = self._takes()
        for key in asked:
            if key not in takes:
                known = ", ".join(["num_inference_steps", *takes])
                raise InputError(f"{type(self).__name__} takes no {key}=. It takes: {known}.")
        if count is not None:
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
                raise InputError(
                    f"num_inference_steps must be a whole number of at least 1; got {count!r}."
                )
            count = int(count)
        for key in ("timesteps", "sigmas"):
            if key in asked:
                asked[key] = host(asked[key])
                if asked[key].size == 0:
                    raise InputError(f"{key}= is empty. Pass at least one value or leave it out.")
        return Request(num_inference_steps=count, **asked)

    # The face: a grid, and the place in it.

    @abstractmethod
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Choose the steps for ``step``, with the arguments that Diffusers' class has."""

    def _set(self, count: Any, device: Any, **asked: Any) -> None:
        self._place(self._grid(self._request(count, asked)))
        if device is not None and torch_here() is not None:
            self.__dict__["_timesteps_seen"] = self._timesteps, self.timesteps.to(device)

    def _place(self, grid: Grid) -> None:
        self._timesteps, self._sigmas = grid.timesteps, grid.sigmas
        self.num_inference_steps = grid.steps
        self._run: _Run | None = None
        self._begin_index: int | None = None

    @property
    def _now(self) -> Grid:
        steps = self.num_inference_steps
        return Grid(timesteps=self._timesteps, sigmas=self._sigmas, steps=steps)

    @property
    def init_noise_sigma(self) -> Any:
        """What unit noise is multiplied by to be the first sample."""
        return self._init_noise_sigma(self._now)

    @property
    def step_index(self) -> int | None:
        """The step that comes next; None before the first."""
        return None if self._run is None else self._run.index

    @property
    def begin_index(self) -> int | None:
        """The first step, as set with ``set_begin_index``."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this step instead of looking the first timestep up."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """The step of a timestep; of the second one where it occurs twice, as in Diffusers.

        Raises:
            InputError: it is none of the timesteps.
        """
        known = self._timesteps if schedule_timesteps is None else host(schedule_timesteps)
        found = np.flatnonzero(known == host(timestep))
        if len(found) == 0:
            raise InputError(
                f"Timestep {timestep} is not one of this scheduler's. Pass one of "
                "scheduler.timesteps, not its position in the list."
            )
        return int(found[1 if len(found) > 1 else 0])

    def _running(self, timestep: Any, options: Options | None = None) -> _Run:
        run = self._run
        if run is None:
            begin = self._begin_index
            if begin is None:
                # Not the second of two equal timesteps where a run starts at the top.
                top = host(timestep) == self._timesteps[0]
                begin = 0 if top else self.index_for_timestep(timestep)
            options = Options() if options is None else options
            grid = self._now
            table = self._table(grid, begin, options)
            run = _Run(grid=grid, options=options, schedule=table, begin=begin, index=begin)
        elif options is not None and options != run.options:
            table = self._table(run.grid, run.begin, options)
            run = dataclasses.replace(run, options=options, schedule=table)
        self._run = run
        return run

    def scale_model_input(self, sample: Array, timestep: Any = None) -> Array:
        """The sample as the model wants to see it at this timestep."""
        self.is_scale_input_called = True
        if not self.scales_input:
            return sample
        run = self._running(timestep)
        return run.schedule.scale_input(min(run.row, len(run.schedule) - 1), sample)

    @abstractmethod
    def step(self, model_output: Array, timestep: Any, sample: Array, *args: Any, **kw: Any) -> Any:
        """One step down, with the arguments that Diffusers' class has.

        Classes that draw take ``noise=`` as well, to be used instead of drawing.

        Raises:
            InputError: no steps were chosen, they are all done, or the timestep is none of them.
        """

    def _step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        return_dict: bool,
        *,
        options: Options | None = None,
        generator: Any = None,
        noise: Array = None,
    ) -> Any:
        self._check_steps()
        run = self._running(timestep, Options() if options is None else options)
        if run.row >= len(run.schedule):
            raise InputError(
                f"All {len(run.schedule)} steps are done. Call set_timesteps again for a new run."
            )
        sample32 = to_float32(sample)
        state = run.schedule.start(sample32) if run.state is None else (sample32, *run.state[1:])
        state, result = self._apply(
            run.schedule, run.row, state, model_output, sample, noise, generator, return_dict
        )
        if not self.remembers_float32:
            dtype = promoted(sample, model_output)
            state = (state[0], *(to_float32(cast(slot, dtype)) for slot in state[1:]))
        self._run = dataclasses.replace(run, index=run.index + 1, state=state)
        return result

    def _check_steps(self) -> None:
        if self.needs_steps and self.num_inference_steps is None:
            raise InputError("No steps were chosen yet. Call set_timesteps(n) before step().")

    def _step_alone(
        self,
        table: Schedule,
        model_output: Array,
        sample: Array,
        return_dict: bool,
        *,
        generator: Any = None,
        noise: Array = None,
    ) -> Any:
        """The result of a table of one step, for schedulers that keep no state."""
        state = table.start(sample)
        return self._apply(table, 0, state, model_output, sample, noise, generator, return_dict)[1]

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
        if noise is not None and generator is not None:
            raise InputError(
                "More than one source of noise was given. Pass noise= or generator=, not both."
            )
        if schedule.draws[i] and noise is None:
            noise = draw(state[0], generator, None if self.draws_float32 else model_output.dtype)
        after = schedule.advance(i, state, model_output, noise)
        dtype = promoted(sample, model_output)
        second_dtype = dtype
        if self.draws_float32 and schedule.draws[i]:  # the noise takes part in the promotion
            dtype = promoted(state[0], model_output)
        results = {
            "prev_sample": cast(after[0], model_output.dtype if self.casts_to_output else dtype)
        }
        if self.second is not None:
            second = schedule.second(i, state, model_output, noise)
            results[self.second] = second if self.casts_to_output else cast(second, second_dtype)
        return after, StepOutput(results) if return_dict else tuple(results.values())

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Any) -> Array:
        """Clean samples brought to the noise levels of ``timesteps`` [batch]."""
        signal, sigma = self._noise_scales(np.atleast_1d(host(timesteps)))
        return self._mix(signal, original_samples, sigma, noise)

    def _mix(self, a: Any, x: Array, b: Any, y: Array) -> Array:
        shape = (-1,) + (1,) * (x.ndim - 1)
        a, b = (like(np.asarray(c, dtype=np.float32).reshape(shape), x) for c in (a, b))
        return cast(a * x + b * y, x.dtype)

    # What loops of one's own call or set of Diffusers' classes, beside their public methods.

    @property
    def _step_index(self) -> int | None:
        return self.step_index

    @_step_index.setter
    def _step_index(self, index: int | None) -> None:
        if index is None:
            self._run = None
        elif self._run is None:
            self._begin_index = index
        else:
            self._run = dataclasses.replace(self._run, index=index)

    def _init_step_index(self, timestep: Any) -> None:
        self._running(timestep)

    def __getattr__(self, name: str) -> Any:
        # A setting; or a method of Diffusers' class that the table has no need of, such as
        # ``_convert_to_karras``, on a scheduler of that class with the same settings and steps.
        config = self.__dict__.get("_internal_dict")
        if config is None or name in config or name.startswith("push_"):
            return super().__getattr__(name)
        if _diffusers.method_of(type(self).__name__, name) is None:
            return super().__getattr__(name)
        return getattr(self._as_diffusers(), name)

    def _as_diffusers(self) -> Any:
        from importlib import import_module

        made = getattr(import_module("diffusers"), type(self).__name__).from_config(self.config)
        made.num_inference_steps, made.timesteps = self.num_inference_steps, self.timesteps
        if hasattr(made, "sigmas"):
            made.sigmas = self.sigmas
        made._step_index, made._begin_index = self.step_index, self.begin_index
        return made

    # The family.

    @property
    def compatibles(self) -> list[type[Scheduler]]:
        """The classes that this scheduler's config can be handed to."""
        return self._get_compatibles()

    @classmethod
    def _get_compatibles(cls) -> list[type[Scheduler]]:
        from . import SCHEDULERS, scheduler_class

        to = cls.hands_to if cls.hands_to is not None else cls.family
        if not to:
            return [cls]
        members = [scheduler_class(name) for name in SCHEDULERS]
        return [cls, *(c for c in members if c.family == to and c is not cls)]

    def __len__(self) -> int:
        return int(self.settings.num_train_timesteps)


_REQUESTS = {f.name for f in dataclasses.fields(Request)} - {"num_inference_steps"}
_OPTIONS = {f.name for f in dataclasses.fields(Options)} - {"eta"}


def _constructor(settings: type[Any], takes_deprecated: bool) -> Callable[..., None]:
    """An ``__init__`` with the fields of ``settings`` as its arguments."""
    fields = dataclasses.fields(settings)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind)]
    for f in fields:
        made = f.default_factory
        default = f.default if made is dataclasses.MISSING else made()
        parameters.append(inspect.Parameter(f.name, kind, default=default, annotation=f.type))
    if takes_deprecated:
        parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))

    def __init__(self: Scheduler, *values: Any, **named: Any) -> None:
        names = [f.name for f in fields]
        if len(values) > len(names) or set(names[: len(values)]) & set(named):
            raise TypeError(f"{type(self).__name__} got too many arguments: {values!r}")
        self._make({**dict(zip(names, values, strict=False)), **named})

    __init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return __init__


#: Types of settings, as they are called in errors.
_CALLED = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
_CALLED |= {type(None): "nothing"}


def _kinds(settings: type[Any]) -> dict[str, tuple[Any, ...]]:
    """The types that each field may be of."""
    hints = typing.get_type_hints(settings)
    unions = (types.UnionType, typing.Union)
    return {
        name: typing.get_args(hint) if typing.get_origin(hint) in unions else (hint,)
        for name, hint in hints.items()
    }


def _fits(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a setting is of one of its types; of lists and functions it is not asked what is in them."""
    if value is None or isinstance(value, bool | np.bool_):
        return bool in kinds or (value is None and type(None) in kinds) or Any in kinds
    if isinstance(value, str):
        return str in kinds or Any in kinds
    if isinstance(value, numbers.Real | np.number):
        try:
            number = float(value)
        except OverflowError:
            return False
        whole = number.is_integer() and int in kinds
        return Any in kinds or (not math.isnan(number) and (float in kinds or whole))
    return not set(kinds) <= _CALLED.keys()


def choose(name: str, value: Any, options: tuple[Any, ...]) -> None:
    """Refuse a setting that is none of its options."""
    if value not in options:
        known = ", ".join(repr(option) for option in options)
        raise InputError(f"{name} {value!r} is not known here. Use one of: {known}.")
