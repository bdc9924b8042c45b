"""Makes pictures ready for models that look at them, as ``preprocessor_config.json`` says.

The numbers are those of Transformers' ``CLIPImageProcessor``, ``SiglipImageProcessor`` and
``DPTImageProcessor`` with Pillow, without Transformers.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays.pictures import as_image
from perfuse.errors import CheckpointError, InputError
from perfuse.sources.files import write_json

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Features", "ImageProcessor"]

_CLIP, _SIGLIP, _DPT = "CLIPImageProcessor", "SiglipImageProcessor", "DPTImageProcessor"
_HALF = (0.5, 0.5, 0.5)
#: What a ``preprocessor_config.json`` leaves out, by the class that it names.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    _CLIP: {
        "size": 224,
        "crop_size": 224,
        "do_center_crop": True,
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
    _SIGLIP: {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": _HALF,
        "image_std": _HALF,
    },
    _DPT: {
        "size": {"height": 384, "width": 384},
        "do_center_crop": False,
        "image_mean": _HALF,
        "image_std": _HALF,
    },
}


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an image processor returns; called as Transformers' is, it has the same attribute."""

    #: Pictures, float32 [B, 3, H, W].
    pixel_values: Any

    def to(self, *where: Any, **named: Any) -> "Features":
        """The same elsewhere, or in another dtype: torch tensors, with the arguments of theirs."""
        return Features(pixel_values=self.pixel_values.to(*where, **named))

    def __getitem__(self, name: str) -> Any:
        if name != "pixel_values":
            raise KeyError(name)
        return self.pixel_values


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Resizes, crops, rescales and normalises pictures; each of these can be off.

    >>> made = ImageProcessor.from_config({"size": 4, "crop_size": 4})
    >>> made(np.zeros((6, 8, 3), np.uint8)).pixel_values.shape
    (1, 3, 4, 4)
    """

    #: The length of the shorter edge, or (height, width); ``None`` leaves the size as it is.
    size: int | tuple[int, int] | None
    #: Height and width of what is cut from the middle; ``None`` for the whole picture.
    crop: tuple[int, int] | None
    #: Pillow's number of the filter that resizes.
    resample: int
    #: What the values, 0 to 255, are multiplied by; ``None`` leaves them.
    factor: float | None
    #: Subtracted from and divided by, for each channel; ``None`` leaves the values.
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    #: Height and width are rounded to multiples of this.
    multiple: int = 1
    #: Whether a size of (height, width) gives way to the picture's proportions.
    keeps_proportions: bool = False
    #: Transformers' class.
    kind: str = _CLIP

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed ``preprocessor_config.json``; what it leaves out is as its class has it.

        A file that names no class, or one that is not known here, is read as CLIP's.

        Raises:
            CheckpointError: a value in it cannot be used.
        """
        named = str(config.get("image_processor_type", config.get("feature_extractor_type")))
        kind = next((one for one in _DEFAULTS if named.startswith(_stem(one))), _CLIP)
        given, config = config, {**_DEFAULTS[kind], **config}
        try:
            if config.get("do_pad"):
                raise ValueError("do_pad")
            edge = _pair if kind == _DPT else _edge
            return cls(
                kind=kind,
                multiple=_positive(config.get("ensure_multiple_of", 1)),
                keeps_proportions=bool(config.get("keep_aspect_ratio", False)),
                size=edge(config["size"]) if config.get("do_resize", True) else None,
                crop=_pair(config["crop_size"]) if config["do_center_crop"] else None,
                resample=int(config.get("resample", 3)),
                factor=float(config.get("rescale_factor", 1 / 255))
                if config.get("do_rescale", True)
                else None,
                mean=_numbers(config["image_mean"]) if config.get("do_normalize", True) else None,
                std=_numbers(config["image_std"]) if config.get("do_normalize", True) else None,
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise CheckpointError(
                f"A preprocessor_config.json holds {dict(given)!r}, which cannot be used: {exc!r}. "
                "Take the file from the checkpoint again."
            ) from exc

    def to_dict(self) -> dict[str, Any]:
        """The settings as ``preprocessor_config.json`` has them."""
        size, crop = self.size, self.crop
        edge = {"shortest_edge": size} if isinstance(size, int) else _written(size)
        shape = {"ensure_multiple_of": self.multiple, "keep_aspect_ratio": self.keeps_proportions}
        return {
            "image_processor_type": self.kind,
            **(shape if self.kind == _DPT else {}),
            "do_resize": size is not None,
            "do_center_crop": crop is not None,
            "do_rescale": self.factor is not None,
            "do_normalize": self.mean is not None,
            "resample": self.resample,
            **({"size": edge} if size is not None else {}),
            **({"crop_size": _written(crop)} if crop is not None else {}),
            **({"rescale_factor": self.factor} if self.factor is not None else {}),
            **({"image_mean": list(self.mean)} if self.mean is not None else {}),
            **({"image_std": list(self.std)} if self.std is not None else {}),
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``preprocessor_config.json``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "preprocessor_config.json", self.to_dict())

    def __call__(self, images: Any, return_tensors: str | None = None) -> Features:
        """Pictures as ``pixel_values``.

        Args:
            images: A PIL image, a uint8 array HWC, or a list of them.
            return_tensors: ``"pt"`` for a torch tensor; a numpy array otherwise.

        Raises:
            InputError: something else was given.
        """
        given = list(images) if isinstance(images, list | tuple) else [images]
        if not given:
            raise InputError("No picture was given. Give a PIL image, or a list of them.")
        made = [self._made(_opaque(as_image(image))) for image in given]
        if len({one.shape for one in made}) != 1:
            sizes = ", ".join(f"{one.shape[2]} x {one.shape[1]}" for one in made)
            raise InputError(f"The pictures differ in size: {sizes}. Give pictures of one size.")
        pixels: Any = np.stack(made)
        if return_tensors == "pt":
            import torch

            pixels = torch.from_numpy(pixels)
        return Features(pixel_values=pixels)

    def _made(self, image: "Image") -> NDArray[np.float32]:
        """One picture, float32 [3, H, W]."""
        if self.size is not None:
            height, width = self._resized(image.height, image.width)
            image = image.resize((width, height), resample=self.resample)
        pixels: NDArray[Any] = np.asarray(image)
        if self.crop is not None:
            pixels = _centre(pixels, *self.crop)
        if self.factor is not None:
            pixels = pixels.astype(np.float64) * self.factor  # rounded once, as Transformers does
        pixels = pixels.astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = (np.asarray(one, dtype=np.float32) for one in (self.mean, self.std))
            pixels = (pixels - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width to resize a picture to."""
        if isinstance(self.size, tuple):
            return self._rounded(self.size, height, width)
        if self.size is None:
            return height, width
        long = int(self.size * max(height, width) / min(height, width))
        return (long, self.size) if width <= height else (self.size, long)

    def _rounded(self, size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
        """A size as multiples; with the picture's proportions, changed as little as may be."""
        tall, wide = size[0] / height, size[1] / width
        if self.keeps_proportions:
            tall = wide = wide if abs(1 - wide) < abs(1 - tall) else tall
        lengths = round(tall * height / self.multiple), round(wide * width / self.multiple)
        return max(lengths[0], 1) * self.multiple, max(lengths[1], 1) * self.multiple


def _stem(kind: str) -> str:
    """What the names of a class begin with: ``"CLIP"`` of CLIP's processors and feature extractors."""
    return kind.removesuffix("ImageProcessor")


def _written(size: tuple[int, int] | None) -> dict[str, int]:
    return {} if size is None else {"height": size[0], "width": size[1]}


def _opaque(image: "Image") -> "Image":
    """As RGB, on white where it is transparent."""
    from PIL import Image as Pillow

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
    return Pillow.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _edge(size: Any) -> int | tuple[int, int]:
    if isinstance(size, Mapping) and "shortest_edge" in size:
        size = size["shortest_edge"]
    return _positive(size) if isinstance(size, int) else _pair(size)


def _pair(size: Any) -> tuple[int, int]:
    if not isinstance(size, Mapping):
        size = {"height": size, "width": size}
    return _positive(size["height"]), _positive(size["width"])


def _positive(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"a size of {size!r}")
    return size


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _centre(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The middle of a picture [H, W, C]; black around one that is smaller."""
    tall, wide = pixels.shape[:2]
    frame = np.zeros((max(tall, height), max(wide, width), pixels.shape[2]), dtype=pixels.dtype)
    above, before = -(-(len(frame) - tall) // 2), -(-(frame.shape[1] - wide) // 2)
    frame[above : above + tall, before : before + wide] = pixels
    top, left = (tall - height) // 2 + above, (wide - width) // 2 + before
    return frame[max(top, 0) : top + height, max(left, 0) : left + width]
