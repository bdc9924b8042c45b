"""What unfinished work leaves, for a process that has to end without leaving its ``with`` blocks.

A block that is left by an exception removes its temporary files itself. A command that is told to end
while an engine computes can raise none for as long as that takes (``perfuse.cli.stopping``).

>>> with undone(lambda: print("removed")):
...     undo_all()
removed
>>> undo_all()
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["scratch_folder", "stop_with", "together", "undo_all", "undone"]

_numbers = itertools.count()
#: What has come to stop the main thread, for each block that it is in and that is not to be stopped.
_kept: list[list[BaseException]] = []
_undo: dict[int, Callable[[], object]] = {}


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Have ``undo`` called if the process has to end while it is in the ``with`` block.

    Args:
        undo: Called in another thread than the block's, which is somewhere in it. What it raises is
            dropped.
    """
    number = next(_numbers)
    _undo[number] = undo
    try:
        yield
    finally:
        del _undo[number]


def undo_all() -> None:
    """Undo what is unfinished in this process, the latest first."""
    for undo in reversed(list(_undo.values())):
        with suppress(Exception):
            undo()


@contextmanager
def together() -> Iterator[None]:
    """Have the user's wish to stop wait for the end of the ``with`` block, which is short.

    In it several files take their names, of which none is to be there without the others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # which signals do not stop
        return
    kept: list[BaseException] = []
    _kept.append(kept)
    try:
        yield
    finally:
        _kept.remove(kept)
    if kept:
        raise kept[0]


def stop_with(exc: BaseException) -> None:
    """Raise an exception in the main thread, now or where the block that it is in ends."""
    if not _kept:
        raise exc
    _kept[0].append(exc)


@contextmanager
def scratch_folder(prefix: str = "perfuse-") -> Iterator[Path]:
    """A temporary folder that goes with the ``with`` block, or with the process."""
    temporary = TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    with temporary as folder, undone(temporary.cleanup):
        yield Path(folder)
