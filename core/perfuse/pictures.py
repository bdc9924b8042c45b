"""Pictures in and out: between PIL images and the arrays that a VAE takes and gives.

The numbers are those of Diffusers' ``VaeImageProcessor``, with numpy and Pillow alone. N is the
number of pictures, C their channels, H and W their height and width in pixels. Pillow is imported
when it is first needed.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfuse.errors import InputError, NonFiniteError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

__all__ = [
    "grid",
    "open_picture",
    "preprocess",
    "preprocess_mask",
    "save_png",
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
    x = np.asarray(decoded, dtype=np.float32)
    if x.ndim != 4:
        raise InputError(f"Decoded pictures have the shape NCHW; these have {x.shape}.")
    bad = ~np.isfinite(x)
    if bad.any():
        # Clamping would turn them into black or white pixels that look like a picture.
        pictures = ", ".join(map(str, np.flatnonzero(bad.any(axis=(1, 2, 3)))))
        raise NonFiniteError(
            f"The decoded pictures hold {int(bad.sum())} of {x.size} values that are NaN or "
            f"infinite (in picture {pictures}). Try another precision: float32, or bfloat16 in "
            "place of float16, for the VAE first and then for the denoiser."
        )
    unit = (x * np.float32(0.5) + np.float32(0.5)).clip(0, 1)
    return np.ascontiguousarray(unit.transpose(0, 2, 3, 1))


def to_pictures(decoded: ArrayLike) -> NDArray[np.uint8]:
    """Bring decoded pictures, NCHW around [-1, 1], to uint8 NHWC in 0 to 255.

    Raises what `to_unit` raises.

    >>> to_pictures(np.array([-1, 0, 1, 9], np.float32).reshape(1, 1, 1, 4)).ravel().tolist()
    [0, 128, 255, 255]
    """
    return (to_unit(decoded) * 255).round().astype(np.uint8)


def to_pil(decoded: ArrayLike) -> "list[Image]":
    """Bring decoded pictures, NCHW around [-1, 1], to PIL images: L, RGB or RGBA by their channels.

    Raises what `to_unit` raises, and `InputError` for another number of channels.
    """
    return [_as_image(picture) for picture in to_pictures(decoded)]


# --- into the VAE -----------------------------------------------------------------------------


def preprocess(
    image: Any, height: int | None = None, width: int | None = None, *, multiple: int = 8
) -> Float32:
    """Bring a picture or a list of them to float32 NCHW in [-1, 1], all H x W.

    A PIL image becomes RGB and is resized with the Lanczos filter. An array is HW, HWC or NHWC,
    uint8, or floats in [0, 1] (in [-1, 1], if any is negative), and is resized to the nearest
    pixel. Without ``height`` and ``width`` it is as large as the first picture, rounded down to
    ``multiple``, the VAE's scale factor. Raises `InputError` for anything that is not a picture,
    and for a size that ``multiple`` does not divide.
    """
    images = _checked_list(image)
    if _are_arrays(images):
        x = _stack_arrays(images)
        x = _resize_nearest(x, *_size(x.shape[1:3], height, width, multiple))
    else:
        size = _size((images[0].height, images[0].width), height, width, multiple)
        x = np.stack([_lanczos(one.convert("RGB"), size) for one in images])
        x = x.astype(np.float32) / np.float32(255)
    if x.min() >= 0:
        x = 2 * x - 1
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
        x = _resize_nearest(x, *_size(x.shape[1:3], height, width, multiple))
    else:
        size = _size((images[0].height, images[0].width), height, width, multiple)
        grey = [np.asarray(_resized(one, size).convert("L")) for one in images]
        x = np.stack(grey)[..., None].astype(np.float32) / np.float32(255)
    return np.ascontiguousarray((x >= 0.5).astype(np.float32).transpose(0, 3, 1, 2))


def open_picture(path: str | Path) -> "Image":
    """Open a picture file as an RGB image, turned upright as its camera noted.

    Raises `InputError` if there is no such file or Pillow cannot read it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as exc:
        raise InputError(f"There is no picture at {path}. Check the path.") from exc
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise InputError(
            f"{path} cannot be read as a picture: {exc}. Give a whole PNG, JPEG or WebP file."
        ) from exc


def _checked_list(given: Any) -> list[Any]:
    from PIL.Image import Image

    images = list(given) if isinstance(given, (list, tuple)) else [given]
    if not images:
        raise InputError("No picture was given. Give a PIL image, an array, or a list of them.")
    for image in images:
        if not isinstance(image, (Image, np.ndarray)) or isinstance(image, Image) != isinstance(
            images[0], Image
        ):
            raise InputError(
                f"A {type(image).__name__} was given as a picture. Give PIL images, or numpy "
                "arrays HWC or NHWC (a torch tensor: .permute(0, 2, 3, 1).numpy()), not both."
            )
    return images


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


