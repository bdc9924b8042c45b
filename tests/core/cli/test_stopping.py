"""Signals that come while a command computes, cleans up, or has forked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")

COMMAND = """
import hashlib, os, signal, sys, time
from perfuse.cli import main
from perfuse.sources.files import replacing
from perfuse.sources.store import atomic_folder
from perfuse.sources.unfinished import scratch_folder
from pathlib import Path

@main.command()
def compute():
    with atomic_folder(Path("made")) as folder, replacing("a.png"), scratch_folder() as scratch:
        (folder / "part").touch()
        (scratch / "part").touch()
        {work}

main(["compute"])
"""
#: Minutes in one call, which leaves Python's lock to others, as engines do.
NATIVE = """
        print("begun", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
CLEANS_UP = """
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            time.sleep(3)
            print("cleaned up")
"""
FORKS = """
        print("begun", flush=True)
        if not (child := os.fork()):
            try:
                time.sleep(60)
            finally:
                os._exit(7)
        time.sleep(0.5)
        os.kill(child, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        time.sleep(3)
"""


def start(work: str, folder: Path) -> subprocess.Popen[str]:
    """Run a command that has a folder, a file and a temporary folder unfinished."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.replace("{work}", work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    assert len(list(folder.iterdir())) == 3
    return process


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_engine_that_computes_is_not_waited_for(folder: Path, number: signal.Signals) -> None:
    process = start(NATIVE, folder)
    process.send_signal(number)
    began = time.monotonic()
    said = process.communicate(timeout=60)
    assert time.monotonic() - began < 30  # two seconds where nothing else runs
    assert process.returncode == 128 + number
    assert said == ("", "perfuse: interrupted; nothing half done was kept.\n")
    assert list(folder.iterdir()) == []


def test_cleaning_up_takes_as_long_as_it_takes(folder: Path) -> None:
    process = start(CLEANS_UP, folder)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "cleaned up\n")
    assert list(folder.iterdir()) == []


def test_a_signal_to_a_forked_process_is_its_own(folder: Path) -> None:
    process = start(FORKS, folder)
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "7\n"), error
