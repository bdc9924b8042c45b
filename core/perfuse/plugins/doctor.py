"""Looks at every plugin and every backend from outside: what hangs or dies is a row.

Nothing here imports a plugin; ``perfuse.plugins.probe`` does, in processes with a time limit.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from perfuse.errors import BackendNotFoundError, PluginError
from perfuse.plugins.disabled import key
from perfuse.plugins.installed import PluginRow, allowed_plugins, survey

__all__ = ["TIMEOUT", "examine"]

#: Seconds that a process may take. Engines are large, and a disk may be cold.
TIMEOUT = 60.0
#: As many engines as are loaded at the same time; each may take some hundred megabytes.
_AT_ONCE = 4
#: Lines of a process's output that are kept where it fails.
_KEPT = 12


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """What a process left behind."""

    #: ``None`` where it ended before it had one.
    answer: dict[str, Any] | None
    #: The last step that it began: ``{"step": …}``.
    last: Mapping[str, Any]
    #: Why it is to be called crashed; ``None`` where it ended as it should.
    crash: str | None
    seconds: float
    #: The last lines of what it printed, on either stream.
    output: list[str]


@dataclass
class _Children:
    """Processes that run now: to be ended with this one."""

    running: set["subprocess.Popen[bytes]"] = field(default_factory=set)

    def run(
        self, request: Mapping[str, Any], *, timeout: float, plugin: str | None = None
    ) -> _Ended:
        """Answer a request in a process of its own.

        Args:
            request: What ``perfuse.plugins.probe`` takes.
            timeout: Seconds after which it is ended.
            plugin: The key of the one to import; those that are allowed by default.
        """
        with tempfile.TemporaryDirectory() as folder:
            answer, output = Path(folder) / "answer", Path(folder) / "output"
            answer.touch()
            began = time.monotonic()
            with open(output, "wb") as stream:
                process = subprocess.Popen(
                    _command(answer, request),
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=_environment(plugin),
                    start_new_session=True,  # so that what it starts ends with it
                )
            self.running.add(process)
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
            return _Ended(
                answer=answers[0] if answers else None,
                last=next((line for line in reversed(lines) if "step" in line), {}),
                crash=crash,
                seconds=round(seconds, 2),
                output=_tail(output),
            )

    def end(self) -> None:
        """End them all."""
        for process in list(self.running):
            _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process, and where the system has process groups also those that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
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
    for line in answer.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _tail(output: Path) -> list[str]:
    with open(output, "rb") as stream:
        stream.seek(max(0, output.stat().st_size - 4000))
        return stream.read().decode("utf-8", "replace").splitlines()[-_KEPT:]


def examine(
    *,
    names: Collection[str] = (),
    timeout: float = TIMEOUT,
    thorough: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Every plugin and every backend, each backend asked in a process of its own.

    Args:
        names: Backends to ask; all of them by default.
        timeout: Seconds that a process may take.
        thorough: Whether to ask what the backends support, and to keep what they print.

    Returns:
        ``plugins`` and ``backends``, rows of plain data. A plugin that cannot be used is among the
        backends too.

    Raises:
        BackendNotFoundError: a name is none.
        ConfigError: the file that says what is disabled is damaged.
    """
    children = _Children()
    found = _survey(children, timeout)
    rows = found["backends"]
    if unknown := sorted(set(names) - {row["backend"] for row in rows}):
        raise BackendNotFoundError(
            f"Backend {unknown[0]!r} was asked for; found: "
            f"{', '.join(row['backend'] for row in rows) or 'none'}."
        )
    if names:
        rows = [row for row in rows if row["backend"] in names]

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        return _asked(children, row, timeout, thorough) if row["state"] == "available" else row

    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        try:
            return {"plugins": found["plugins"], "backends": list(pool.map(ask, rows))}
        except BaseException:
            children.end()  # the pool waits for them
            raise


def _survey(children: _Children, timeout: float) -> dict[str, list[dict[str, Any]]]:
    """What is installed, without the plugins that take a process down, which get a row."""
    known = {row.name: row for _, row in reversed(survey(allowed_plugins()))}
    crashed: dict[str, PluginRow] = {}
    while True:
        ended = children.run({"without": list(crashed)}, timeout=timeout)
        if ended.answer is not None:
            found = ended.answer
            found["plugins"] += [asdict(row) for row in crashed.values()]
            found["backends"] += [row.as_backend() for row in crashed.values()]
            return {"plugins": found["plugins"], "backends": found["backends"]}
        name = ended.last.get("plugin")
        if name not in known or name in crashed:
            raise PluginError(
                "The plugins were to be listed in a process of their own, which failed before it "
                f"came to them ({ended.crash}): {' '.join(ended.output[-1:])}"
            )
        crashed[name] = replace(
            known[name],
            state="crashed",
            reason=f"{ended.crash}, while {ended.last['step']}",
            remedy=f"perfuse plugin disable {name}, then update or uninstall "
            f"{known[name].distribution}",
        )


def _asked(
    children: _Children, row: dict[str, Any], timeout: float, thorough: bool
) -> dict[str, Any]:
    """The row of a backend with what it answered."""
    request = {"backend": row["backend"], "thorough": thorough}
    ended = children.run(request, timeout=timeout, plugin=key(row["distribution"], row["plugin"]))
    row = {**row, **(ended.answer or {}), "seconds": ended.seconds}
    if ended.crash is not None:
        step = ended.last.get("step", "starting")
        row |= {"state": "crashed", "reason": f"{ended.crash}, while {step}"}
    if row["state"] in ("broken", "crashed"):
        row["remedy"] = (
            f"reinstall its engine or {row['distribution']}, or: perfuse plugin disable "
            f"{row['plugin']}"
        )
        if thorough:
            row["output"] = ended.output
    elif row["state"] == "unavailable":
        row["remedy"] = "install the device's driver, or choose another backend"
    return row
