"""Image processors of pipelines: pictures to tensors and back."""

from perfuse.arrays.vae_image_processor import VaeImageProcessor

__all__ = ["VaeImageProcessor"]
