"""Transforms on a bridged pipeline: each graph's component is the only one of a plan."""

from collections.abc import Sequence

from perfuse.contract.component import Component
from perfuse.contract.latents import PixelLatents
from perfuse.contract.spec import PipelineSpec
from perfuse.contract.transform import Plan
from perfuse.errors import ArtifactError, InputError
from perfuse.run.transforms import Chosen, applied

__all__ = ["rewritten"]


def rewritten(
    component: Component, transforms: Sequence[Chosen]
) -> tuple[Component, tuple[Chosen, ...]]:
    """A component as transforms rewrite it, and those that did.

    One that refuses is for another component: what the pipeline's plan would have shown it is not there.
    """
    done: list[Chosen] = []
    for chosen in transforms:
        spec = PipelineSpec(
            class_name=component.spec.class_name,
            tasks=(),
            components={component.name: component.spec},
            scheduler={},
            latents=PixelLatents(channels=1, downscale=1),
        )
        plan = Plan(spec=spec, components={component.name: component}, tasks={})
        try:
            after = applied(plan, [chosen]).components[component.name]
        except (InputError, ArtifactError):
            continue
        if after != component:
            component = after
            done.append(chosen)
    return component, tuple(done)
