"""SeaCache (2026, https://arxiv.org/abs/2602.18993): steps left out while little changes that can be seen.

What changes is looked for where it can be told from noise: a Wiener filter of pictures' usual spectrum.
Here a line through the last two predictions stands for those left out, where the paper's goes through
what the blocks of a transformer add: that needs nothing from inside the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.spec import Array
from perfuse.contract.transform import Plan, Transform
from perfuse.errors import InputError
from perfuse.tasks.forecast import check_counts, check_positive
from perfuse.tasks.skipping import Answer, Rule, Seen, skipping

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TRANSFORMS", "SeaCache", "gain"]

TRANSFORMS = (
    TransformManifest(
        name="seacache",
        impl=f"{__name__}:SeaCache",
        summary="steps left out while little changes but noise: seacache:threshold=0.25",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What SeaCache knows of a run."""

    #: The filtered latents of the step before.
    seen: Array
    #: How much those changed since the last computed step, added up, and how many were left out.
    change: float = 0.0
    left_out: int = 0
    #: The last two computed steps, or one, with what was predicted there.
    steps: tuple[int, ...] = ()
    predictions: tuple[Array, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Options(Rule):
    """How much may change before a step is computed again."""

    #: Of changes relative to the size of what changed.
    threshold: float = 0.25
    #: How many steps are left out in a row at most.
    most: int = 2
    #: At how many steps the denoiser is asked before any is left out.
    warmup: int = 1
    #: How fast the spectrum of pictures falls.
    power: float = 3.0
    #: 1 for a line through two predictions, 0 for the last one again.
    order: int = 1

    def __post_init__(self) -> None:
        check_positive("threshold", self.threshold)
        check_positive("power", self.power)
        check_counts(most=self.most, warmup=self.warmup)
        if self.order not in (0, 1):
            raise InputError(f"order={self.order} was given; it must be 0 or 1.")

    def check(self, total: int) -> None:
        check_counts(total, warmup=self.warmup)

    def asks(self, seen: Seen, memory: Memory) -> tuple[bool, Memory]:
        from perfuse.arrays.operations import mean_size

        now = self._filtered(seen)
        change = memory.change + mean_size(now - memory.seen) / (mean_size(memory.seen) + 1e-16)
        few = memory.left_out < self.most and seen.index >= self.warmup
        asked = not (few and seen.index < seen.total - 1 and change < self.threshold)
        left_out = 0 if asked else memory.left_out + 1
        return asked, replace(memory, seen=now, change=0.0 if asked else change, left_out=left_out)

    def keep(self, seen: Seen, answer: Answer, memory: Memory | None) -> Memory:
        known = memory if memory is not None else Memory(seen=self._filtered(seen))
        steps = (*known.steps, seen.index)[-2:]
        return replace(known, steps=steps, predictions=(*known.predictions, answer.guided)[-2:])

    def guess(self, seen: Seen, memory: Memory) -> Array:
        *before, last = memory.predictions
        if not (self.order and before):
            return last
        first, second = memory.steps
        return last + (last - before[0]) * ((seen.index - second) / (second - first))

    def _filtered(self, seen: Seen) -> Array:
        from perfuse.arrays.operations import with_gain

        return with_gain(seen.latents, gain(seen.latents.shape[-2:], *seen.noising, self.power))


def gain(
    size: Sequence[int], signal: float, noise: float, power: float
) -> "NDArray[np.floating[Any]]":
    """How much of each frequency [h, w] is no noise, with a mean of 1 (eq. 7)."""
    import numpy as np

    signal, noise, axes = max(signal, 1e-6), max(noise, 1e-6), []
    for length in size:
        clean = 1 / (np.abs(np.fft.fftfreq(length)) ** power + 1e-16)
        axes.append(signal * clean / (signal**2 * clean + noise**2 + 1e-16))
    both: NDArray[np.floating[Any]] = np.multiply.outer(*axes)
    both /= both.mean()
    return both


class SeaCache(Transform):
    """Asks the denoiser again where enough has changed that is no noise."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        return plan.with_tasks(partial(skipping, rule=options))
