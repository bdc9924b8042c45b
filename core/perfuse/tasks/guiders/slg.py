"""Skip-layer guidance (Stability AI 2024, with Stable Diffusion 3.5; Hyung et al., arXiv:2411.18664)."""

from dataclasses import dataclass
from typing import Any

from perfuse.contract.guider import Perturbation
from perfuse.tasks.guiders.numbers import check_interval, check_number
from perfuse.tasks.guiders.worse import Worse, WorseContrast, layers_of

__all__ = ["SkipLayerGuidance"]


@dataclass(frozen=True, kw_only=True)
class SkipLayerGuidance(WorseContrast):
    """Away from a denoiser without some of its transformer blocks."""

    #: ``s``: how far to go away from the worse prediction.
    skip_layer_guidance_scale: float = 2.8
    #: The fraction of the steps after which this starts; the step at it is left out, as in Diffusers.
    skip_layer_guidance_start: float = 0.01
    #: The fraction at which it stops.
    skip_layer_guidance_stop: float = 0.2
    #: Blocks by parts of their names, ``"mid+up_blocks.0"``, or several texts.
    skip_layer_guidance_layers: str | tuple[str, ...] = "mid"
    #: Diffusers' ``LayerSkipConfig``, or several, instead of the layers.
    skip_layer_config: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("skip_layer_guidance_scale", self.skip_layer_guidance_scale)
        check_interval(
            "skip_layer_guidance_start",
            self.skip_layer_guidance_start,
            "skip_layer_guidance_stop",
            self.skip_layer_guidance_stop,
        )
        given, config = self.skip_layer_guidance_layers, self.skip_layer_config
        layers = layers_of("skip_layer_guidance_layers", given, config)
        object.__setattr__(self, "skip_layer_guidance_layers", layers)
        object.__setattr__(self, "skip_layer_config", None)

    @property
    def worse(self) -> Worse:
        layers = self.skip_layer_guidance_layers
        assert isinstance(layers, tuple)
        return Worse(
            perturbation=Perturbation(kind="skip", layers=layers),
            scale=self.skip_layer_guidance_scale,
            start=self.skip_layer_guidance_start,
            stop=self.skip_layer_guidance_stop,
        )
