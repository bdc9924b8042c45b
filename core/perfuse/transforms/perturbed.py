"""A worse version of the denoiser beside it, for guiders that go away from what it predicts."""

from dataclasses import dataclass

from perfuse.contract.guider import Perturbation
from perfuse.contract.hooks import TransformManifest
from perfuse.contract.transform import Plan, Transform
from perfuse.models.registry import perturbed

__all__ = ["TRANSFORMS", "Perturbed"]

TRANSFORMS = (
    TransformManifest(
        name="perturbed",
        impl=f"{__name__}:Perturbed",
        summary="a worse denoiser for guiders, in an export: perturbed:kind=identity,layers=mid",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is changed in which layers."""

    #: ``identity`` for PAG, ``blur`` for SEG, ``skip`` for SLG and autoguidance.
    kind: str = "identity"
    #: Parts of the names of layers, ``mid+up_blocks.0``.
    layers: tuple[str, ...] = ("mid",)
    #: For ``blur``: the standard deviation in pixels; less than 0 for an endless blur.
    amount: float = 0.0


class Perturbed(Transform):
    """Adds another entry of the denoiser; pictures change where a guider uses it."""

    Options = Options

    def apply(self, plan: Plan, options: object) -> Plan:
        assert isinstance(options, Options)
        perturbation = Perturbation(kind=options.kind, layers=options.layers, amount=options.amount)
        denoiser = plan.components[plan.spec.denoiser.name]
        return plan.with_component(perturbed(denoiser, perturbation))
