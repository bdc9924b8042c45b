"""Text encoders with what textual inversion, ``clip_skip`` and prompt weights need."""

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.spec import Role
from perfuse.contract.transform import Plan, Transform
from perfuse.models.clip_text.steered import steered

__all__ = ["TRANSFORMS", "Prompts"]

TRANSFORMS = (
    TransformManifest(
        name="prompts",
        impl=f"{__name__}:Prompts",
        summary="text encoders that take learned tokens, clip_skip and prompt weights",
    ),
)


class Prompts(Transform):
    """Gives CLIP's text encoders inputs for learned tokens and a mask, and all states as outputs.

    A pipeline of a checkpoint applies it by itself when a call needs it. An export has to be made
    with it.
    """

    def apply(self, plan: Plan, options: object) -> Plan:
        encoders = {one.name for one in plan.spec.components.values() if _encodes(one.role)}
        changed = [steered(plan.components[name]) for name in plan.components if name in encoders]
        if not any(changed):
            raise self.refuse("this pipeline has no text encoder of CLIP's kind.")
        for component in changed:
            if component is not None:
                plan = plan.with_component(component)
        return plan


def _encodes(role: str) -> bool:
    return role == Role.TEXT_ENCODER
