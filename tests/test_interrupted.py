"""Exports that a full disk, a SIGKILL or a second process gets in the way of.

The moments are exact: an audit hook in the child kills it at a given operation of the system.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import needs_exporter

from perfuse.sources.artifact import Artifact

pytestmark = pytest.mark.export

Make = Callable[[str], Path]

COMMAND = [sys.executable, "-m", "perfuse.cli"]

#: The command line, which notes every file that it opens to write, and dies at one of them.
WATCHED = """
import os, signal, sys
log, moment = sys.argv.pop(1), sys.argv.pop(1)

def watch(event, arguments):
    what = None
    if event == "open" and "w" in str(arguments[1]) and not isinstance(arguments[0], int):
        what = f"write {os.fspath(arguments[0])}"
    elif event == "os.rename":
        what = f"rename {os.fspath(arguments[0])}"
    if what is not None and (".partial-" in what or what.endswith(".png")):
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w") as file:
            file.write(what + chr(10))
        if moment and what.split()[0] == moment.split()[0] and what.endswith(moment.split()[1]):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
from perfuse.cli import main
main()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PERFUSE_CACHE", str(folder))
    return folder


def start(
    *arguments: object, log: Path | None = None, moment: str = "", limit: int | None = None
) -> subprocess.Popen[str]:
    """Run the command line: watched, killed at a moment, or on a disk where files end early."""

    def keep_small() -> None:
        assert limit is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = COMMAND if log is None else [sys.executable, "-c", WATCHED, str(log), moment]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Bytecode that ends early would stay, for the next process to fail on.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"} if limit is not None else None,
        preexec_fn=keep_small if limit is not None else None,  # noqa: PLW1509 - no threads here
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """Its standard error, once it has ended with the status."""
    _, error = process.communicate(timeout=300)
    assert process.returncode == status, error
    return error


def names(folder: Path) -> set[str]:
    """Everything in a folder but the locks, which are empty files."""
    locks = {path for path in folder.glob(".*.lock") if path.stat().st_size == 0}
    return {path.name for path in folder.iterdir() if path not in locks}


def check_artifact(folder: Path) -> None:
    artifact = Artifact.open(folder)
    artifact.manifest.verify(folder)


# ── A full disk ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.exhaustive)])
def test_export_on_a_full_disk(checkpoint: Make, tmp_path: Path, cache: Path, format: str) -> None:
    needs_exporter(format)
    folder = tmp_path / "out" / "exported"
    given = ("export", "--model", checkpoint("tiny"), "--to", format, "--output", folder)
    error = finish(start(*given, limit=2000), 1)
    assert len(error.splitlines()) == 1
    assert str(folder) in error or "unet" in error
    assert "space" in error
    assert names(folder.parent) == set()


def test_picture_on_a_full_disk(checkpoint: Make, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    Image.new("L", (4, 4)).save(folder / "picture.png")
    earlier = (folder / "picture.png").read_bytes()
    model = ("--model", checkpoint("tiny"), "--backend", "torch:cpu", "--steps", 1)
    error = finish(start("generate", *model, "--output", folder / "picture.png", limit=60), 1)
    assert len(error.splitlines()) == 1
    assert "picture.png" in error
    assert names(folder) == {"picture.png"}
    assert (folder / "picture.png").read_bytes() == earlier


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.exhaustive)])
def test_a_set_of_graphs_on_a_full_disk(
    checkpoint: Make, tmp_path: Path, cache: Path, format: str
) -> None:
    needs_exporter(format)
    given = ("graphs", "add", "--model", checkpoint("tiny"), "--to", format)
    error = finish(start(*given, limit=2000), 1)
    assert len(error.splitlines()) == 1
    assert "was to be" in error and "space" in error
    assert not any(path.is_file() for path in (cache / "graphs").rglob("*"))


