"""Guidance between two shares of the steps alone (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

from dataclasses import dataclass

from perfuse.contract.guider import Guider
from perfuse.contract.hooks import TransformManifest
from perfuse.contract.steps import State, Step, Task, Tools
from perfuse.contract.transform import Plan, Transform
from perfuse.tasks.guiders.limited import limited
from perfuse.tasks.guiders.numbers import check_interval

__all__ = ["TRANSFORMS", "GuidanceInterval"]

TRANSFORMS = (
    TransformManifest(
        name="guidance-interval",
        impl=f"{__name__}:GuidanceInterval",
        summary="no guidance outside two shares of the steps: guidance-interval:start=0,stop=0.5",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The shares of the steps, 0 to 1, between which there is guidance."""

    start: float = 0.0
    stop: float = 0.5

    def __post_init__(self) -> None:
        check_interval("start", self.start, "stop", self.stop)


@dataclass(frozen=True)
class _Limit:
    """The guider, at some steps alone."""

    start: float
    stop: float

    def __call__(self, tools: Tools, guider: Guider) -> State:
        return {"guider": limited(guider, self.start, self.stop)}


class GuidanceInterval(Transform):
    """Asks the denoiser with the prompt alone outside the interval: half of a step's work."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        limit = Step(
            name="limit_guidance", run=_Limit(options.start, options.stop), outputs=("guider",)
        )

        def change(task: Task) -> Task:
            return task.insert(limit, before="prepare_schedule")

        return plan.with_tasks(change)
