"""Checks the two files of an OpenVINO IR before the engine maps them."""

import re
from pathlib import Path

from perfuse.errors import ArtifactError

__all__ = ["check_files"]

_SPAN = re.compile(rb'<data [^>]*?\boffset="(\d+)" size="(\d+)"')


def check_files(path: Path, component: str) -> None:
    """Check that the XML is complete and that the weights file holds everything it refers to.

    Raises:
        ArtifactError: a file is missing, cut off or empty.
    """
    weights = path.with_suffix(".bin")
    try:
        text = path.read_bytes()
        size = weights.stat().st_size
    except OSError as exc:
        raise ArtifactError(
            f"{component} was to be read from {path.name} and {weights.name} in {path.parent}; "
            f"{exc.filename or path}: {exc.strerror or exc}. Export the model again."
        ) from exc
    if not text.rstrip().endswith(b"</net>"):
        raise ArtifactError(
            f"{path} is cut off: </net> was expected at its end. Export the model again."
        )
    needed = max((int(start) + int(length) for start, length in _SPAN.findall(text)), default=0)
    if size < needed:
        raise ArtifactError(
            f"{weights} is cut off: {path.name} needs {needed} bytes of it, it has {size}. "
            "Export the model again, or copy the file again."
        )
