"""What ends a command: Ctrl-C, ``kill``, a closed terminal.

Each raises ``Stopped`` in the main thread, and what is in progress there cleans up. Python calls a
signal's handler between two of its own instructions, so one that arrives while an engine compiles or
computes would wait for the end of that, for a minute sometimes. A second thread is told of the signal at
once; where the main thread has not begun to stop soon, it undoes what is unfinished and ends the process.

A library that computes and keeps Python's lock (the GIL) to itself makes that thread wait as well.
"""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from perfuse.plugins.importing import Stopped
from perfuse.report.console import say
from perfuse.sources.unfinished import stop_with, undo_all

__all__ = ["say_stopped", "stoppable"]

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
#: Seconds that the main thread has to begin. On a busy machine it may be long until it runs at all.
_PATIENCE = 2.0
#: What the main thread writes when it begins. A signal is written as its number, which is never 0.
_BEGUN = b"\0"
#: Where signals are written to in this process. A forked one has the pipes, and nobody who reads.
_pipes: list[int] = []


def say_stopped() -> None:
    """Say that a signal ended the command."""
    say("perfuse: interrupted; nothing half done was kept.", err=True)


@contextmanager
def stoppable() -> Iterator[None]:
    """Make each of these signals raise ``Stopped`` in the ``with`` block, or end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a signal handler
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        for pipe in _pipes:
            with suppress(BlockingIOError):  # it is full of signals
                os.write(pipe, _BEGUN)
        stop_with(Stopped(signum))

    with _watched(stop):
        # One that is ignored stays so: nohup ignores SIGHUP.
        heeded = [one for one in _SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
        before = {one: signal.signal(one, stop) for one in heeded}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


@contextmanager
def _watched(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have a thread end the process where a signal's handler is not called soon."""
    if os.name == "nt":  # its pipes cannot be waited for
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        with open(reading, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number == _BEGUN or signal.getsignal(number[0]) is not handler:
                    continue
                if not select.select([signals], [], [], _PATIENCE)[0]:
                    _end(number[0])

    threading.Thread(target=watch, daemon=True, name="signals").start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _pipes.append(writing)
    try:
        yield
    finally:
        if writing in _pipes:  # else this process was forked
            _pipes.remove(writing)
            signal.set_wakeup_fd(before)
        os.close(writing)  # which ends the thread


def _end(number: int) -> None:
    undo_all()
    say_stopped()
    os._exit(128 + number)


def _forget() -> None:
    """Leave the pipes of the process that this one was forked from alone."""
    if _pipes:
        _pipes.clear()
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
