"""The report's pictures: taken from beside the results, checked, and laid beside the page."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from perfuse_conformance.judge.results import Result, ResultsError

__all__ = ["ROLES", "Picture", "collect"]

ROLES = ("reference", "backend", "difference")
#: Up to this many pixels a side a picture is enlarged, by a whole number, pixel by pixel.
_SMALL = 96


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG file beside the page."""

    #: Relative to the page.
    href: str
    width: int
    height: int
    #: CSS pixels that its longer side may take.
    room: int

    @property
    def scale(self) -> int:
        """How many times it is enlarged."""
        return max(self.room // max(self.width, self.height), 1) if self._small else 1

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height on the page, in CSS pixels."""
        factor = self.scale if self._small else min(self.room / max(self.width, self.height), 1)
        return round(self.width * factor), round(self.height * factor)

    @property
    def _small(self) -> bool:
        return max(self.width, self.height) <= _SMALL


def collect(result: Result, source: Path, folder: Path, room: int) -> dict[str, Picture]:
    """The pictures of a case, by role; those outside of ``folder`` are copied into it.

    A copy is named after its content, so that the reference's picture is there once.

    Args:
        result: The case; its pictures are relative to ``source``.
        source: The folder that holds the results file.
        folder: The one that the page is written into.
        room: CSS pixels that a picture's longer side may take.

    Raises:
        ResultsError: a path leads out of ``source``, or is no PNG file.
    """
    return {
        role: _place(result, role, source.resolve(), folder.resolve(), room)
        for role in ROLES
        if role in result.pictures
    }


def _place(result: Result, role: str, source: Path, folder: Path, room: int) -> Picture:
    name = result.pictures[role]
    asked = f"The {role} picture of {result.id} is said to be {name!r}"
    if "\\" in name or ":" in name or PurePosixPath(name).is_absolute():
        raise ResultsError(f"{asked}; it has to be a relative path with forward slashes.")
    path = (source / name).resolve()
    if not path.is_relative_to(source):
        raise ResultsError(f"{asked}, which leads out of {source}. Run the suite again.")
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ResultsError(
            f"{asked}; in {source} the system said: {exc.strerror}. Keep the pictures where the "
            "run wrote them, beside its results."
        ) from exc
    width, height = _size(data, asked)
    if path.is_relative_to(folder):
        href = path.relative_to(folder).as_posix()
        return Picture(href=href, width=width, height=height, room=room)
    copy = folder / "pictures" / f"{hashlib.sha256(data).hexdigest()[:16]}.png"
    copy.parent.mkdir(parents=True, exist_ok=True)
    if not copy.exists():
        partial = copy.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(copy)
    return Picture(href=f"pictures/{copy.name}", width=width, height=height, room=room)


def _size(data: bytes, asked: str) -> tuple[int, int]:
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ResultsError(f"{asked}; that is no PNG file. Run the suite again.") from None
