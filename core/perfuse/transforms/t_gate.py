"""T-GATE (Zhang et al. 2024, https://arxiv.org/abs/2404.02747): no guidance, and text looked at no more."""

from dataclasses import dataclass
from functools import partial

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.models.registry import gated
from perfuse.tasks.forecast import check_counts
from perfuse.tasks.gating import gating

__all__ = ["TRANSFORMS", "TGate"]

TRANSFORMS = (
    TransformManifest(
        name="t-gate",
        impl=f"{__name__}:TGate",
        summary="no guidance after some steps, and a UNet's cross-attention kept: t-gate:gate=10",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """When the text has said what it has to say."""

    #: ``m``: how many steps are whole; the authors use 10 of 25 or more.
    gate: int = 10

    def __post_init__(self) -> None:
        check_counts(gate=self.gate)


class TGate(Transform):
    """Leaves out guidance after some steps, where cross-attentions give what they gave before."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        if not plan.tasks:
            raise self.refuse("the loop is not perfuse's, and takes nothing of an earlier step.")
        tasks = plan.with_tasks(partial(gating, gate=options.gate))
        denoiser = plan.components[plan.spec.denoiser.name]
        found = gated(denoiser)
        if found is None:
            raise self.refuse(
                f"{denoiser.name} is a {denoiser.spec.class_name}, whose attentions have no gate. Use "
                "guidance-interval, which leaves out as many predictions."
            )
        return tasks.with_component(found) if found is not denoiser else tasks
