"""Pictures to a VAE's tensors and back, with the methods of Diffusers' ``VaeImageProcessor``."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse.arrays.operations import is_torch, to_numpy
from perfuse.arrays.pictures import as_image, preprocess, preprocess_mask, to_unit
from perfuse.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["VaeImageProcessor"]


class _Settings(dict[str, Any]):
    """Settings that are read as entries and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"An image processor has no setting {name!r}.")
        return self[name]


class VaeImageProcessor:
    """Turns pictures into what a VAE takes, and what it gives into pictures.

    Arrays are torch tensors wherever the process has torch imported, and numpy arrays elsewhere.

    >>> done = VaeImageProcessor().postprocess(np.zeros((1, 3, 8, 8), np.float32), "np")
    >>> done.shape, float(done[0, 0, 0, 0])
    ((1, 8, 8, 3), 0.5)
    """

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        """Set how pictures are read.

        Args:
            do_resize: Whether to resize pictures to a multiple of the scale factor.
            vae_scale_factor: Pixels per latent.
            vae_latent_channels: Channels of latents, which are passed on as they are.
            resample: Lanczos is the one filter there is.
            do_normalize: Whether to bring [0, 1] to [-1, 1].
            do_binarize: Whether to cut at a half: for masks.
            do_convert_rgb: Of no effect: pictures become RGB in any case.
            do_convert_grayscale: Whether pictures become grey: of masks, together with
                ``do_binarize``.

        Raises:
            InputError: another filter was asked for, or grey pictures that are no masks.
        """
        if do_convert_grayscale != do_binarize:
            raise InputError(
                "do_binarize and do_convert_grayscale make a mask together; one was given alone. "
                "Give both or neither."
            )
        if resample != "lanczos":
            raise InputError(f"resample={resample!r} was given; pictures are resized by lanczos.")
        self.config = _Settings(
            do_resize=do_resize,
            vae_scale_factor=vae_scale_factor,
            vae_latent_channels=vae_latent_channels,
            resample=resample,
            do_normalize=do_normalize,
            do_binarize=do_binarize,
            do_convert_rgb=do_convert_rgb,
            do_convert_grayscale=do_convert_grayscale,
        )

    def preprocess(self, image: Any, height: int | None = None, width: int | None = None) -> Any:
        """Pictures as float32 [B, C, H, W]: in [-1, 1], or for a mask 0 and 1.

        Args:
            image: A PIL image, an array HWC or BHWC in [0, 1], a tensor CHW or BCHW in [0, 1], or a
                list of them. Latents are returned as they are.
            height: In pixels; that of the first picture by default.
            width: In pixels.

        Raises:
            InputError: it is no picture, or has a size that the scale factor does not divide.
        """
        factor = self.config["vae_scale_factor"] if self.config["do_resize"] else 1
        channels = self.config["vae_latent_channels"]
        if is_torch(image) and image.ndim == 4 and image.shape[1] == channels:
            return image
        if self.config["do_binarize"]:
            return _shown(preprocess_mask(image, height, width, multiple=factor))
        array = preprocess(image, height, width, multiple=factor)
        return _shown(array if self.config["do_normalize"] else array / 2 + np.float32(0.5))

    def postprocess(
        self, image: Any, output_type: str = "pil", do_denormalize: list[bool] | None = None
    ) -> Any:
        """Pictures of a VAE, [B, C, H, W] in about [-1, 1], as ``output_type``.

        Args:
            image: The pictures.
            output_type: ``"pil"``, ``"np"`` [B, H, W, C] or ``"pt"`` [B, C, H, W], both in [0, 1],
                or ``"latent"`` for what was given.
            do_denormalize: For each picture, whether it is in [-1, 1] and not in [0, 1].

        Raises:
            InputError: there is no such ``output_type``.
            NonFiniteError: the pictures hold NaN.
        """
        if output_type == "latent":
            return image
        if output_type not in ("pil", "np", "pt"):
            raise InputError(
                f"output_type {output_type!r} was asked for; use pil, np, pt or latent."
            )
        signed = do_denormalize or [self.config["do_normalize"]] * len(image)
        array = to_numpy(image)
        array = np.stack([x if s else x * 2 - 1 for x, s in zip(array, signed, strict=True)])
        unit = to_unit(array)
        if output_type == "pt":
            return self.numpy_to_pt(unit)
        return unit if output_type == "np" else self.numpy_to_pil(unit)

    @staticmethod
    def numpy_to_pil(images: Any) -> "list[Image]":
        """Pictures [B, H, W, C] or [H, W, C] in [0, 1] as PIL images."""
        array = np.asarray(images)
        array = array[None] if array.ndim == 3 else array
        return [as_image(one) for one in (array * 255).round().astype(np.uint8)]

    @staticmethod
    def pil_to_numpy(images: Any) -> Any:
        """PIL images of one size as float32 [B, H, W, C] in [0, 1]."""
        given = images if isinstance(images, list) else [images]
        return np.stack([np.asarray(one).astype(np.float32) / 255.0 for one in given])

    @staticmethod
    def numpy_to_pt(images: Any) -> Any:
        """[B, H, W, C] as a torch tensor [B, C, H, W]."""
        import torch

        array = np.asarray(images)
        array = array[..., None] if array.ndim == 3 else array
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))

    @staticmethod
    def pt_to_numpy(images: Any) -> Any:
        """A tensor [B, C, H, W] as a numpy array [B, H, W, C]."""
        return to_numpy(images).transpose(0, 2, 3, 1)

    @staticmethod
    def normalize(images: Any) -> Any:
        """[0, 1] to [-1, 1]."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: Any) -> Any:
        """[-1, 1] to [0, 1], clamped."""
        return (images * 0.5 + 0.5).clip(0, 1)


def _shown(array: Any) -> Any:
    torch = sys.modules.get("torch")
    return array if torch is None else torch.from_numpy(np.ascontiguousarray(array))
