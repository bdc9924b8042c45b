"""perfuse's own models. Importing this loads no torch; each class does, on first use.

Parameter names, creation order and initialisers are those of Diffusers, so that its checkpoints
load as they are and a model built from a seed equals the one that Diffusers builds from it.
"""

from typing import TYPE_CHECKING

from perfuse._lazy import lazy

if TYPE_CHECKING:
    from perfuse.models.autoencoder_kl import AutoencoderKL as AutoencoderKL
    from perfuse.models.unet_2d import UNet2DModel as UNet2DModel
    from perfuse.models.unet_2d_condition import UNet2DConditionModel as UNet2DConditionModel

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "autoencoder_kl": ("AutoencoderKL",),
        "unet_2d": ("UNet2DModel",),
        "unet_2d_condition": ("UNet2DConditionModel",),
    },
)
