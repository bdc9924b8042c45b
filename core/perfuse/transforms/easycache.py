"""EasyCache (Zhou et al. 2025, https://arxiv.org/abs/2507.02860): steps left out while little changes."""

from dataclasses import dataclass, replace
from functools import partial

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.spec import Array
from perfuse.contract.transform import Plan, Transform
from perfuse.tasks.forecast import check_counts, check_positive
from perfuse.tasks.skipping import Answer, Rule, Seen, skipping

__all__ = ["TRANSFORMS", "EasyCache"]

TRANSFORMS = (
    TransformManifest(
        name="easycache",
        impl=f"{__name__}:EasyCache",
        summary="steps left out while little changes, decided as it runs: easycache:threshold=0.1",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What EasyCache knows of a run."""

    #: The sample of the step before.
    previous: Array
    #: The sample and the prediction with the prompt at the last computed step.
    sample: Array
    positive: Array
    #: ``Δ``: the guided prediction less the sample there.
    change: Array
    #: ``k``: how much predictions changed for a change of the sample; not known at first.
    rate: float | None = None
    #: ``E``: the error expected of the steps left out since then.
    error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Options(Rule):
    """How much error may add up before a step is computed again."""

    #: ``τ``, relative to the size of predictions.
    threshold: float = 0.1
    #: At how many steps the denoiser is asked before any is left out.
    warmup: int = 3

    def __post_init__(self) -> None:
        check_positive("threshold", self.threshold)
        check_counts(warmup=self.warmup)

    def check(self, total: int) -> None:
        check_counts(total, warmup=self.warmup)

    def asks(self, seen: Seen, memory: Memory) -> tuple[bool, Memory]:
        from perfuse.arrays.operations import mean_size

        moved = mean_size(seen.sample - memory.previous)
        memory = replace(memory, previous=seen.sample)
        if seen.index < self.warmup or seen.index == seen.total - 1 or memory.rate is None:
            return True, memory
        error = memory.error + memory.rate * moved / mean_size(memory.positive)  # eq. 7
        return not error < self.threshold, replace(memory, error=error)

    def keep(self, seen: Seen, answer: Answer, memory: Memory | None) -> Memory:
        from perfuse.arrays.operations import mean_size

        rate = None
        if memory is not None and (moved := mean_size(seen.sample - memory.sample)) > 0:
            rate = mean_size(answer.positive - memory.positive) / moved  # eq. 5
        return Memory(
            previous=seen.sample,
            sample=seen.sample,
            positive=answer.positive,
            change=answer.guided - seen.sample,
            rate=rate,
        )

    def guess(self, seen: Seen, memory: Memory) -> Array:
        return seen.sample + memory.change


class EasyCache(Transform):
    """Asks the denoiser again where its answer is expected to have changed enough."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        return plan.with_tasks(partial(skipping, rule=options))
