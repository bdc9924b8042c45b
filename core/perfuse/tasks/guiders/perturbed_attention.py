"""Perturbed-attention guidance (Ahn et al. 2024, arXiv:2403.17377), with Diffusers' guider's settings."""

from dataclasses import dataclass
from typing import Any

from perfuse.contract.guider import Perturbation
from perfuse.tasks.guiders.numbers import check_interval, check_number
from perfuse.tasks.guiders.worse import Worse, WorseContrast, layers_of

__all__ = ["PerturbedAttentionGuidance"]


@dataclass(frozen=True, kw_only=True)
class PerturbedAttentionGuidance(WorseContrast):
    """Away from a denoiser that attends, in some layers, from each pixel to itself alone.

    ``PAGGuidance`` is the same method with the settings of Diffusers' PAG pipelines, at all steps.
    """

    #: ``s``: how far to go away from the worse prediction.
    perturbed_guidance_scale: float = 2.8
    #: The fraction of the steps after which this starts; the step at it is left out, as in Diffusers.
    perturbed_guidance_start: float = 0.01
    #: The fraction at which it stops.
    perturbed_guidance_stop: float = 0.2
    #: Layers by parts of their names, ``"mid+up_blocks.0"``, or several texts.
    perturbed_guidance_layers: str | tuple[str, ...] = "mid"
    #: Diffusers' ``LayerSkipConfig``, or several, instead of the layers.
    perturbed_guidance_config: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("perturbed_guidance_scale", self.perturbed_guidance_scale)
        check_interval(
            "perturbed_guidance_start",
            self.perturbed_guidance_start,
            "perturbed_guidance_stop",
            self.perturbed_guidance_stop,
        )
        given, config = self.perturbed_guidance_layers, self.perturbed_guidance_config
        layers = layers_of("perturbed_guidance_layers", given, config)
        object.__setattr__(self, "perturbed_guidance_layers", layers)
        object.__setattr__(self, "perturbed_guidance_config", None)

    @property
    def worse(self) -> Worse:
        layers = self.perturbed_guidance_layers
        assert isinstance(layers, tuple)
        return Worse(
            perturbation=Perturbation(kind="identity", layers=layers),
            scale=self.perturbed_guidance_scale,
            start=self.perturbed_guidance_start,
            stop=self.perturbed_guidance_stop,
        )
