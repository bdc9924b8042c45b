"""Child processes for plugin code that may hang or crash, each with a time limit.

They run ``perfuse.plugins.probe``, and all end with this process.
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

from perfuse.errors import PerfuseError
from perfuse.plugins.allowance import Allowance
from perfuse.sources.files import open_file
from perfuse.sources.unfinished import scratch_folder, undone

if TYPE_CHECKING:
    import subprocess

__all__ = ["APART", "TIMEOUT", "Children", "Ended"]

#: Time limit of a process, in seconds: importing a large engine from a cold disk is slow. The time for
#: which it waits for a processor does not count.
TIMEOUT = 60.0
#: How often at most the clock is looked at when that limit is near, in seconds.
_LOOK = 0.05
#: Set in a child process, so that it imports plugins itself and starts no further child.
APART = "PERFUSE_APART"
#: How many processes run at the same time; each may need some hundred megabytes.
_AT_ONCE = 4
#: How much of an answer is read, in bytes.
_LARGEST = 2**26
#: How many lines of a failed process's output are kept.
_KEPT = 12

_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The result of a child process."""

    #: ``None`` if it ended without one.
    answer: dict[str, Any] | None
    #: The last step that it began.
    step: str
    #: Why it counts as crashed; ``None`` if it ended normally.
    crash: str | None
    seconds: float
    #: The last lines that it printed, on either stream.
    output: list[str]


@dataclass
class Children:
    """The child processes that are running, so that they can be ended with this one."""

    running: set["subprocess.Popen[bytes]"] = field(default_factory=set)
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def map(self, function: Callable[[_A], _B], values: Iterable[_A]) -> list[_B]:
        """Call a function that runs processes for each value, several at a time.

        An exception or Ctrl-C ends all running processes first.
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
        """Answer a request in a child process.

        Args:
            request: A request of ``perfuse.plugins.probe``.
            timeout: Seconds after which the process is killed.
            plugin: The key of the plugin to import; all allowed plugins by default.
        """
        try:
            return self._run(request, timeout, plugin)
        except OSError as exc:  # Python cannot be started, or no temporary folder be made
            crash = f"no process could be started: {exc.strerror or exc}"
            return Ended(answer=None, step="starting", crash=crash, seconds=0.0, output=[])

    def _run(self, request: Mapping[str, Any], timeout: float, plugin: str | None) -> Ended:
        import subprocess

        with scratch_folder() as folder, undone(self.end):
            answer, output = folder / "answer", folder / "output"
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
                crash = _crash(_wait(process, timeout))
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
                raise RuntimeError("processes were ended; no further one is started")
            process = subprocess.Popen(command, **settings)
            self.running.add(process)
            return process

    def end(self) -> None:
        """Kill all processes, and refuse to start others."""
        with self.lock:
            self.closed = True
            for process in list(self.running):
                _kill(process)


def _wait(process: "subprocess.Popen[bytes]", timeout: float) -> int:
    """The exit status of a process.

    Raises:
        subprocess.TimeoutExpired: it had that many seconds, and has not ended.
    """
    import subprocess

    allowed = Allowance(process.pid, timeout)
    while True:
        try:
            return process.wait(max(allowed.left(), _LOOK))
        except subprocess.TimeoutExpired:
            if not allowed.left():
                raise


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and, if the system has process groups, those that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _command(answer: Path, request: Mapping[str, Any]) -> list[str]:
    # -P: do not import from the working folder. faulthandler: print where a process crashed.
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
    """This process's environment and module path, with ``plugin``, if given, as the only one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    environment.pop("PERFUSE_STRICT", None)  # report faults instead of raising
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
    """The JSON lines that a process wrote; a crash may leave the last line incomplete."""
    lines = []
    for text in _end_of(answer, _LARGEST).splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _tail(output: Path) -> list[str]:
    return _end_of(output, 4000).splitlines()[-_KEPT:]


def _end_of(path: Path, most: int) -> str:
    """The end of a file as text; none of one that the process removed."""
    try:
        with open_file(path) as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - most))
            return stream.read(most).decode("utf-8", "replace")
    except (OSError, PerfuseError):
        return ""
