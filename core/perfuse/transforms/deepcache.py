"""DeepCache (Ma et al. 2023, https://arxiv.org/abs/2312.00858): a UNet's depth at some steps alone."""

from dataclasses import dataclass
from typing import Any

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.models.registry import shallow
from perfuse.tasks.forecast import check_counts
from perfuse.tasks.reusing import Look, Reuse, in_parts

__all__ = ["TRANSFORMS", "DeepCache"]

TRANSFORMS = (
    TransformManifest(
        name="deepcache",
        impl=f"{__name__}:DeepCache",
        summary="a UNet's last layers alone at most steps: deepcache:every=3",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(Reuse):
    """How often the whole UNet runs, and what runs in between."""

    #: ``N``: the whole UNet runs once in so many steps.
    every: int = 3
    #: How many layers of the last block run at the others; 0 for all but its first.
    layers: int = 0

    def __post_init__(self) -> None:
        check_counts(every=self.every)

    def check(self, total: int) -> None:
        check_counts(total, every=self.every)

    def reuses(self, look: Look, memory: Any) -> tuple[bool, Any]:
        return look.index - look.computed < self.every, memory


class DeepCache(Transform):
    """Adds an entry of the UNet's last layers, which most steps run, and what they are given."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        if not plan.tasks:
            raise self.refuse("the loop is not perfuse's, and runs the whole denoiser alone.")
        denoiser = plan.components[plan.spec.denoiser.name]
        found = shallow(denoiser, options.layers)
        if found is None:
            raise self.refuse(
                f"{denoiser.name} is a {denoiser.spec.class_name}, which has no shallow part. Use "
                "one that works on whole steps, such as easycache."
            )
        return in_parts(plan, *found, rule=options)
