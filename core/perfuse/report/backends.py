"""The output of ``perfuse backends`` and ``perfuse doctor``."""

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perfuse.report.console import console, cut, line_width, safe

__all__ = ["print_backends", "print_examined"]

#: A row of ``perfuse.plugins.doctor.examine``.
Row = Mapping[str, Any]
_HEADINGS = ("target", "state", "here", "what")
#: The least width at which the last column is printed.
_LEAST = 12
#: How many changes of a process are named; ``--json`` has all.
_CHANGES = 8


def print_backends(rows: Sequence[Row]) -> None:
    """The rows of ``perfuse backends`` as text: one line per target, then the reasons in full."""
    to = console()
    width = line_width(to)
    for line in (*_table(rows, width), *_reasons(rows, width), *_age(rows)):
        to.print(line)


def _table(rows: Sequence[Row], width: int | None) -> Iterator[str]:
    cells = [_HEADINGS, *(line for row in rows for line in _lines(row))]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    room = None if width is None else width - sum(widths) - 2 * 3
    for line in cells:
        first = "  ".join(f"{text:{w}}" for text, w in zip(line, widths, strict=False))
        last = line[3] if room is None else cut(line[3], room) if room >= _LEAST else ""
        whole = f"{first}  {last}".rstrip()
        yield whole if width is None else cut(whole, width)


def _lines(row: Row) -> Iterator[tuple[str, str, str, str]]:
    state, here = safe(row["state"]), _here(row)
    for device in row["devices"]:
        what = f"{device['description']} ({', '.join(device['precisions'])})"
        yield safe(device["target"]), state, here, safe(what)
    if not row["devices"]:
        yield safe(row["backend"]), state, here, safe(row["summary"])


def _here(row: Row) -> str:
    """What works on this machine for a backend: ``exported``, ``interpreted``, ``executed``."""
    words = ["exported"] if row["exports"] else []
    if row["interpreters"] or (row["interprets"] and row["state"] == "available"):
        words.append("interpreted")
    if row["state"] == "available" and not row["interprets"]:
        words.append("executed")
    return ", ".join(words)


def _reasons(rows: Sequence[Row], width: int | None) -> Iterator[str]:
    """Why backends are not available; those with the same reason are named together."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["reason"]:
            groups.setdefault((row["reason"], row["remedy"]), []).append(row)
    for (reason, remedy), those in groups.items():
        yield ""
        names = ", ".join(safe(row["backend"]) for row in those)
        origin = f" ({_origin(those[0])})" if len(those) == 1 else ""
        yield from _wrapped(f"{names}{origin}: {safe(reason)}", width, "")
        if remedy:
            yield from _wrapped(safe(remedy), width, "  ")


def _wrapped(text: str, width: int | None, indent: str) -> list[str]:
    """Wrap lines only between words, so that a command or an address stays whole."""
    if width is None:
        return [indent + text]
    return textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=indent,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _age(rows: Sequence[Row]) -> Iterator[str]:
    """How old the oldest cached answer is."""
    found = [row["found"] for row in rows if "found" in row]
    if found:
        yield ""
        yield f"Devices as found {_ago(time.time() - min(found))} ago; --refresh asks again."


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds // 1:.0f} s"


def print_examined(rows: Sequence[Row], plugins: Sequence[Row] = ()) -> None:
    """The rows of ``perfuse doctor`` as text.

    Args:
        rows: The backends.
        plugins: The plugins, of which those are named that change the process without a backend.
    """
    from rich.text import Text

    to = console()
    for row in rows:
        seconds = f"  {row['seconds']:.1f} s" if "seconds" in row else ""
        state = f"  {safe(row['state'])}  {_origin(row)}{seconds}"
        to.print(Text.assemble((safe(row["backend"]), "bold"), state))
        for line in _details(row):
            to.print(f"  {line}")
    named = {(row["distribution"], row["plugin"]) for row in rows}
    for row in plugins:
        if row["changes"] and (row["distribution"], row["name"]) not in named:
            to.print(f"{safe(row['name'])}  {_origin(row)}")
            to.print(f"  {_changes(row)}")


def _changes(row: Row) -> str:
    """What a plugin changes for all code of a process, on one line."""
    few = [safe(one) for one in row["changes"][:_CHANGES]]
    more = len(row["changes"]) - len(few)
    return f"changes in the process: {', '.join(few)}{f' and {more} more' if more else ''}"


def _details(row: Row) -> Iterator[str]:
    engines = [f"{name} {version}" for name, version in row.get("engines", {}).items()]
    if engines:
        yield safe(", ".join(engines))
    if row["reason"]:
        yield safe(f"{row['reason']}. {row['remedy']}")
    supports = row.get("supports", {})
    for device in row["devices"]:
        yield safe(f"{device['target']}: {device['description']}")
        answers = supports.get(device["target"], {}).items()
        if answers:
            yield safe("  " + ", ".join(f"{precision} {level}" for precision, level in answers))
    if row.get("changes"):
        yield _changes(row)
    for line in row.get("output", ()):
        yield f"│ {safe(line)}"


def _origin(row: Row) -> str:
    return safe(f"{row['distribution']} {row['version']}")
