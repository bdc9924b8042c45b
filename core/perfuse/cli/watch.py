"""The progress display of a command, and the time that each part of it took."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from perfuse.progress import Progress, reporting
from perfuse.sources.unfinished import undone

if TYPE_CHECKING:
    from perfuse.contract.steps import Event, Task

__all__ = ["Watch", "watching"]


class _Display(Protocol):
    def show(self, message: str, done: int, total: int | None) -> None: ...


class Watch:
    """Measures a command's steps, and separately the work on components inside them."""

    def __init__(self, display: _Display | None) -> None:
        self._display = display
        self._began = self._mark = time.perf_counter()
        self._steps: dict[str, float] = {}
        self._work: dict[str, dict[str, float]] = {}
        #: The work in progress, the outermost first, each with the seconds of other work inside it.
        self._open: list[tuple[Progress, float]] = [(Progress(message=""), 0.0)]

    def begin(self, message: str, *, done: int = 0, total: int | None = None) -> None:
        """Show what the command does now."""
        self._open[0] = (Progress(message=message, done=done, total=total), self._open[0][1])
        self._show(self._open[0][0])

    def lap(self, step: str) -> None:
        """Add the time since the last lap, without the work on components, to a step."""
        now = time.perf_counter()
        progress, inside = self._open[0]
        self._steps[step] = self._steps.get(step, 0.0) + max(now - self._mark - inside, 0.0)
        self._open[0] = (progress, 0.0)
        self._mark = now

    def follow(self, task: "Task", events: "Iterable[Event]") -> "Iterator[Event]":
        """Pass on the events of a task, with each shown and timed."""
        names = [node.name for node in task.steps]
        self.begin(_words(names[0]))
        for event in events:
            self.lap(event.step)
            if event.total > 1:
                self.begin(_words(event.step), done=event.done, total=event.total)
            yield event
            following = names[names.index(event.step) + 1 :] if event.step in names else []
            if following and event.done == event.total:
                self.begin(_words(following[0]))

    def heard(self, progress: Progress) -> None:
        """Record a report of ``perfuse.progress``."""
        if progress.seconds is not None:
            self._close(progress, progress.seconds)
        elif progress.stage:
            self._open.append((progress, 0.0))
        around = self._open[-1][0]
        remark = progress.seconds is None and not progress.stage
        self._show(replace(around, message=progress.message) if remark else around)

    def _close(self, progress: Progress, seconds: float) -> None:
        inside = 0.0
        while len(self._open) > 1:  # nested work that failed was never closed
            begun, inside = self._open.pop()
            if (begun.stage, begun.subject) == (progress.stage, progress.subject):
                break
        own = self._work.setdefault(progress.subject, {})
        own[progress.stage] = own.get(progress.stage, 0.0) + max(seconds - inside, 0.0)
        around, so_far = self._open[-1]
        self._open[-1] = (around, so_far + seconds)

    def _show(self, progress: Progress) -> None:
        if self._display is not None:
            self._display.show(progress.message, progress.done, progress.total)

    def seconds(self) -> dict[str, object]:
        """The seconds of each step, of the work on each component, and in total."""
        return {
            "total": round(time.perf_counter() - self._began, 4),
            "steps": {name: round(seconds, 4) for name, seconds in self._steps.items()},
            "components": {
                name: {stage: round(seconds, 4) for stage, seconds in stages.items()}
                for name, stages in self._work.items()
            },
        }

    def summary(self, ran: Mapping[str, str] | None = None) -> str:
        """The times as text: one line per component, then the steps.

        Args:
            ran: Where each component ran, in words.
        """
        rows = {name: [where] for name, where in (ran or {}).items()}
        for name, stages in self._work.items():
            rows.setdefault(name, []).append(_times(stages))
        width = max(map(len, rows), default=0)
        lines = [f"{name:{width}}  {'; '.join(filter(None, row))}" for name, row in rows.items()]
        total = time.perf_counter() - self._began
        return "\n".join([*lines, f"{_times(self._steps)}; in all {total:.1f} s"])


def _times(seconds: Mapping[str, float]) -> str:
    """The times that are long enough to be shown."""
    return ", ".join(
        f"{name.replace('_', ' ')} {s:.1f} s" for name, s in seconds.items() if s > 0.05
    )


def _words(step: str) -> str:
    return step.replace("_", " ").capitalize()


@contextmanager
def watching(*, show: bool) -> Iterator[Watch]:
    """Measure the ``with`` block; if ``show``, with a progress bar on a terminal."""
    with ExitStack() as stack:
        display = stack.enter_context(_bar()) if show and sys.stderr.isatty() else None
        watch = Watch(display)
        stack.enter_context(reporting(watch.heard))
        yield watch


@contextmanager
def _bar() -> Iterator[_Display]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
    )
    from rich.text import Text

    class Left(ProgressColumn):
        """The share done and the time left, if known; else the time so far."""

        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text(f"{task.elapsed or 0:.0f} s")
            left = task.time_remaining
            shown = f", {left:.0f} s left" if left is not None and task.completed else ""
            return Text(f"{task.completed:.0f}/{task.total:.0f}{shown}")

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), Left())
    console = Console(stderr=True)
    # Stopped, it gives the terminal its cursor back.
    with Progress(*columns, console=console, transient=True) as bars, undone(bars.stop):

        class Display:
            def __init__(self) -> None:
                self._shown, self._bar = "", bars.add_task("", total=None)

            def show(self, message: str, done: int, total: int | None) -> None:
                if message != self._shown:  # restart the estimate for different work
                    bars.remove_task(self._bar)
                    self._shown = message
                    self._bar = bars.add_task(escape(message), total=total)
                bars.update(self._bar, total=total, completed=done, refresh=done == total)

        yield Display()
