"""Printing on a terminal; control sequences in text from plugins, devices and files are escaped."""

import sys
from typing import TYPE_CHECKING, TextIO
from unicodedata import category

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "cut", "forgive", "line_width", "safe", "say"]

#: The longest line to print of a message, in characters.
_LONGEST = 2000


def safe(text: object) -> str:
    """Untrusted text on one line: control characters escaped, the middle of a very long one left out.

    Spaces of other widths, which Python does not call printable, stay.

    >>> safe("red \\x1b[31m, and a second\\nline")
    'red \\\\x1b[31m, and a second\\\\nline'
    """
    shown = (
        c if c.isprintable() or category(c) == "Zs" else c.encode("unicode_escape").decode("ascii")
        for c in _shortened(str(text))
    )
    return _shortened("".join(shown))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 400]} … {text[-400:]}"


def say(text: object, *, err: bool = False, bold: bool = False) -> None:
    """Print a message, each of its lines as ``safe`` makes it.

    All readable output of the command line is printed by this or by ``console``.

    Args:
        text: What to say; it may have several lines.
        err: Whether to print on standard error.
        bold: Whether to print it in bold letters, on a terminal.
    """
    import click

    for line in str(text).split("\n"):
        shown = safe(line)
        click.echo(click.style(shown, bold=True) if bold else shown, err=err)


def cut(text: str, width: int) -> str:
    """Text cut to at most so many columns, with a mark where it is cut."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)) + "…"


def console(*, stderr: bool = False, wrap: bool = False) -> "Console":
    """The console that all readable output is printed with.

    Text is taken as it is: ``[bold]`` is six characters. What the terminal's encoding does not have
    becomes a question mark.

    Args:
        stderr: Whether to print on standard error.
        wrap: Whether a line that is too long is broken between words.

    Raises:
        BrokenPipeError: when it prints, where nobody reads any more.
    """
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError from None  # where rich would end the process

    forgive(sys.stderr if stderr else sys.stdout)
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=not wrap)


def line_width(to: "Console") -> int | None:
    """Columns that a line may take; ``None`` if the output is not a terminal: no limit."""
    import os

    return to.width if to.is_terminal or os.environ.get("COLUMNS", "").isdecimal() else None


def forgive(stream: TextIO | None) -> None:
    """Have a stream print a question mark for what its encoding does not have."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and getattr(stream, "errors", "") == "strict":
        reconfigure(errors="replace")
