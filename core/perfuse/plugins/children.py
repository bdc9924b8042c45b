"""Processes of their own for code that may hang or die: each with a time limit, none outlives this one.

What they run is ``perfuse.plugins.probe``.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import subprocess

__all__ = ["APART", "TIMEOUT", "Children", "Ended"]

#: Seconds that a process may take. Engines are large, and a disk may be cold.
TIMEOUT = 60.0
#: Set in such a process: plugins are imported in it, and not in a further one.
APART = "PERFUSE_APART"
#: As many as run at the same time; an engine may take some hundred megabytes.
_AT_ONCE = 4
#: Lines of a process's output that are kept where it fails.
_KEPT = 12

_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a process left behind."""

    #: ``None`` where it ended before it had one.
    answer: dict[str, Any] | None
    #: The last step that it began.
    step: str
    #: Why it is to be called crashed; ``None`` where it ended as it should.
    crash: str | None
    seconds: float
    #: The last lines of what it printed, on either stream.
    output: list[str]


@dataclass
class Children:
    """The processes that run now: to be ended with this one."""

    running: set["subprocess.Popen[bytes]"] = field(default_factory=set)
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def map(self, function: Callable[[_A], _B], values: Iterable[_A]) -> list[_B]:
        """Call a function that runs processes for each value, several at a time.

        Whatever interrupts this, an exception or Ctrl-C, ends all of them first.
        """
        from concurrent.futures import ThreadPoolExecutor  # most often there is nothing to run

        with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
            try:
                return list(pool.map(function, values))
            except BaseException:
                self.end()  # the pool waits for them
                raise

    def run(
        self, request: Mapping[str, Any], *, timeout: float, plugin: str | None = None
    ) -> Ended:
        """Answer a request in a process of its own.

        Args:
            request: What ``perfuse.plugins.probe`` takes.
            timeout: Seconds after which it is ended.
            plugin: The key of the one to import; those that are allowed by default.
        """
        import subprocess
        import tempfile

        with tempfile.TemporaryDirectory(prefix="perfuse-") as folder:
            answer, output = Path(folder) / "answer", Path(folder) / "output"
            answer.touch()
            began = time.monotonic()
            with open(output, "wb") as stream:
                process = self._start(
                    _command(answer, request),
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=_environment(plugin),
                    start_new_session=True,  # so that what it starts ends with it
                )
            try:
                crash = _crash(process.wait(timeout))
            except subprocess.TimeoutExpired:
                crash = f"timeout: no end after {timeout:g} s"
            finally:
                _kill(process)
                process.wait()
                self.running.discard(process)
            seconds = time.monotonic() - began
            lines = _read_lines(answer)
            answers = [line["answer"] for line in lines if "answer" in line]
            if not answers and crash is None:
                crash = "it ended without an answer"
            return Ended(
                answer=answers[0] if answers else None,
                step=next((line["step"] for line in reversed(lines) if "step" in line), "starting"),
                crash=crash,
                seconds=round(seconds, 2),
                output=_tail(output),
            )

    def _start(self, command: list[str], **settings: Any) -> "subprocess.Popen[bytes]":
        import subprocess

        with self.lock:  # so that none begins while, or after, all are ended
            if self.closed:
                raise InterruptedError("no further process is started")
            process = subprocess.Popen(command, **settings)
            self.running.add(process)
            return process

    def end(self) -> None:
        """End them all, and let no other begin."""
        with self.lock:
            self.closed = True
            for process in list(self.running):
                _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process, and where the system has process groups also those that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _command(answer: Path, request: Mapping[str, Any]) -> list[str]:
    # -P: not what lies in the folder it is called from. faulthandler: where a dead process was.
    options = ["-P", "-u", "-X", "faulthandler"]
    return [
        sys.executable,
        *options,
        "-m",
        "perfuse.plugins.probe",
        str(answer),
        json.dumps(request),
    ]


def _environment(plugin: str | None) -> dict[str, str]:
    """That of this process, with its module path, and one plugin where one is named."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    environment.pop("PERFUSE_STRICT", None)  # what is wrong is to be told, not raised
    environment[APART] = "1"
    if plugin is not None:
        environment["PERFUSE_PLUGINS"] = plugin
    return environment


def _crash(status: int) -> str | None:
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return None if status == 0 else f"exit status {status}"


def _read_lines(answer: Path) -> list[dict[str, Any]]:
    """What a process wrote down; the last line of a dead one may be half a line."""
    lines = []
    for line in answer.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _tail(output: Path) -> list[str]:
    with open(output, "rb") as stream:
        stream.seek(max(0, output.stat().st_size - 4000))
        return stream.read().decode("utf-8", "replace").splitlines()[-_KEPT:]
