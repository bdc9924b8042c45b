"""A sheet of captioned pictures, to look at: captions down, columns across."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays.pictures import as_image
from perfuse.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

__all__ = ["grid"]


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

    cells = [None if image is None else as_image(image) for image in images]
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
