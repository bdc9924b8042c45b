"""The report that a person reads: one page that needs no server and no network."""

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse.sources import write_file
from perfuse_conformance.judge.results import Run
from perfuse_conformance.report import presentation as said
from perfuse_conformance.report.page import page_of
from perfuse_conformance.report.presentation import KINDS, LOOKS

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["environment", "write_report"]

TEMPLATES = Path(__file__).with_name("templates")


def write_report(runs: Sequence[Run], folder: Path, pictures_from: Sequence[Path]) -> Path:
    """Write ``index.html`` into ``folder``, and the pictures that it shows beside it.

    Args:
        runs: One or several, of one model or of several; a column each.
        folder: Is made if it is not there.
        pictures_from: For each run the folder that its pictures are relative to.

    Returns:
        The page's path.

    Raises:
        ResultsError: a picture's path leads out of its folder, or is no PNG file.
    """
    if len(runs) != len(pictures_from) or not runs:
        raise ValueError(
            f"{len(runs)} runs and {len(pictures_from)} folders of pictures were given."
        )
    folder.mkdir(parents=True, exist_ok=True)
    page = page_of(runs, folder, pictures_from)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    text = (
        environment()
        .get_template("report.html.jinja")
        .render(
            page=page,
            style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
            script=script,
            # A plugin's words can bring no script of their own onto the page.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            LOOKS=LOOKS,
            KINDS=KINDS,
            said=said,
        )
    )
    path = folder / "index.html"
    # A backend's message may hold lone surrogates, which cannot be encoded.
    write_file(path, text.encode("utf-8", errors="backslashreplace"))
    return path


@lru_cache(maxsize=1)
def environment() -> "Environment":
    """The environment of the templates, which escapes all values."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "metric": said.metric_said,
        "label": said.metric_label,
        "number": said.number_said,
        "used": said.used_said,
        "of_limit": said.used_of_limit,
        "call": said.call_said,
        "model": said.model_said,
        "breakable": _breakable,
    }
    return environment


def _breakable(id: str) -> "Markup":
    """An id that may be broken after its slashes and underscores, where room is short."""
    from markupsafe import Markup, escape

    text = escape(id)
    for mark in "/_":
        text = text.replace(mark, Markup(f"{mark}<wbr>"))
    return text
