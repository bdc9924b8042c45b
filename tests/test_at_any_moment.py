"""SIGKILL and SIGINT at random moments: nothing stale is used, nothing half-written is left.

``FUZZ_MOMENTS`` says how often each command is hit by each signal, of which there are four and two.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.conftest import needs_exporter

from perfuse.cli import main
from perfuse.sources.artifact import Artifact

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.export,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes cannot be asked"),
]

Make = Callable[[str], Path]

_TIMES = int(os.environ.get("FUZZ_MOMENTS", "5"))
#: After so many hits the command is run undisturbed, on what these left.
_CHECKED = 5


@dataclass(frozen=True)
class Place:
    """A command line with the folders that it writes to."""

    folder: Path
    arguments: Sequence[object]
    #: What it writes, by name in the folder ``out``.
    written: frozenset[str]
    #: The time of an undisturbed run, in seconds, by whether the cache was empty.
    seconds: dict[bool, float] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def temporary(self) -> Path:
        return self.folder / "temporary"

    def fresh(self) -> None:
        """Nothing is there but what it is drawn from."""
        for folder in (self.out, self.cache):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def start(self) -> int:
        """Run it in a process of its own, with all modules there; returns its number."""
        self.temporary.mkdir(exist_ok=True)
        number = os.fork()
        if number:
            return number
        status = 70
        try:
            os.setsid()
            os.environ |= {"PERFUSE_CACHE": str(self.cache), "TMPDIR": str(self.temporary)}
            tempfile.tempdir = None
            os.chdir(self.out)
            said = os.open(self.folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            main([str(one) for one in self.arguments])
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        except KeyboardInterrupt:  # before the command line heeds it
            status = 130
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def run(self) -> None:
        """Run it undisturbed; all is there, and nothing else."""
        assert status_of(self.start()) == 0, self.said()
        self.check_whole()
        assert self.names() == self.written
        assert leftovers(self.cache) == []

    def said(self) -> str:
        return (self.folder / "said").read_text("utf-8", "replace")

    def names(self) -> frozenset[str]:
        return frozenset(path.name for path in self.out.iterdir())

    def check_whole(self) -> None:
        """What is there under its own name is whole."""
        for path in self.out.iterdir():
            if (path / "perfuse.json").is_file():
                artifact = Artifact.open(path)
                artifact.manifest.verify(path)
            elif path.suffix == ".png":
                assert path.read_bytes()[-8:-4] == b"IEND"


def status_of(number: int) -> int:
    _, ended = os.waitpid(number, 0)
    return os.waitstatus_to_exitcode(ended)


def leftovers(folder: Path) -> list[str]:
    """What unfinished work is called."""
    return [path.name for path in folder.rglob("*") if ".partial" in path.name]


def check_nobody_is_left(place: Place) -> None:
    """No process that it started runs on."""
    mark, until = f"TMPDIR={place.temporary}".encode(), time.monotonic() + 30
    while True:
        alive = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended
                variables = environment.read_bytes().split(b"\0")
                if any(one.startswith(mark) for one in variables):
                    alive.append(environment.parent.name)
        if not alive:
            return
        assert time.monotonic() < until, alive
        time.sleep(0.1)


def place_of(command: str, folder: Path, model: Path) -> Place:
    given: dict[str, tuple[Sequence[object], set[str]]] = {
        "generate": (
            ("generate", "--model", model, "--backend", "onnxruntime:cpu", "--steps", 2)
            + ("--num-images", 2, "--seed", 4, "--no-metadata", "--output", "a.png"),
            {"a-0.png", "a-1.png"},
        ),
        "export": (("export", "--model", model, "--to", "onnx", "--output", "made"), {"made"}),
        "graphs": (("graphs", "add", "--model", model, "--to", "onnx"), set()),
        "conformance": (
            ("conformance", "--model", model, "--backend", "torch:cpu", "--level", "L1")
            + ("--report", "report"),
            {"report"},
        ),
    }
    arguments, written = given[command]
    return Place(folder, arguments, frozenset(written))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda one: one.name)
@pytest.mark.parametrize("command", ["generate", "export", "graphs", "conformance"])
def test_a_signal(checkpoint: Make, tmp_path: Path, command: str, number: signal.Signals) -> None:
    needs_exporter("onnx")
    pytest.importorskip("onnxruntime")
    place = place_of(command, tmp_path, checkpoint("tiny"))
    for empty in (True, False):
        if empty:
            place.fresh()
        began = time.monotonic()
        place.run()
        place.seconds[empty] = time.monotonic() - began
    pictures = {path.name: path.read_bytes() for path in place.out.glob("*.png")}
    moments = random.Random(f"{command} {number}")
    hits = 0
    while hits < _TIMES:
        if empty := moments.random() < 0.7:
            place.fresh()
        before = place.names()
        process = place.start()
        time.sleep(moments.uniform(0, place.seconds[empty]))
        os.kill(process, number)
        status = status_of(process)
        check_nobody_is_left(place)
        place.check_whole()
        if status != 0:  # else it was done before
            hits += 1
        if number == signal.SIGINT:
            assert status in (0, 130), place.said()
            assert place.names() - before in (frozenset(), place.written), place.said()
            assert leftovers(tmp_path) == []
            assert {path.name.partition("_")[0] for path in place.temporary.iterdir()} <= {
                "torchinductor"
            }
            assert "Traceback" not in place.said()
        else:
            assert status in (0, -signal.SIGKILL), place.said()
            new = place.names() - before
            assert all(".partial" in name for name in new) or place.written <= place.names()
            shutil.rmtree(place.temporary)
        if status != 0 and hits % _CHECKED == 0:
            place.run()
            assert pictures == {path.name: path.read_bytes() for path in place.out.glob("*.png")}
