"""Opening pictures' files, which are not trusted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

from perfuse.errors import InputError, PerfuseError
from perfuse.sources.files import open_file, shown

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["picture_file"]

_REMEDY = "Give a whole PNG, JPEG or WebP file."


@contextmanager
def picture_file(path: str | os.PathLike[str], content: bytes | None = None) -> "Iterator[Image]":
    """A picture, open in the ``with`` block; Pillow decodes it there when it is used.

    Args:
        path: A regular file, or what to call the picture in messages if ``content`` is given.
        content: The bytes of the file.

    Raises:
        InputError: there is no such file, it has too many pixels, or Pillow cannot decode it.
    """
    from PIL import Image

    if content is None and not os.path.lexists(path):
        raise InputError(f"There is no picture at {shown(path)}. Check the path.")
    held = (
        open_file(path, error=InputError, remedy=_REMEDY) if content is None else BytesIO(content)
    )
    with held as file:
        try:
            with Image.open(file) as image:
                yield image
        except PerfuseError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
            raise InputError(
                f"{shown(path)} has too many pixels to be read: {exc}. Make it smaller."
            ) from exc
        except (OSError, SyntaxError, ValueError) as exc:
            raise InputError(
                f"{shown(path)} cannot be read as a picture: {_why(exc)}. {_REMEDY}"
            ) from exc


def _why(exc: Exception) -> str:
    # Pillow names the object that it read from, which says nothing here.
    return "it is in no format that Pillow knows" if "identify image" in str(exc) else str(exc)
