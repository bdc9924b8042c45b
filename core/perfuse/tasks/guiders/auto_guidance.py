"""Autoguidance: a model guided by a bad version of itself (Karras et al. 2024, arXiv:2406.02507)."""

from dataclasses import dataclass
from typing import Any

from perfuse.contract.guider import Branch, Perturbation
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.guiders.contrast import POSITIVE, Contrast, pushed
from perfuse.tasks.guiders.worse import layers_of

__all__ = ["AutoGuidance"]


@dataclass(frozen=True, kw_only=True)
class AutoGuidance(Contrast):
    """Classifier-free guidance whose unconditional prediction comes from a worse version.

    The worse version lacks some transformer blocks, as in Diffusers' guider.
    """

    #: Blocks by parts of their names, ``"mid+up_blocks.0"``, or several texts.
    auto_guidance_layers: str | tuple[str, ...] = "mid"
    #: Diffusers' ``LayerSkipConfig``, or several, instead of the layers.
    auto_guidance_config: Any = None
    #: 1 leaves the blocks out. A smaller one would leave out a random part, another on each engine.
    dropout: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout not in (None, 1.0):
            raise InputError(
                f"AutoGuidance was given dropout={self.dropout!r}; it takes 1.0, which leaves the "
                "layers out: a random part would be another on each engine."
            )
        given, config = self.auto_guidance_layers, self.auto_guidance_config
        layers = layers_of("auto_guidance_layers", given, config)
        object.__setattr__(self, "auto_guidance_layers", layers)
        object.__setattr__(self, "auto_guidance_config", None)

    @property
    def branches(self) -> tuple[Branch, ...]:
        layers = self.auto_guidance_layers
        assert isinstance(layers, tuple)
        worse = Perturbation(kind="skip", layers=layers)
        bad = Branch(name="negative", condition="negative", perturbation=worse)
        return (bad, POSITIVE) if self.changes else (POSITIVE,)

    def guided(self, conditional: Array, without: Array) -> Array:
        original = self.use_original_formulation
        return pushed(conditional, without, self.guidance_scale, original=original)
