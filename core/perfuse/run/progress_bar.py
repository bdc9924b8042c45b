"""The progress bar of a call, as Diffusers' pipelines show one."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["progress_bar"]


def progress_bar(
    iterable: Iterable[Any] | None, total: int | None, settings: Mapping[str, Any]
) -> Any:
    """A bar over an iterable, or one of ``total`` steps with ``update()``.

    Args:
        iterable: What to iterate over.
        total: How many steps there are, without an iterable.
        settings: tqdm's own. Unless ``disable`` is among them, there is a bar on a terminal and in
            a notebook, and none elsewhere.
    """
    from tqdm.auto import tqdm

    shown = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(iterable, total=total, **{"disable": not shown, **settings})
