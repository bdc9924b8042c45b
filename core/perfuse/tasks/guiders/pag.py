"""Perturbed-attention guidance (Ahn et al. 2024, arXiv:2403.17377), as Diffusers' PAG pipelines have it."""

from collections.abc import Mapping
from dataclasses import dataclass

from perfuse.contract.guider import Branch, Guider, Moment, Perturbation
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.guiders.contrast import NEGATIVE, POSITIVE, pushed, rescaled
from perfuse.tasks.guiders.numbers import check_fraction, check_number
from perfuse.tasks.guiders.worse import PERTURBED, layers_of

__all__ = ["PAGGuidance"]


@dataclass(frozen=True, kw_only=True)
class PAGGuidance(Guider):
    """``u + g (c - u) + s (c - p)``, or ``c + s (c - p)`` at a guidance scale of 1.

    ``p`` is what the denoiser predicts when it attends, in some layers, from each pixel to itself
    alone.
    """

    #: ``g``. No classifier-free guidance at 1 or less.
    guidance_scale: float = 7.5
    #: ``s``. The worse version does not run at 0.
    pag_scale: float = 3.0
    #: How much ``s`` falls with each of the training's 1000 timesteps, down to 0.
    pag_adaptive_scale: float = 0.0
    #: Layers by parts of their names, ``"mid+up_blocks.0"``, or several texts.
    pag_applied_layers: str | tuple[str, ...] = "mid"
    #: How far to rescale to the conditional prediction's standard deviation, 0 to 1.
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        check_number("guidance_scale", self.guidance_scale)
        check_fraction("guidance_rescale", self.guidance_rescale)
        for name in ("pag_scale", "pag_adaptive_scale"):
            if check_number(name, getattr(self, name)) < 0:
                raise InputError(f"{name} must be at least 0; got {getattr(self, name)!r}.")
        layers = layers_of("pag_applied_layers", self.pag_applied_layers)
        object.__setattr__(self, "pag_applied_layers", layers)

    @property
    def branches(self) -> tuple[Branch, ...]:
        layers = self.pag_applied_layers
        assert isinstance(layers, tuple)
        worse = Perturbation(kind="identity", layers=layers)
        perturbed = Branch(name=PERTURBED, condition="positive", perturbation=worse)
        return (
            *((NEGATIVE,) if self.guidance_scale > 1.0 else ()),
            POSITIVE,
            *((perturbed,) if self.pag_scale > 0.0 else ()),
        )

    def _scale(self, moment: Moment) -> float:
        return max(self.pag_scale - self.pag_adaptive_scale * (1000 - moment.timestep), 0.0)

    def running(self, moment: Moment) -> tuple[str, ...]:
        names = (branch.name for branch in self.branches)
        return tuple(name for name in names if name != PERTURBED or self._scale(moment) > 0.0)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        conditional = guided = predictions["positive"]
        if "negative" in predictions:
            guided = pushed(conditional, predictions["negative"], self.guidance_scale)
        if PERTURBED in predictions:
            guided = guided + self._scale(moment) * (conditional - predictions[PERTURBED])
        amount = self.guidance_rescale if "negative" in predictions else 0.0
        return rescaled(guided, conditional, amount)
