"""Steps that were optimised for a model: Align Your Steps (Sabour et al. 2024, arXiv:2404.14507)."""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["AysSchedules"]

#: For ``timesteps=`` or ``sigmas=`` of a call, by Diffusers' names: ten steps each, as the authors
#: publish them (https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html).
AysSchedules: Mapping[str, list[int] | list[float]] = MappingProxyType(
    {
        "StableDiffusionTimesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        "StableDiffusionSigmas": [
            *(14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
            0.0,
        ],
        "StableDiffusionXLTimesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
        "StableDiffusionXLSigmas": [
            *(14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
            0.0,
        ],
        "StableDiffusionVideoSigmas": [
            *(700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
            0.0,
        ],
    }
)
