"""Image processors of pipelines: pictures to tensors and back."""

from functools import partial

from perfuse import _diffusers
from perfuse.arrays.vae_image_processor import IPAdapterMaskProcessor, VaeImageProcessor

__all__ = ["IPAdapterMaskProcessor", "VaeImageProcessor"]

__getattr__ = partial(_diffusers.borrowed, __name__)
