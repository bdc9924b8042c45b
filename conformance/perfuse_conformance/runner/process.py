"""A worker process, as its parent sees it: asked, waited for, and ended when it does not answer."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfuse.backend import Target
from perfuse.plugins import Allowance

__all__ = ["Answer", "Crash", "Failure", "Timeout", "WorkerProcess"]

_TAIL = 2000
#: How often at most the clock is looked at when a time limit is near, in seconds.
_LOOK = 0.05


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker answered; ``value`` is ``None`` where something was raised."""

    value: Mapping[str, Any] | None
    #: ``type``, ``bases``, ``ours``, ``message`` of the exception.
    error: Mapping[str, Any] | None = None
    #: What the worker wrote to standard output during the request.
    printed: str = ""
    #: Settings of the process that are otherwise than before.
    changed: tuple[str, ...] = ()


class Failure(Exception):
    """The worker is gone."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log


class Crash(Failure):
    """It ended by itself."""


class Timeout(Failure):
    """It did not answer in time, and was ended."""


class WorkerProcess:
    """Starts when it is first asked, and again after it was lost."""

    def __init__(
        self, target: Target, model: str | None, folder: Path, transforms: Sequence[str] = ()
    ) -> None:
        self.out = folder / "out.npz"
        self._log = folder / "stderr.txt"
        self._job = {
            "backend": target.backend,
            "device": target.device,
            "options": dict(target.options),
            "model": model,
            "transforms": list(transforms),
            "out": str(self.out),
            "printed": str(folder / "stdout.txt"),
        }
        # Taken once, so that every restarted process gets the same.
        # What it leaves where it is killed goes with the folder.
        own = {"PYTHONFAULTHANDLER": "1", "TMPDIR": str(folder)}
        self._environment = {**os.environ, **own}
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self) -> None:
        """Start it before it is asked."""
        self._started()

    def ask(self, request: Mapping[str, Any], timeout: float) -> Answer:
        """Send a request and wait for its answer.

        Args:
            request: ``do`` and its arguments.
            timeout: Seconds; those in which it waits for a processor do not count.

        Raises:
            Crash: the process ended.
            Timeout: it was still at it; it has been ended.
        """
        self.out.unlink(missing_ok=True)
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._crash(process) from None
        try:
            line = self._line(Allowance(process.pid, timeout))
        except queue.Empty:
            self.close()
            raise Timeout(f"no answer within {timeout:g} s", self._tail()) from None
        if not line:
            raise self._crash(process)
        answer = json.loads(line)
        return Answer(
            value=answer.get("answer"),
            error=answer.get("error"),
            printed=answer.get("printed", ""),
            changed=tuple(answer["changed"]),
        )

    def _line(self, allowed: Allowance) -> str:
        """The next line that it writes.

        Raises:
            queue.Empty: it had the time that it is allowed, and wrote none.
        """
        while True:
            try:
                return self._lines.get(timeout=max(allowed.left(), _LOOK))
            except queue.Empty:
                if not allowed.left():
                    raise

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "perfuse_conformance.runner.worker", json.dumps(self._job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # so that what it starts ends with it
                env=self._environment,
            )
        self._lines = queue.SimpleQueue()
        threading.Thread(
            target=_read, args=(self._process, self._lines), daemon=True, name="answers"
        ).start()
        return self._process

    def _crash(self, process: "subprocess.Popen[str]") -> Crash:
        try:
            status = process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it closed its end and lives on
            status = None
        self.close()
        if status is None:
            how = "the process closed its output and went on"
        elif status < 0:
            how = f"the process was ended by {signal.Signals(-status).name}"
        else:
            how = f"the process ended with status {status}"
        return Crash(how, self._tail())

    def _tail(self) -> str:
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        # faulthandler prints the stack first, then a long list of modules: leave the list out.
        lines = [line for line in text.splitlines() if not line.startswith("Extension modules:")]
        text = "\n".join(lines)
        crash = text.rfind("Fatal Python error")
        return (text[crash:][:_TAIL] if crash >= 0 else text[-_TAIL:]).strip()

    def close(self) -> None:
        """End the process and everything that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            assert process.stdin is not None
            try:
                process.stdin.close()
                process.wait(timeout=2)
            except (OSError, subprocess.TimeoutExpired):
                pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass


def _read(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str]") -> None:
    """Pass lines on; an empty line marks the end."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except (OSError, ValueError):
        pass
    lines.put("")
