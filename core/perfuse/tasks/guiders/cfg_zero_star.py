"""CFG-Zero*: guidance for flow matching (Fan et al. 2025, arXiv:2503.18886)."""

from collections.abc import Mapping
from dataclasses import dataclass

from perfuse.arrays import dot, zeros_like
from perfuse.contract.guider import Moment
from perfuse.contract.spec import Array
from perfuse.tasks.guiders.contrast import Contrast, pushed
from perfuse.tasks.guiders.numbers import check_count

__all__ = ["ClassifierFreeZeroStarGuidance"]


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeZeroStarGuidance(Contrast):
    """Classifier-free guidance from ``s u``, where ``s`` brings ``u`` as near to ``c`` as it can.

    The first steps predict zero, because the first velocities of a model are the least right.
    """

    #: So many steps at the beginning predict zero.
    zero_init_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("zero_init_steps", self.zero_init_steps)

    def _is_zero(self, moment: Moment) -> bool:
        return self.enabled and moment.index < self.zero_init_steps

    def running(self, moment: Moment) -> tuple[str, ...]:
        # a step has to run at least one branch, also where its prediction does not count
        return ("positive",) if self._is_zero(moment) else super().running(moment)

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        if self._is_zero(moment):
            return zeros_like(predictions["positive"])
        return super().combine(predictions, moment)

    def guided(self, conditional: Array, without: Array) -> Array:
        nearest = dot(conditional, without) / (dot(without, without) + 1e-8)  # s*, equation 9
        original = self.use_original_formulation
        return pushed(conditional, nearest * without, self.guidance_scale, original=original)
