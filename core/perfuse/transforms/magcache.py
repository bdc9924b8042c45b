"""MagCache (Ma et al. 2025, https://arxiv.org/abs/2506.09045): blocks left out by how they fade."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.forecast import check_counts, check_positive
from perfuse.tasks.reusing import Look
from perfuse.transforms.block_cache import BlockCache, BlockRule

__all__ = ["TRANSFORMS", "MagCache", "MagCacheCalibration", "measured"]

TRANSFORMS = (
    TransformManifest(
        name="magcache",
        impl=f"{__name__}:MagCache",
        summary="a transformer's blocks left out by measured ratios: magcache:ratios=1+1.02+0.99",
    ),
    TransformManifest(
        name="magcache-calibration",
        impl=f"{__name__}:MagCacheCalibration",
        summary="measures the ratios that magcache takes: perfuse.transforms.magcache.measured",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What MagCache knows of the steps since the last computed one."""

    #: The product of their ratios.
    ratio: float = 1.0
    #: How far those were from 1, added up.
    error: float = 0.0
    #: How many there are.
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Options(BlockRule):
    """How much error may add up before the blocks run again."""

    #: For each step the size of what the blocks add, relative to the step before; the first is 1.
    #: Those of another number of steps are stretched.
    ratios: tuple[float, ...] = ()
    #: ``δ``: the largest error.
    threshold: float = 0.06
    #: ``K``: at how many steps in a row the blocks are left out at most.
    most: int = 3
    #: The share of the steps at the beginning at which they always run.
    warmup: float = 0.2

    first = 0

    def __post_init__(self) -> None:
        check_positive("threshold", self.threshold)
        check_counts(most=self.most)
        for ratio in self.ratios:
            check_positive("ratios", ratio)
        if not 0 <= self.warmup <= 1:
            raise InputError(f"warmup={self.warmup} was given; it is a share of steps, 0 to 1.")

    def check(self, total: int) -> None:
        if len(self.ratios) < 2:
            raise InputError(
                f"magcache was asked for with {len(self.ratios)} ratios; each model has its own, of as "
                "many steps as it is drawn in. Measure them: "
                "perfuse.transforms.magcache.measured(pipe, prompt, num_inference_steps=28)."
            )

    def reuses(self, look: Look, memory: Memory) -> tuple[bool, Memory]:
        if look.index < int(self.warmup * look.total + 0.5):
            return False, memory
        ratio = memory.ratio * stretched(self.ratios, look.total)[look.index]
        error, steps = memory.error + abs(1 - ratio), memory.steps + 1
        little = error <= self.threshold and steps <= self.most
        return little, Memory(ratio=ratio, error=error, steps=steps)

    def keep(self, look: Look, memory: Memory | None) -> Memory:
        return Memory()


class MagCache(BlockCache):
    """Leaves all blocks out while what they add is expected to change little."""

    Options = Options


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The ratios so far, and what the blocks added at the last step."""

    ratios: tuple[float, ...]
    added: Array


@dataclass(frozen=True, kw_only=True)
class Calibration(BlockRule):
    """Leaves nothing out, and measures from step to step how much the blocks add."""

    first = 0

    def check(self, total: int) -> None:
        if total < 2:
            raise InputError(
                f"magcache-calibration was asked for with {total} step; it measures how much changes "
                "from one step to the next. Give as many as you draw with."
            )

    def reuses(self, look: Look, memory: Measured) -> tuple[bool, Measured]:
        return False, memory

    def keep(self, look: Look, memory: Measured | None) -> Measured:
        from perfuse.arrays.operations import mean_ratio

        if memory is None:
            return Measured(ratios=(1.0,), added=look.state)
        ratio = mean_ratio(look.state, memory.added)
        return Measured(ratios=(*memory.ratios, ratio), added=look.state)


class MagCacheCalibration(BlockCache):
    """Measures the ratios that ``magcache`` takes: ``measured`` runs it."""

    Options = Calibration
    approximate = False


def measured(pipe: Any, *prompt: str, **given: Any) -> str:
    """The ``magcache`` of a pipeline's model: the transform with its ratios, as text.

    Args:
        pipe: The pipeline, without transforms that leave steps out.
        *prompt: As in a call.
        **given: As in a call: ``num_inference_steps``, ``guidance_scale`` …

    Raises:
        InputError: the model is not of blocks in a row, or there is one step.
    """
    other = type(pipe).from_pipe(pipe)
    other.add_transform("magcache-calibration")
    ratios: tuple[float, ...] = ()
    for event in other.stream(*prompt, **{**given, "output_type": "latent"}):
        if event.step == "denoise":
            ratios = event.state["kept_states"].memory.ratios
    return f"magcache:ratios={'+'.join(f'{ratio:.5f}' for ratio in ratios)}"


def stretched(ratios: Sequence[float], total: int) -> Sequence[float]:
    """As many ratios as there are steps: for each the one that is nearest."""
    if total == 1:
        return ratios[-1:]
    scale = (len(ratios) - 1) / (total - 1)
    return [ratios[round(i * scale)] for i in range(total)]
