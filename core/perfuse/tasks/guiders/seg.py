"""Smoothed energy guidance (Hong 2024, arXiv:2408.00760)."""

from dataclasses import dataclass
from typing import Any

from perfuse.contract.guider import Perturbation
from perfuse.errors import InputError
from perfuse.tasks.guiders.numbers import check_interval, check_number
from perfuse.tasks.guiders.worse import Worse, WorseContrast, layers_of

__all__ = ["SmoothedEnergyGuidance"]

#: The amount of blur that stands for no end of it: every query is the mean of all.
_ENDLESS = -1.0


@dataclass(frozen=True, kw_only=True)
class SmoothedEnergyGuidance(WorseContrast):
    """Away from a denoiser whose queries of self-attention are blurred in some layers.

    Blurred as in the paper: by a Gaussian, or, above the threshold, to the mean. Diffusers 0.42 has
    these two cases the other way round.
    """

    #: ``s``: how far to go away from the worse prediction.
    seg_guidance_scale: float = 2.8
    #: The standard deviation of the blur, in pixels of the layer's feature map.
    seg_blur_sigma: float = 9999999.0
    #: Above this a blur is endless: every query is the mean of all.
    seg_blur_threshold_inf: float = 9999.0
    #: The fraction of the steps after which this starts; the step at it is left out, as in Diffusers.
    seg_guidance_start: float = 0.0
    #: The fraction at which it stops.
    seg_guidance_stop: float = 1.0
    #: Layers by parts of their names, ``"mid+up_blocks.0"``, or several texts.
    seg_guidance_layers: str | tuple[str, ...] = "mid"
    #: Diffusers' ``SmoothedEnergyGuidanceConfig``, or several, instead of the layers.
    seg_guidance_config: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("seg_guidance_scale", self.seg_guidance_scale)
        check_number("seg_blur_threshold_inf", self.seg_blur_threshold_inf)
        if check_number("seg_blur_sigma", self.seg_blur_sigma) <= 0:
            raise InputError(f"seg_blur_sigma must be larger than 0; got {self.seg_blur_sigma!r}.")
        check_interval(
            "seg_guidance_start",
            self.seg_guidance_start,
            "seg_guidance_stop",
            self.seg_guidance_stop,
        )
        given, config = self.seg_guidance_layers, self.seg_guidance_config
        layers = layers_of("seg_guidance_layers", given, config)
        object.__setattr__(self, "seg_guidance_layers", layers)
        object.__setattr__(self, "seg_guidance_config", None)

    @property
    def worse(self) -> Worse:
        layers, sigma = self.seg_guidance_layers, self.seg_blur_sigma
        assert isinstance(layers, tuple)
        amount = _ENDLESS if sigma > self.seg_blur_threshold_inf else sigma
        return Worse(
            perturbation=Perturbation(kind="blur", layers=layers, amount=amount),
            scale=self.seg_guidance_scale,
            start=self.seg_guidance_start,
            stop=self.seg_guidance_stop,
        )
