"""Weights stored in another scheme than the precision that is computed in."""

from dataclasses import dataclass, replace

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform

__all__ = ["TRANSFORMS", "Storage"]

TRANSFORMS = (
    TransformManifest(
        name="storage",
        impl=f"{__name__}:Storage",
        summary="weights stored in fewer bits: storage:scheme=float16,component=unet",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to store, and how."""

    #: A scheme of the backend or the exporter; one that has it not refuses it by name.
    scheme: str = "float16"
    #: One component; all of them by default.
    component: str = ""


class Storage(Transform):
    """Has weights stored in a scheme, as Diffusers' layerwise casting does."""

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        if options.component and options.component not in plan.components:
            raise self.refuse(
                f"component={options.component} was given, and the pipeline has "
                f"{', '.join(plan.components)}."
            )
        for name, component in plan.components.items():
            if options.component in ("", name):
                plan = plan.with_component(replace(component, storage=options.scheme))
        return plan
