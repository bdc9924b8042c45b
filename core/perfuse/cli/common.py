"""What several commands share."""

import click

__all__ = ["JSON", "size_text"]

#: Every command that prints can print for a program.
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


def size_text(count: int) -> str:
    """A number of bytes for a person: ``12.3 MB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
