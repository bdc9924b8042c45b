"""Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416)."""

from dataclasses import dataclass

from perfuse.contract.guider import Moment
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.guiders.projection import Projected, limited, weighted

__all__ = ["AdaptiveProjectedGuidance"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveProjectedGuidance(Projected):
    """Classifier-free guidance that weights the part of ``c - u`` that is parallel to ``c``.

    That part makes colours too strong at large scales. The shift is also limited in length, and
    averaged over the steps, with a negative momentum in the paper.
    """

    #: ``beta``: the weight of earlier steps in the average of the shift; ``None`` for no average.
    adaptive_projected_guidance_momentum: float | None = None
    #: ``r``: the shift is at most this long, in the length of a whole prediction; 0 for no limit.
    adaptive_projected_guidance_rescale: float = 15.0
    #: The axes of the vectors that are measured and projected; all but the batch by default.
    adaptive_projected_guidance_norm_dim: int | tuple[int, ...] | None = None
    #: ``eta``: the weight of the parallel part.
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        axes = self.adaptive_projected_guidance_norm_dim
        if axes is not None and not isinstance(axes, int):
            object.__setattr__(self, "adaptive_projected_guidance_norm_dim", tuple(axes))
        if 0 in self._axes or 0 == axes:
            raise InputError(
                "adaptive_projected_guidance_norm_dim names axis 0, along which the pictures lie. "
                "Name axes of one picture: 1 for the channels, 2 and 3 for height and width."
            )

    @property
    def _axes(self) -> tuple[int, ...]:
        axes = self.adaptive_projected_guidance_norm_dim
        return () if axes is None else (axes,) if isinstance(axes, int) else axes

    def guided(self, conditional: Array, without: Array) -> Array:
        return self._added(conditional, without, conditional - without)

    def shifted(self, conditional: Array, without: Array, shift: Array, moment: Moment) -> Array:
        return self._added(conditional, without, shift)

    def _added(self, conditional: Array, without: Array, shift: Array) -> Array:
        axes = self._axes or None
        short = limited(shift, self.adaptive_projected_guidance_rescale, axes)
        base = conditional if self.use_original_formulation else without
        return base + self.guidance_scale * weighted(short, conditional, self.eta, axes)
