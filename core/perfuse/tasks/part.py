"""Which part of a schedule runs: all of it, or what a strength, a start or an end leaves."""

import dataclasses
import numbers
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from perfuse.errors import InputError
from perfuse.schedulers import Schedule, Scheduler

__all__ = ["Part"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a schedule, as Diffusers' pipelines choose it."""

    #: The share of the steps to run, from the end: how much of a picture is drawn anew.
    strength: float | None = None
    #: Whether a part of a step counts as one, as in Diffusers' pipelines of flow-matching models.
    rounds_up: bool = False
    #: Instead: the share of the training timesteps that another model has done already.
    start: float | None = None
    #: The share of the training timesteps at which to stop, for another model to go on.
    end: float | None = None

    def __post_init__(self) -> None:
        if self.strength is not None:
            check_share("strength", self.strength)
        for name, value in (("denoising_start", self.start), ("denoising_end", self.end)):
            if value is not None and not 0.0 < check_share(name, value) < 1.0:
                raise InputError(f"{name} must lie between 0 and 1, without both; got {value!r}.")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise InputError(
                f"denoising_start {self.start} and denoising_end {self.end} were given; the start "
                "must be smaller than the end."
            )

    def of(
        self, make: Callable[..., Schedule], scheduler: Scheduler, steps: int | None
    ) -> Schedule:
        """The schedule of this part.

        Args:
            make: ``(begin=0) -> Schedule``, from the model call ``begin`` on.
            scheduler: The scheduler that makes it.
            steps: The number of steps asked for; ``None`` for as many as there are model calls.

        Raises:
            InputError: no step is left.
        """
        train = int(scheduler.config["num_train_timesteps"]) if self._cuts else 0
        schedule = make()
        begin = 0
        if self.start is not None:
            begin = _begin_at(schedule, train - self.start * train, scheduler.order)
        elif self.strength is not None:
            count = len(schedule) if steps is None else steps
            left = count - count * self.strength if self.rounds_up else count
            kept = 0 if self.rounds_up else int(count * self.strength)
            begin = max(int(left) - kept, 0) * scheduler.order
        if begin >= len(schedule):
            raise InputError(
                f"{self._said()} leaves none of the {len(schedule)} steps. Ask for more strength "
                "or for more steps."
            )
        if begin > 0:
            schedule = make(begin=begin)
        if self.end is not None:
            last = round(train - self.end * train)
            rows = tuple(row for row in schedule.rows if row.timestep >= last)
            if not rows:
                raise InputError(f"{self._said()} leaves no step. Ask for a later end.")
            schedule = dataclasses.replace(schedule, rows=rows)
        return schedule

    @property
    def _cuts(self) -> bool:
        return self.start is not None or self.end is not None

    def _said(self) -> str:
        names = {
            "strength": self.strength if self.start is None else None,
            "denoising_start": self.start,
            "denoising_end": self.end,
        }
        return ", ".join(f"{name} {value}" for name, value in names.items() if value is not None)


def _begin_at(schedule: Schedule, timestep: float, order: int) -> int:
    """The first model call below a training timestep, never between the two calls of a step."""
    left = int(np.count_nonzero(schedule.timesteps < round(timestep)))
    if order == 2 and left % 2 == 0:
        left += 1
    return len(schedule) - left


def check_share(name: str, value: object) -> float:
    """The value as a float; ``InputError`` unless it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be a number from 0 to 1; got {value!r}.")
    share = float(value)
    if not 0.0 <= share <= 1.0:
        raise InputError(f"{name} must be a number from 0 to 1; got {value!r}.")
    return share
