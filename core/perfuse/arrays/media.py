"""Pictures and videos in and out of files, with the names and arguments of ``diffusers.utils``."""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse.arrays.operations import to_numpy
from perfuse.arrays.pictures import as_image, to_unit
from perfuse.arrays.reading import picture_file
from perfuse.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "export_to_gif",
    "export_to_video",
    "load_image",
    "make_image_grid",
    "numpy_to_pil",
    "pt_to_pil",
]

_REMOTE = ("http://", "https://")
#: The most bytes that are read from a URL.
_LARGEST = 200 * 2**20


def load_image(
    image: "str | os.PathLike[str] | Image",
    convert_method: "Callable[[Image], Image] | None" = None,
) -> "Image":
    """A picture from a file, a URL or a PIL image, upright as its camera noted, in RGB.

    Args:
        image: A path, ``http://…`` or ``https://…``, or a PIL image.
        convert_method: What to do instead of converting to RGB.

    Raises:
        InputError: there is no such picture, or Pillow cannot read it.
    """
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
    else:
        content = _fetched(str(image)) if str(image).startswith(_REMOTE) else None
        with picture_file(image, content) as opened:
            upright = ImageOps.exif_transpose(opened)
            upright.load()
    return upright.convert("RGB") if convert_method is None else convert_method(upright)


def _fetched(url: str) -> bytes:
    from urllib.request import Request, urlopen

    try:
        request = Request(url, headers={"User-Agent": "perfuse"})
        with urlopen(request, timeout=60) as answer:
            content: bytes = answer.read(_LARGEST + 1)
    except (OSError, ValueError) as exc:
        raise InputError(
            f"{url} cannot be read as a picture: {exc}. Check the address, or give a file."
        ) from exc
    if len(content) > _LARGEST:
        raise InputError(
            f"{url} cannot be read as a picture: it is larger than {_LARGEST // 2**20} MiB. Give a "
            "smaller one."
        )
    return content


def make_image_grid(
    images: "Sequence[Image]", rows: int, cols: int, resize: int | None = None
) -> "Image":
    """Pictures side by side, row by row.

    Args:
        images: ``rows * cols`` PIL images.
        rows: How many rows.
        cols: How many in a row.
        resize: The height and width to resize each to.

    Raises:
        InputError: there are more or fewer pictures.
    """
    from PIL import Image

    if len(images) != rows * cols or not images:
        raise InputError(
            f"{len(images)} pictures were given for a grid of {rows} x {cols}. Give {rows * cols}."
        )
    if resize is not None:
        images = [image.resize((resize, resize)) for image in images]
    width, height = images[0].size
    grid = Image.new("RGB", size=(cols * width, rows * height))
    for index, image in enumerate(images):
        grid.paste(image, box=(index % cols * width, index // cols * height))
    return grid


def export_to_gif(
    image: "Sequence[Image]", output_gif_path: str | os.PathLike[str] | None = None, fps: int = 10
) -> str:
    """Write pictures as an animated GIF that repeats; return its path.

    Args:
        image: The pictures.
        output_gif_path: Where to write; a new temporary file by default.
        fps: Pictures a second.

    Raises:
        InputError: there are no pictures.
    """
    pictures = list(image)
    if not pictures:
        raise InputError("No picture was given to make a GIF of. Give at least one.")
    path = _path(output_gif_path, ".gif")
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        optimize=False,
        duration=1000 // fps,
        loop=0,
    )
    return path


def export_to_video(
    video_frames: "Sequence[Image | np.ndarray[Any, Any]]",
    output_video_path: str | os.PathLike[str] | None = None,
    fps: int = 10,
    quality: float = 5.0,
    bitrate: int | None = None,
    macro_block_size: int | None = 16,
) -> str:
    """Write pictures as an MP4 video; return its path.

    Args:
        video_frames: PIL images, or arrays HWC in [0, 1].
        output_video_path: Where to write; a new temporary file by default.
        fps: Pictures a second.
        quality: 0 to 10.
        bitrate: Bits a second, instead of a quality.
        macro_block_size: Height and width are enlarged to multiples of this.

    Raises:
        InputError: there are no pictures, or imageio with ffmpeg is not installed.
    """
    if not len(video_frames):
        raise InputError("No picture was given to make a video of. Give at least one.")
    try:
        import imageio
        import imageio_ffmpeg  # noqa: F401
    except ImportError as exc:
        raise InputError(
            f"A video was to be written; {exc.name} is missing. Run: pip install perfuse[video]"
        ) from exc
    path = _path(output_video_path, ".mp4")
    with imageio.get_writer(
        path, fps=fps, quality=quality, bitrate=bitrate, macro_block_size=macro_block_size
    ) as writer:
        for frame in video_frames:
            writer.append_data(_eight_bit(frame))
    return path


def _eight_bit(frame: Any) -> Any:
    array = np.asarray(frame)
    return array if array.dtype == np.uint8 else (array * 255).astype(np.uint8)


def _path(given: str | os.PathLike[str] | None, suffix: str) -> str:
    if given is not None:
        return os.fspath(given)
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as file:
        return file.name


def numpy_to_pil(images: Any) -> "list[Image]":
    """Pictures [B, H, W, C] or [H, W, C] in [0, 1] as PIL images."""
    array = np.asarray(images)
    array = array[None] if array.ndim == 3 else array
    return [as_image(one) for one in (array * 255).round().astype(np.uint8)]


def pt_to_pil(images: Any) -> "list[Image]":
    """A tensor of pictures [B, C, H, W] in [-1, 1] as PIL images."""
    return numpy_to_pil(to_unit(to_numpy(images)))