def _resized(image: "Image", size: tuple[int, int]) -> "Image":
    from PIL.Image import Resampling

    return image.resize((size[1], size[0]), resample=Resampling.LANCZOS)


def _lanczos(image: "Image", size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(_resized(image, size))


def _resize_nearest(x: Float32, height: int, width: int) -> Float32:
    """Resize NHWC as ``torch.nn.functional.interpolate`` does in its mode "nearest"."""

    def source(found: int, asked: int) -> NDArray[np.intp]:
        # In float32, as PyTorch: the quotient's rounding decides which pixel is nearest.
        scale = np.float32(found) / np.float32(asked)
        at = np.floor(np.arange(asked, dtype=np.float32) * scale).astype(np.intp)
        return np.asarray(np.minimum(at, found - 1))

    rows, columns = source(x.shape[1], height), source(x.shape[2], width)
    return x[:, rows[:, None], columns]


# --- to look at -------------------------------------------------------------------------------


def save_png(image: "Image | NDArray[np.uint8]", path: str | Path) -> Path:
    """Write a picture as PNG and return its path; whatever happens, the file is whole or not there.

    ``image`` is a PIL image or uint8 HW or HWC. A file that is already there is replaced. Raises
    `InputError` if the folder cannot be written, or if ``image`` is not a picture.
    """
    path, image = Path(path), _as_image(image)
    # In the same folder, because only within one file system is a rename atomic.
    part = path.parent / f".{path.name[:100]}.{os.getpid()}-{os.urandom(4).hex()}.part"
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        try:
            with open(part, "xb") as file:
                image.save(file, format="PNG")
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise InputError(
            f"The picture cannot be saved as {path}: {exc.strerror or exc}. "
            "Choose a file in a folder that is there and can be written."
        ) from exc
    return path


def grid(
    images: "Sequence[Image | NDArray[np.uint8] | None]",
    columns: int,
    *,
    title: str | None = None,
    row_captions: Sequence[str] | None = None,
    column_captions: Sequence[str] | None = None,
    cell_captions: Sequence[str] | None = None,
    scale: int | None = None,
) -> "Image":
    """Lay pictures out in rows of ``columns``, with words beside, above and below them.

    ``images`` are PIL images or uint8 HW or HWC, row by row; None leaves an empty frame.
    ``row_captions`` stand at the left of each row, ``column_captions`` above each column,
    ``cell_captions`` small under each picture; all are wrapped. ``scale`` enlarges each pixel to a
    square of that many; without it, small pictures grow to about 192 pixels. Raises `InputError`
    if captions and pictures do not match in number.
    """
    from PIL import Image

    cells = [None if image is None else _as_image(image) for image in images]
    if columns < 1 or not any(cells):
        raise InputError(f"A grid needs a picture and a column; {columns} columns were asked for.")
    rows = -(-len(cells) // columns)
    _check_captions("row_captions", row_captions, rows)
    _check_captions("column_captions", column_captions, columns)
    _check_captions("cell_captions", cell_captions, len(cells))
    width = max(cell.width for cell in cells if cell is not None)
    height = max(cell.height for cell in cells if cell is not None)
    scale = max(1, round(192 / max(width, height))) if scale is None else scale
    if scale < 1:
        raise InputError(f"scale={scale} would leave nothing of the pictures. Give 1 or more.")
    width, height = width * scale, height * scale

    small, normal, large = _Lettering(13, _GREY), _Lettering(15, _INK), _Lettering(20, _INK)
    gap, side = 14, 190 if row_captions else 0
    across = columns * width + (columns - 1) * gap
    heading = large.wrap(title or "", side + across)
    tops = [normal.wrap(caption, width) for caption in column_captions or ()]
    sides = [normal.wrap(caption, side - gap) for caption in row_captions or ()]
    feet = [small.wrap(caption, width) for caption in cell_captions or ()]
    title_height = large.height(heading) + gap if heading else 0
    top_height = max(map(normal.height, tops), default=0) + (8 if tops else 0)
    row_heights = []
    for row in range(rows):
        below = [small.height(lines) for lines in feet[row * columns : (row + 1) * columns]]
        beside = normal.height(sides[row]) if sides else 0
        row_heights.append(max(height + max(below, default=0) + (6 if any(below) else 0), beside))

    margin = 20
    sheet = Image.new(
        "RGB",
        (
            2 * margin + side + across,
            2 * margin + title_height + top_height + sum(row_heights) + (rows - 1) * gap,
        ),
        _PAPER,
    )
    draw = _draw_on(sheet)
    large.write(draw, heading, margin, margin)
    y = margin + title_height
    left = margin + side
    for column, lines in enumerate(tops):
        middle = left + column * (width + gap) + width // 2
        normal.write(draw, lines, middle, y + top_height - 8 - normal.height(lines), centred=True)
    y += top_height
    for row, row_height in enumerate(row_heights):
        if sides:
            above = max(0, (height - normal.height(sides[row])) // 2)
            normal.write(draw, sides[row], margin, y + above)
        for column in range(columns):
            i, x = row * columns + column, left + column * (width + gap)
            if i >= len(cells):
                break
            _paste(sheet, draw, cells[i], (x, y, width, height), scale)
            if feet:
                small.write(draw, feet[i], x + width // 2, y + height + 6, centred=True)
        y += row_height + gap
    return sheet


def _check_captions(name: str, captions: Sequence[str] | None, needed: int) -> None:
    if captions is not None and len(captions) != needed:
        raise InputError(f"{name} holds {len(captions)} captions; {needed} are needed.")


_PAPER, _INK, _GREY, _FRAME = (255, 255, 255), (28, 30, 33), (105, 110, 118), (208, 212, 217)


class _Lettering:
    """Pillow's own font in one size and colour: wrapped, measured and written."""

    def __init__(self, size: int, colour: tuple[int, int, int]) -> None:
        from PIL import ImageFont

        self._font: Any
        try:
            self._font = ImageFont.load_default(size)
            self._line = round(size * 1.3)
        except (TypeError, ImportError):  # Pillow 10.0, or built without FreeType
            self._font = ImageFont.load_default()
            self._line = 13
        self._colour = colour

    def wrap(self, text: str, width: int, most: int = 6) -> list[str]:
        """Break text into lines no wider than this, and end with dots after ``most`` of them."""
        lines: list[str] = []
        for paragraph in text.split("\n"):
            line = ""
            for word in paragraph.split():
                joined = f"{line} {word}" if line else word
                if self._width(joined) <= width:
                    line = joined
                    continue
                if line:
                    lines.append(line)
                while self._width(word) > width and len(word) > 1:  # a word wider than a line
                    fits = max(1, sum(self._width(word[:n]) <= width for n in range(1, len(word))))
                    # After a mark, if there is one: "onnxruntime:" and then the rest.
                    cut = max(word.rfind(mark, 0, fits) for mark in ":/-_=,") + 1 or fits
                    lines.append(word[:cut])
                    word = word[cut:]
                line = word
            if line:
                lines.append(line)
        if len(lines) <= most:
            return lines
        last = lines[most - 1]
        while last and self._width(last + "...") > width:
            last = last[:-1]
        return [*lines[: most - 1], last.rstrip() + "..."]

    def height(self, lines: list[str]) -> int:
        return len(lines) * self._line

    def write(
        self, draw: "ImageDraw", lines: list[str], x: int, y: int, centred: bool = False
    ) -> None:
        for line in lines:
            start = x - self._width(line) / 2 if centred else x
            draw.text((round(start), y), self._drawable(line), font=self._font, fill=self._colour)
            y += self._line

    def _width(self, text: str) -> float:
        width: float = self._font.getlength(self._drawable(text))
        return width

    def _drawable(self, text: str) -> str:
        from PIL import ImageFont

        if isinstance(self._font, ImageFont.FreeTypeFont):
            return text
        return text.encode("latin-1", "replace").decode("latin-1")  # all that the old font has


def _draw_on(sheet: "Image") -> "ImageDraw":
    from PIL import ImageDraw

    return ImageDraw.Draw(sheet)


def _paste(
    sheet: "Image",
    draw: "ImageDraw",
    image: "Image | None",
    box: tuple[int, int, int, int],
    scale: int,
) -> None:
    """Put a picture in the middle of its box, enlarged without smoothing, in a thin frame."""
    from PIL.Image import Resampling

    x, y, width, height = box
    # The frame lies outside the picture, so that none of its pixels is hidden.
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=_FRAME)
    if image is not None:
        size = (image.width * scale, image.height * scale)
        enlarged = image.resize(size, resample=Resampling.NEAREST).convert("RGB")
        sheet.paste(enlarged, (x + (width - size[0]) // 2, y + (height - size[1]) // 2))


def _as_image(picture: "Image | NDArray[np.uint8]") -> "Image":
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
