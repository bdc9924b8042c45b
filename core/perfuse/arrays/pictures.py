"""Pictures in and out: between PIL images and the arrays that a VAE takes and gives.

The numbers are those of Diffusers' ``VaeImageProcessor``, with numpy and Pillow alone. N is the
number of pictures, C their channels, H and W their height and width in pixels. Pillow is imported
when it is first needed.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from perfuse.arrays.operations import is_torch, to_numpy
from perfuse.arrays.reading import picture_file
from perfuse.errors import InputError, NonFiniteError
from perfuse.sources.files import replacing
from perfuse.sources.unfinished import together

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "open_picture",
    "png_bytes",
    "preprocess",
    "preprocess_mask",
    "preprocess_unit",
    "save_png",
    "save_pngs",
    "to_pictures",
    "to_pil",
    "to_unit",
]

Float32 = NDArray[np.float32]

# --- out of the VAE ---------------------------------------------------------------------------


def to_unit(decoded: ArrayLike) -> Float32:
    """Bring decoded pictures, NCHW around [-1, 1], to float32 NHWC in [0, 1].

    Raises `NonFiniteError` if they hold NaN or infinity, `InputError` if they are not NCHW.
    """
    x = _finite(decoded)
    return _each(x, _unit, np.float32)


def _finite(decoded: ArrayLike) -> Float32:
    x = np.asarray(decoded, dtype=np.float32)
    if x.ndim != 4:
        raise InputError(f"Decoded pictures have the shape NCHW; these have {x.shape}.")
    bad = np.array([np.count_nonzero(~np.isfinite(one)) for one in x])
    if bad.any():
        # Clamping would turn them into black or white pixels that look like a picture.
        pictures = ", ".join(map(str, np.flatnonzero(bad)))
        raise NonFiniteError(
            f"The decoded pictures hold {bad.sum()} of {x.size} values that are NaN or "
            f"infinite (in picture {pictures}). Try another precision: float32, or bfloat16 in "
            "place of float16, for the VAE first and then for the denoiser."
        )
    return x


def _unit(picture: Float32) -> Float32:
    """A picture, CHW around [-1, 1], as HWC in [0, 1]."""
    return (picture * np.float32(0.5) + np.float32(0.5)).clip(0, 1).transpose(1, 2, 0)


def _each(x: Float32, change: Callable[[Float32], Float32], dtype: DTypeLike) -> NDArray[Any]:
    """Pictures NCHW, changed to NHWC one by one, so that memory holds no further copy of all."""
    count, channels, height, width = x.shape
    changed = np.empty((count, height, width, channels), dtype)
    for picture, into in zip(x, changed, strict=True):
        into[...] = change(picture)
    return changed


def to_pictures(decoded: ArrayLike) -> NDArray[np.uint8]:
    """Bring decoded pictures, NCHW around [-1, 1], to uint8 NHWC in 0 to 255.

    Raises what `to_unit` raises.

    >>> to_pictures(np.array([-1, 0, 1, 9], np.float32).reshape(1, 1, 1, 4)).ravel().tolist()
    [0, 128, 255, 255]
    """
    return _each(_finite(decoded), lambda one: (_unit(one) * 255).round(), np.uint8)


def to_pil(decoded: ArrayLike) -> "list[Image]":
    """Bring decoded pictures, NCHW around [-1, 1], to PIL images: L, RGB or RGBA by their channels.

    Raises what `to_unit` raises, and `InputError` for another number of channels.
    """
    return [as_image(picture) for picture in to_pictures(decoded)]


# --- into the VAE -----------------------------------------------------------------------------


def preprocess(
    image: Any,
    height: int | None = None,
    width: int | None = None,
    *,
    multiple: int = 8,
    resample: str = "lanczos",
) -> Float32:
    """Bring a picture or a list of them to float32 NCHW in [-1, 1], all H x W.

    A PIL image becomes RGB and is resized with the filter ``resample``. An array is HW, HWC or NHWC,
    uint8, or floats in [0, 1] (in [-1, 1], if any is negative), and is resized to the nearest
    pixel; so is a torch tensor, HW, CHW or NCHW. Without ``height`` and ``width`` it is as large as
    the first picture, rounded down to ``multiple``, the VAE's scale factor. Raises `InputError` for
    anything that is not a picture, and for a size that ``multiple`` does not divide.
    """
    x = preprocess_unit(image, height, width, multiple=multiple, resample=resample)
    return 2 * x - 1 if x.min() >= 0 else x


def preprocess_unit(
    image: Any,
    height: int | None = None,
    width: int | None = None,
    *,
    multiple: int = 8,
    channels: int = 3,
    resample: str = "lanczos",
) -> Float32:
    """Bring a picture or a list of them to float32 NCHW in [0, 1], as a ControlNet reads them.

    As `preprocess`, without the last change of range. A PIL image becomes grey for one channel.
    """
    images = _checked_list(image)
    if _are_arrays(images):
        x = _stack_arrays(images)
        x = resize_nearest(x, *_size(x.shape[1:3], height, width, multiple))
    else:
        size = _size((images[0].height, images[0].width), height, width, multiple)
        mode = "L" if channels == 1 else "RGB"
        x = np.stack(
            [np.asarray(_resized(_in_mode(_rgb(one), mode), size, resample)) for one in images]
        )
        x = (x if x.ndim == 4 else x[..., None]).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def preprocess_mask(
    mask: Any, height: int | None = None, width: int | None = None, *, multiple: int = 8
) -> Float32:
    """Bring a mask or a list of them to float32 NCHW with C = 1: 1 where painted over, else 0.

    As `preprocess`, but grey, and cut at a half. An array is HW, NHW, or NHWC with C = 1, boolean,
    uint8 or floats in [0, 1]. Raises `InputError` as `preprocess` does, and for a mask in colour.
    """
    if isinstance(mask, np.ndarray) and mask.ndim == 3 and mask.shape[-1] != 1:
        mask = mask[..., None]
    images = _checked_list(mask)
    if _are_arrays(images):
        x = _stack_arrays([_unit_mask(one) for one in images])
        if x.shape[-1] != 1:
            raise InputError(f"A mask has one channel; this one has {x.shape[-1]}. Make it grey.")
        x = resize_nearest(x, *_size(x.shape[1:3], height, width, multiple))
    else:
        size = _size((images[0].height, images[0].width), height, width, multiple)
        grey = [np.asarray(_resized(one, size).convert("L")) for one in images]
        x = np.stack(grey)[..., None].astype(np.float32) / np.float32(255)
    return np.ascontiguousarray((x >= 0.5).astype(np.float32).transpose(0, 3, 1, 2))


def open_picture(path: str | Path) -> "Image":
    """Open a picture file as an RGB image, turned upright as its camera noted.

    Raises `InputError` if there is no such file or Pillow cannot read it.
    """
    from PIL import ImageOps

    with picture_file(path) as image:
        return _rgb(ImageOps.exif_transpose(image))


def _checked_list(given: Any) -> list[Any]:
    from PIL.Image import Image

    images = list(given) if isinstance(given, (list, tuple)) else [given]
    images = [_channels_last(one) if is_torch(one) else one for one in images]
    if not images:
        raise InputError("No picture was given. Give a PIL image, an array, or a list of them.")
    for image in images:
        if not isinstance(image, (Image, np.ndarray)) or isinstance(image, Image) != isinstance(
            images[0], Image
        ):
            raise InputError(
                f"A {type(image).__name__} was given as a picture. Give PIL images, numpy arrays "
                "HWC or NHWC, or torch tensors CHW or NCHW, all of one kind."
            )
    return images


def _channels_last(tensor: Any) -> NDArray[Any]:
    """A torch tensor HW, CHW or NCHW as an array with the channels last."""
    array = to_numpy(tensor)
    return array if array.ndim < 3 else np.moveaxis(array, -3, -1)


def _are_arrays(images: list[Any]) -> bool:
    return isinstance(images[0], np.ndarray)


def _stack_arrays(images: list[NDArray[Any]]) -> Float32:
    """Put HW, HWC or NHWC arrays together as float32 NHWC, in the range they came in."""
    batches = []
    for image in images:
        if image.ndim not in (2, 3, 4) or image.size == 0:
            raise InputError(f"A picture's array is HW, HWC or NHWC; this one is {image.shape}.")
        x = image.astype(np.float32)
        if image.dtype == np.uint8:
            x /= 255
        if not (np.abs(x) <= 1).all():  # False for NaN too
            raise InputError(
                f"A picture's array of {image.dtype} holds values from {x.min():g} to "
                f"{x.max():g}. Give uint8 from 0 to 255, or floats from 0 to 1."
            )
        x = x[..., None] if x.ndim == 2 else x
        batches.append(x if x.ndim == 4 else x[None])
    if len({batch.shape[1:] for batch in batches}) != 1:
        shapes = ", ".join(str(batch.shape[1:]) for batch in batches)
        raise InputError(f"The pictures' arrays differ in shape: {shapes}. Make them equal.")
    return np.concatenate(batches)


def _unit_mask(mask: NDArray[Any]) -> NDArray[Any]:
    # A uint8 mask of zeros and ones means just that: read as 0 to 255 it would be all black.
    return mask.astype(np.float32) if mask.dtype == np.uint8 and mask.max(initial=0) <= 1 else mask


def _size(
    found: Sequence[int], height: int | None, width: int | None, multiple: int
) -> tuple[int, int]:
    for name, asked in (("height", height), ("width", width)):
        if asked is not None and (asked <= 0 or asked % multiple != 0):
            raise InputError(
                f"{name}={asked} is not a multiple of {multiple}. The nearest that is: "
                f"{max(multiple, round(asked / multiple) * multiple)}."
            )
    size = (
        found[0] - found[0] % multiple if height is None else height,
        found[1] - found[1] % multiple if width is None else width,
    )
    if 0 in size:
        raise InputError(
            f"The picture is {found[1]} x {found[0]} pixels, smaller than {multiple} x {multiple}. "
            "Give height and width to enlarge it."
        )
    return size


def _resized(image: "Image", size: tuple[int, int], resample: str = "lanczos") -> "Image":
    from PIL.Image import Resampling

    return image.resize((size[1], size[0]), resample=Resampling[resample.upper()])


def _rgb(image: "Image") -> "Image":
    """As RGB, without transparency; 16 bits become 8, where Pillow would cut at 255."""
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        scaled = values // 256 if values.max(initial=0) > 255 else values
        image = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    return _in_mode(image, "RGB")


def _in_mode(image: "Image", mode: str) -> "Image":
    """Converted, or as it is: Pillow copies it also where there is nothing to convert."""
    return image if image.mode == mode else image.convert(mode)


def resize_nearest(x: Float32, height: int, width: int) -> Float32:
    """Resize NHWC as ``torch.nn.functional.interpolate`` does in its mode "nearest"."""

    def source(found: int, asked: int) -> NDArray[np.intp]:
        # In float32, as PyTorch: the quotient's rounding decides which pixel is nearest.
        scale = np.float32(found) / np.float32(asked)
        at = np.floor(np.arange(asked, dtype=np.float32) * scale).astype(np.intp)
        return np.asarray(np.minimum(at, found - 1))

    rows, columns = source(x.shape[1], height), source(x.shape[2], width)
    return x[:, rows[:, None], columns]


# --- to look at -------------------------------------------------------------------------------


def save_png(
    image: "Image | NDArray[np.uint8]", path: str | Path, *, metadata: bool = True
) -> Path:
    """Write a picture as PNG and return its path; whatever happens, the file is whole or not there.

    ``image`` is a PIL image or uint8 HW or HWC. What a pipeline noted in it goes into the file,
    unless ``metadata`` is false. A file that is already there is replaced. Raises `InputError` if
    the folder cannot be written, or if ``image`` is not a picture.
    """
    return save_pngs([image], [path], metadata=metadata)[0]


def save_pngs(
    images: "Sequence[Image | NDArray[np.uint8]]",
    paths: Sequence[str | Path],
    *,
    metadata: bool = True,
) -> list[Path]:
    """Write pictures as ``save_png`` does; where one cannot be written, none is.

    Raises what `save_png` raises.
    """
    contents = [png_bytes(image, metadata=metadata) for image in images]
    finals = [Path(path) for path in paths]
    with ExitStack() as all_written:  # each takes its name when the last one is on the disk
        for path, content in zip(finals, contents, strict=True):
            all_written.enter_context(replacing(path)).write_bytes(content)
        with together():
            all_written.close()
    return finals


def png_bytes(image: "Image | NDArray[np.uint8]", *, metadata: bool = True) -> bytes:
    """The content of the file that ``save_png`` writes. Raises `InputError` for no picture."""
    from perfuse.arrays.metadata import png_info

    picture, buffer = as_image(image), io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=png_info(picture) if metadata else None)
    return buffer.getvalue()


def as_image(picture: "Image | NDArray[np.uint8]") -> "Image":
    from PIL import Image

    if isinstance(picture, Image.Image):
        return picture
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        kind = getattr(picture, "dtype", type(picture).__name__)
        raise InputError(f"A picture is a PIL image or a uint8 array; {kind} was given.")
    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    if picture.ndim != 2 and not (picture.ndim == 3 and picture.shape[-1] in (3, 4)):
        raise InputError(
            f"A picture has the shape HW, or HWC with 1, 3 or 4 channels; this has {picture.shape}."
        )
    return Image.fromarray(np.ascontiguousarray(picture))
