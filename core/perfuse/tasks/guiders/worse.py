"""What guiders share that contrast the denoiser with a worse version of itself."""

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfuse.contract.guider import Branch, Moment, Perturbation
from perfuse.contract.spec import Array
from perfuse.errors import InputError
from perfuse.tasks.guiders.contrast import NEGATIVE, POSITIVE, Contrast, pushed, rescaled

__all__ = ["PERTURBED", "Worse", "WorseContrast", "layers_of"]

PERTURBED = "perturbed"


@dataclass(frozen=True, kw_only=True)
class Worse:
    """When a worse version of the denoiser runs, and how far guidance goes away from it."""

    perturbation: Perturbation
    scale: float
    #: The fractions of the steps between which it runs; the step at ``start`` itself is left out.
    start: float
    stop: float

    def runs(self, moment: Moment) -> bool:
        first, last = int(self.start * moment.total), int(self.stop * moment.total)
        return first < moment.index < last and not math.isclose(self.scale, 0.0)


@dataclass(frozen=True, kw_only=True)
class WorseContrast(Contrast):
    """``u + g (c - u) + s (c - p)``: ``p`` is a worse version's prediction with the prompt."""

    @property
    @abstractmethod
    def worse(self) -> Worse:
        """The worse version."""

    @property
    def branches(self) -> tuple[Branch, ...]:
        perturbation = self.worse.perturbation
        worse = Branch(name=PERTURBED, condition="positive", perturbation=perturbation)
        usual = (NEGATIVE, POSITIVE) if self.changes else (POSITIVE,)
        return (*usual, worse) if self._worsens else usual

    @property
    def _worsens(self) -> bool:
        return self.enabled and not math.isclose(self.worse.scale, 0.0)

    def running(self, moment: Moment) -> tuple[str, ...]:
        worse = self._worsens and self.worse.runs(moment)
        return (*super().running(moment), *((PERTURBED,) if worse else ()))

    def combine(self, predictions: Mapping[str, Array], moment: Moment) -> Array:
        conditional = predictions["positive"]
        if PERTURBED not in predictions:
            return super().combine(predictions, moment)
        perturbed, scale = predictions[PERTURBED], self.worse.scale
        if "negative" in predictions:
            usual = self.guided(conditional, predictions["negative"])
            guided = usual + scale * (conditional - perturbed)
        else:
            original = self.use_original_formulation
            guided = pushed(conditional, perturbed, scale, original=original)
        return rescaled(guided, conditional, self.guidance_rescale)

    def guided(self, conditional: Array, without: Array) -> Array:
        original = self.use_original_formulation
        return pushed(conditional, without, self.guidance_scale, original=original)


def layers_of(name: str, given: Any, config: Any = None) -> tuple[str, ...]:
    """Layers by parts of their names: ``"mid+up_blocks.0"``, a list of texts, or Diffusers' configs.

    Args:
        name: The setting's name in a message.
        given: A text, or several.
        config: Diffusers' ``LayerSkipConfig``, or a dict of its fields, or several of them: each has
            the name ``fqn`` of a list of layers, and ``indices`` into it. Instead of ``given``.

    Raises:
        InputError: it names no layers, or these settings cannot be met.
    """
    if config is not None:
        configs = config if isinstance(config, list | tuple) else [config]
        return tuple(layer for one in configs for layer in _configured(one))
    texts = given.split("+") if isinstance(given, str) else given
    if not (
        isinstance(texts, Sequence)
        and texts
        and all(isinstance(text, str) and text for text in texts)
    ):
        raise InputError(
            f"{name} must be parts of the names of layers, such as mid or up_blocks.0+up_blocks.1; "
            f"got {given!r}."
        )
    for text in texts:
        try:
            re.compile(text)
        except re.error as exc:
            raise InputError(
                f"{name} has {text!r}, which is no regular expression: {exc}."
            ) from exc
    return tuple(texts)


def _configured(config: Any) -> tuple[str, ...]:
    fields = dict(config) if isinstance(config, Mapping) else dict(vars(config))
    where, indices = fields.get("fqn", "auto"), fields.get("indices")
    if where == "auto" or not indices:
        raise InputError(
            f"{config!r} was given for layers; name them: fqn, the name of a list of layers, such as "
            "mid_block.attentions.0.transformer_blocks, and indices into it."
        )
    if fields.get("dropout", 1.0) != 1.0:
        raise InputError(
            f"{config!r} was given for layers; its dropout has to be 1.0, which leaves the layers out: "
            "a random part would be another on each engine."
        )
    numbers = [indices] if isinstance(indices, int) else indices
    return tuple(rf"^{re.escape(where)}\.{number}(\.|$)" for number in numbers)
