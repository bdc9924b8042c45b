"""Image processors of pipelines: pictures to tensors and back."""

from perfuse.arrays.vae_image_processor import IPAdapterMaskProcessor, VaeImageProcessor

__all__ = ["IPAdapterMaskProcessor", "VaeImageProcessor"]
