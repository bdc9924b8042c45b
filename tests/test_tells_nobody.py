"""What is done with a local model reaches for no network, in this process or in its workers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import needs_exporter

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]

#: Runs the command lines that it is given, one after another. Python's sockets are refused, and
#: noted; those of native libraries are for strace.
WATCHED = """
import json, os, sys
def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        with open(sys.argv[1], "a") as file:
            file.write(f"{event} {arguments}" + chr(10))
        raise ConnectionError(event)
sys.addaudithook(watch)
from perfuse.cli import main
for line in json.loads(sys.argv[2]):
    try:
        main(line, standalone_mode=False)
    except SystemExit as exc:
        assert not exc.code, line
"""


def check_silent(tmp_path: Path, *lines: list[object]) -> None:
    """Run command lines; no address is looked up, none is called, and no library leaves its mark."""
    log, calls, home = tmp_path / "log", tmp_path / "calls", tmp_path / "home"
    temporary = tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    strace = shutil.which("strace")
    traced = [
        strace,
        "-f",
        "--seccomp-bpf",
        "-q",
        "-e",
        "trace=connect,sendto,sendmsg",
        "-o",
        str(calls),
    ]
    texts = json.dumps([[str(part) for part in line] for line in lines])
    done = subprocess.run(
        [*(traced if strace else []), sys.executable, "-c", WATCHED, str(log), texts],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **{name: value for name, value in os.environ.items() if "TELEMETRY" not in name},
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "TMPDIR": str(temporary),
        },
    )
    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
    if strace:
        network = [line for line in calls.read_text().splitlines() if "AF_INET" in line]
        assert not network
    assert not list(temporary.glob(".ses"))
    assert not list(home.rglob("*Microsoft*"))
    assert not list(home.rglob("*intel*"))


@pytest.mark.export
@pytest.mark.parametrize(
    ("format", "target"),
    [
        ("onnx", "onnxruntime:cpu"),
        pytest.param("openvino", "openvino:CPU", marks=pytest.mark.exhaustive),
    ],
)
def test_generate(exported: Export, tmp_path: Path, format: str, target: str) -> None:
    pytest.importorskip(target.split(":")[0])
    draw = ["--backend", target, "--steps", 1, "--output", tmp_path / "picture.png"]
    check_silent(tmp_path, ["generate", "--model", exported("tiny", format), *draw])


@pytest.mark.exhaustive
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_export(checkpoint: Make, tmp_path: Path, format: str) -> None:
    needs_exporter(format)
    given = ["--model", checkpoint("tiny"), "--to", format, "--output", tmp_path / "exported"]
    check_silent(tmp_path, ["export", *given])


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", ["torch:cpu", "onnxruntime:cpu", "openvino:CPU"])
def test_conformance(checkpoint: Make, tmp_path: Path, target: str) -> None:
    given = ["--model", checkpoint("tiny"), "--backend", target, "--level", "L1"]
    check_silent(tmp_path, ["conformance", *given])