def test_a_golden_bundle_on_a_full_disk(checkpoint: Make, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "out" / "golden"
    given = ("record", "--model", checkpoint("tiny"), "--level", "L1", "--output", folder)
    error = finish(start("conformance", *given, limit=2000), 1)
    assert len(error.splitlines()) == 1
    assert str(folder) in error and "space" in error
    assert names(folder.parent) == set()


def test_a_model_on_a_full_disk(tmp_path: Path) -> None:
    code = f"""
import resource
from perfuse.errors import CheckpointError
from perfuse.models import UNet2DModel
from perfuse_conformance.checkpoints import ddpm_config
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    UNet2DModel(**ddpm_config()).save_pretrained({str(tmp_path / "unet")!r})
except CheckpointError as exc:
    print(exc)
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout and "large" in done.stdout
    assert list((tmp_path / "unet").iterdir()) == []


# ── A killed process ────────────────────────────────────────────────────────────────────────────


def test_export_that_is_killed(checkpoint: Make, tmp_path: Path, cache: Path) -> None:
    """The next one starts anew and cleans up; up to the last moment an earlier one is there."""
    needs_exporter("onnx")
    folder, log, last = tmp_path / "out" / "exported", tmp_path / "log", "write perfuse.json"
    given = ("export", "--model", checkpoint("tiny"), "--to", "onnx", "--output", folder)
    finish(start(*given, log=log, moment=last), -signal.SIGKILL)
    assert not folder.exists()
    (left,) = names(folder.parent)
    assert left.startswith(".partial-exported-")
    finish(start(*given))
    assert names(folder.parent) == {"exported"}
    check_artifact(folder)
    before = (folder / "perfuse.json").stat().st_mtime_ns
    finish(start(*given, log=log, moment=last), -signal.SIGKILL)
    check_artifact(folder)
    assert (folder / "perfuse.json").stat().st_mtime_ns == before


def test_export_on_the_way_that_is_interrupted(
    checkpoint: Make, tmp_path: Path, cache: Path
) -> None:
    """First the disk is full, then the process is killed, then the same command works."""
    needs_exporter("onnx")
    pytest.importorskip("onnxruntime")
    picture, store = tmp_path / "picture.png", cache / "artifacts"
    given = ("generate", "--model", checkpoint("tiny"), "--steps", 1, "--output", picture)
    engine = ("--backend", "onnxruntime:cpu")

    error = finish(start(*given, *engine, limit=2000), 1)
    assert len(error.splitlines()) == 1
    assert not picture.exists()
    assert names(store) == set()

    killed = start(*given, *engine, log=tmp_path / "log", moment="write main-file.json")
    finish(killed, -signal.SIGKILL)
    assert not picture.exists()
    assert all(name.startswith(".partial-") for name in names(store))
    listed = subprocess.run(
        [*COMMAND, "cache", "list", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(listed.stdout)["entries"] == []

    finish(start(*given, *engine))
    assert Image.open(picture).size == (8, 8)
    (entry,) = names(store)
    assert entry.startswith("unet-onnx-graph-float32-")


# ── Two processes ───────────────────────────────────────────────────────────────────────────────


def test_two_processes_that_want_the_same_export(
    checkpoint: Make, tmp_path: Path, cache: Path
) -> None:
    """Both draw the same picture, one of them exports, and a third finds it made."""
    needs_exporter("onnx")
    pytest.importorskip("onnxruntime")
    log = tmp_path / "log"
    given = ("generate", "--model", checkpoint("tiny"), "--steps", 2, "--seed", 4)
    engine = ("--backend", "onnxruntime:cpu")
    pictures = [tmp_path / f"{i}.png" for i in range(3)]
    both = [start(*given, *engine, "--output", p, log=log) for p in pictures[:2]]
    for process in both:
        finish(process)
    finish(start(*given, *engine, "--output", pictures[2], log=log))
    lines = log.read_text("utf-8").splitlines()
    assert len([line for line in lines if line.endswith("model.onnx")]) == 1
    assert len([line for line in lines if "main-file.json" in line]) == 1
    first, second, third = (np.asarray(Image.open(picture)) for picture in pictures)
    assert (first == second).all()
    assert (first == third).all()
    assert len(names(cache / "artifacts")) == 1
