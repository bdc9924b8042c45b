"""Pictures to a VAE's tensors and back, with the methods of Diffusers' ``VaeImageProcessor``."""

from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse.arrays.masks import Box, blurred, covering, crop_region, filled, overlaid
from perfuse.arrays.media import numpy_to_pil
from perfuse.arrays.operations import is_torch, shown, to_numpy
from perfuse.arrays.pictures import preprocess, preprocess_mask, to_unit
from perfuse.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IPAdapterMaskProcessor", "VaeImageProcessor"]


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

    def preprocess(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: Box | None = None,
    ) -> Any:
        """Pictures as float32 [B, C, H, W]: in [-1, 1], or for a mask 0 and 1.

        Args:
            image: A PIL image, an array HWC or BHWC in [0, 1], a tensor CHW or BCHW in [0, 1], or a
                list of them. Latents are returned as they are.
            height: In pixels; that of the first picture by default.
            width: In pixels.
            resize_mode: How PIL images come to that size: ``"default"`` stretches them, ``"fill"``
                repeats their edges around them, ``"crop"`` cuts what is too much.
            crops_coords: The part of PIL images that is taken, before they are resized.

        Raises:
            InputError: it is no picture, or has a size that the scale factor does not divide; or
                there is no such ``resize_mode``.
        """
        if crops_coords is not None or resize_mode != "default":
            pictures = list(image) if isinstance(image, list | tuple) else [image]
            if crops_coords is not None:
                pictures = [one.crop(crops_coords) for one in map(_picture, pictures)]
            if resize_mode != "default":
                high, wide = self.get_default_height_width(pictures[0], height, width)
                pictures = [self.resize(one, high, wide, resize_mode) for one in pictures]
            image = pictures
        factor = self.config["vae_scale_factor"] if self.config["do_resize"] else 1
        channels = self.config["vae_latent_channels"]
        if is_torch(image) and image.ndim == 4 and image.shape[1] == channels:
            return image
        if self.config["do_binarize"]:
            return shown(preprocess_mask(image, height, width, multiple=factor))
        array = preprocess(image, height, width, multiple=factor)
        return shown(array if self.config["do_normalize"] else array / 2 + np.float32(0.5))

    def resize(self, image: Any, height: int, width: int, resize_mode: str = "default") -> Any:
        """A PIL image of another size; ``resize_mode`` as for ``preprocess``.

        Raises:
            InputError: it is no PIL image, or there is no such ``resize_mode``.
        """
        from PIL.Image import Resampling

        picture = _picture(image)
        if resize_mode == "default":
            return picture.resize((width, height), resample=Resampling.LANCZOS)
        if resize_mode not in _RESIZED:
            raise InputError(
                f"resize_mode={resize_mode!r} was given; use default, {', '.join(_RESIZED)}."
            )
        return _RESIZED[resize_mode](picture, width, height)

    def get_default_height_width(
        self, image: Any, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """A size in pixels, of the picture where none is given, down to what the factor divides."""
        if isinstance(image, np.ndarray):
            own = image.shape[1:3]
        else:
            own = image.shape[2:4] if is_torch(image) else (image.height, image.width)
        factor = self.config["vae_scale_factor"]
        high, wide = (
            int(one if given is None else given)
            for one, given in zip(own, (height, width), strict=True)
        )
        return high - high % factor, wide - wide % factor

    @staticmethod
    def blur(image: "Image", blur_factor: int = 4) -> "Image":
        """A mask with soft edges: a Gaussian blur of this radius in pixels."""
        return blurred(image, blur_factor)

    @staticmethod
    def get_crop_region(mask_image: "Image", width: int, height: int, pad: int = 0) -> Box:
        """The part of a picture around all that is masked, of the proportions ``width`` to ``height``.

        Args:
            mask_image: The mask, as large as the picture.
            width: Of the picture that the model draws.
            height: Of the same.
            pad: Pixels to add on each side.

        Returns:
            Left, top, right and bottom in pixels.

        Raises:
            InputError: nothing is masked.
        """
        return crop_region(mask_image, width, height, pad)

    @staticmethod
    def apply_overlay(
        mask: "Image", init_image: "Image", image: "Image", crop_coords: Box | None = None
    ) -> "Image":
        """The picture ``init_image`` with ``image`` where the mask is white.

        Args:
            mask: The mask, as large as the picture.
            init_image: The picture before.
            image: What was drawn: the whole picture, or the part of it in ``crop_coords``.
            crop_coords: That part: left, top, right and bottom in pixels.
        """
        return overlaid(mask, init_image, image, crop_coords)

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
            tensor = self.numpy_to_pt(unit)
            return tensor.to(image) if is_torch(image) else tensor
        return unit if output_type == "np" else self.numpy_to_pil(unit)

    @staticmethod
    def numpy_to_pil(images: Any) -> "list[Image]":
        """Pictures [B, H, W, C] or [H, W, C] in [0, 1] as PIL images."""
        return numpy_to_pil(images)

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


#: How PIL images come to a size without being stretched.
_RESIZED = {"fill": filled, "crop": covering}


def _picture(image: Any) -> "Image":
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise InputError(
            f"A {type(image).__name__} was to be cropped or resized; that takes PIL images. Give "
            "one, or bring the array to the size before."
        )
    return image


class IPAdapterMaskProcessor(VaeImageProcessor):
    """Turns masks into those that say where an image prompt counts: 0 and 1, [N, 1, H, W].

    >>> from PIL import Image
    >>> masks = IPAdapterMaskProcessor().preprocess([Image.new("L", (8, 8), 255)] * 2)
    >>> tuple(masks.shape), float(masks.min())
    ((2, 1, 8, 8), 1.0)
    """

    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        resample: str = "lanczos",
        do_normalize: bool = False,
        do_binarize: bool = True,
        do_convert_grayscale: bool = True,
    ) -> None:
        super().__init__(
            do_resize=do_resize,
            vae_scale_factor=vae_scale_factor,
            resample=resample,
            do_normalize=do_normalize,
            do_binarize=do_binarize,
            do_convert_grayscale=do_convert_grayscale,
        )
