"""perfuse's guiders in a pipeline of Diffusers: as Diffusers' own of the same name and settings."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from perfuse.contract.guider import Guider
from perfuse.errors import InputError

__all__ = ["of_diffusers"]

#: Those that Diffusers has under the same name, and that compute the same there. Its smoothed energy
#: guidance has a blur's two cases the other way round.
_SHARED = (
    *("AdaptiveProjectedGuidance", "AdaptiveProjectedMixGuidance", "AutoGuidance"),
    *("ClassifierFreeGuidance", "ClassifierFreeZeroStarGuidance", "FrequencyDecoupledGuidance"),
    *("MagnitudeAwareGuidance", "PerturbedAttentionGuidance", "SkipLayerGuidance"),
    "TangentialClassifierFreeGuidance",
)
#: How perfuse writes down a layer that a ``LayerSkipConfig`` named.
_LAYER = re.compile(r"\^(?P<list>.*)\\\.(?P<index>\d+)\(\\\.\|\$\)")


def of_diffusers(guider: Guider) -> Any:
    """Diffusers' guider of the same name and settings.

    Raises:
        InputError: Diffusers has none that computes the same, or the guider's layers are not named by
            the place in a list, as a ``LayerSkipConfig`` names them.
    """
    import diffusers

    name = type(guider).__name__
    if name not in _SHARED or not hasattr(diffusers, name):
        raise InputError(
            f"guider={name}(…) was given to a pipeline of Diffusers, which has none that computes the "
            f"same; it takes {', '.join(_SHARED)}. Give one of these, or one of perfuse.guiders."
        )
    given: Any = guider  # each of these is a dataclass
    settings = {field.name: getattr(given, field.name) for field in fields(given)}
    config = next((one for one in settings if one.endswith("_config")), None)
    if config is not None:
        layers = next(one for one in settings if one.endswith("_layers"))
        settings[config] = _configs(name, layers, settings)
        settings[layers] = None
        settings.pop("dropout", None)  # each config says that its layer is left out
    return getattr(diffusers, name)(**settings)


def _configs(name: str, layers: str, settings: Mapping[str, Any]) -> list[Any]:
    from diffusers import LayerSkipConfig

    found = [_LAYER.fullmatch(layer) for layer in settings[layers]]
    if not all(found):
        raise InputError(
            f"guider={name}(…) was given to a pipeline of Diffusers with {layers}={settings[layers]!r}; "
            "name the layers there by LayerSkipConfig(indices=[0], fqn="
            '"mid_block.attentions.0.transformer_blocks").'
        )
    places = [(re.sub(r"\\(.)", r"\1", one["list"]), int(one["index"])) for one in found if one]
    return [LayerSkipConfig(indices=[index], fqn=fqn) for fqn, index in places]
