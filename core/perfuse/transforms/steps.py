"""A list of the steps that are computed; the others take the last prediction again."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.errors import InputError
from perfuse.tasks.forecast import Forecast
from perfuse.tasks.skipping import skipping

__all__ = ["TRANSFORMS", "Steps"]

TRANSFORMS = (
    TransformManifest(
        name="steps",
        impl=f"{__name__}:Steps",
        summary="only some steps computed, by their numbers from 0: steps:compute=0+1+2+4+6+9",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Forecast):
    """Which steps are computed."""

    #: Their numbers, in order, from 0.
    compute: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        given = self.compute
        if not given or given[0] != 0 or list(given) != sorted(set(given)):
            raise InputError(
                f"compute={'+'.join(map(str, given))} was given; list the steps to compute, each "
                "once, in order, and step 0 first: compute=0+1+3."
            )

    def check(self, total: int) -> None:
        if self.compute[-1] >= total:
            raise InputError(
                f"compute has step {self.compute[-1]}, and there are {total} steps, from 0."
            )

    @property
    def depth(self) -> int:
        return 1

    def computes(self, index: int, steps: tuple[int, ...]) -> bool:
        return index in self.compute

    def weights(self, steps: Sequence[int], index: int, total: int) -> Sequence[float]:
        return (1.0,)


class Steps(Transform):
    """Asks the denoiser at listed steps alone."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        return plan.with_tasks(partial(skipping, rule=options))
