"""The native models, in PyTorch. Importing this package imports torch.

Parameter names, creation order and initialisers are those of Diffusers, so that its checkpoints
load as they are and a model built from a seed equals the one that Diffusers builds from it.
"""

from perfuse.models.autoencoder_kl import AutoencoderKL
from perfuse.models.model import Model
from perfuse.models.unet_2d import UNet2DModel
from perfuse.models.unet_2d_condition import UNet2DConditionModel

__all__ = ["AutoencoderKL", "Model", "UNet2DConditionModel", "UNet2DModel"]
