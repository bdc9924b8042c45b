"""``--fast``, ``--faster``, ``--fastest``: transforms that were chosen by measurement."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from perfuse import DiffusionPipeline
from perfuse.cli import main
from perfuse.errors import InputError
from perfuse.run.presets import PRESETS, preset

pytest.importorskip("torch")

Make = Callable[[str], Path]


def test_each_is_there_and_fits(checkpoint: Make) -> None:
    spec = DiffusionPipeline.from_pretrained(checkpoint("words")).spec
    found = {name: preset(name, spec) for name in PRESETS}
    assert len(set(found.values())) == len(PRESETS)
    for transforms in found.values():
        pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), transforms=transforms)
        assert pipe.approximate == transforms


def test_each_was_measured() -> None:
    """The rows are those of the command; more is left out from one to the next."""
    text = files("perfuse.run").joinpath("presets.json").read_text(encoding="utf-8")
    measured = json.loads(text)
    for class_name, presets in measured["presets"].items():
        rows = {tuple(row["transforms"]): row for row in measured["measured"][class_name]["rows"]}
        chosen = [rows[tuple(presets[name])] for name in PRESETS]
        assert all(row["pictures"] == 100 for row in chosen)
        work = [sum(row["predictions"].values()) for row in chosen]
        assert all(row["speed"] > 1 for row in chosen)
        speeds = [row["speed"] for row in chosen]
        assert speeds == sorted(speeds), (speeds, work)
        assert "perfuse bench" in measured["measured"][class_name]["command"]


def test_on_the_command_line(checkpoint: Make, tmp_path: Path) -> None:
    output = tmp_path / "picture.png"
    given = ["generate", "red", "--model", str(checkpoint("words")), "--steps", "8", "--json"]
    given += ["--backend", "torch:cpu", "--seed", "0", "--output", str(output)]
    done = CliRunner().invoke(main, [*given, "--faster"])
    assert done.exit_code == 0, done.stderr
    spec = DiffusionPipeline.from_pretrained(checkpoint("words")).spec
    assert tuple(json.loads(done.stdout)["approximate"]) == preset("faster", spec)
    again = CliRunner().invoke(
        main, ["generate", "--from", str(output), "--json", "--output", str(output)]
    )
    assert json.loads(again.stdout)["approximate"] == json.loads(done.stdout)["approximate"]


def test_what_cannot_be_had(checkpoint: Make) -> None:
    spec = DiffusionPipeline.from_pretrained(checkpoint("tiny")).spec
    with pytest.raises(InputError, match="none was measured for a UNet2DModel"):
        preset("fast", spec)
    with pytest.raises(InputError, match="'slow' was asked for; there are fast"):
        preset("slow", spec)
    given = ["generate", "--model", str(checkpoint("tiny")), "--fast"]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 2
    assert "none was measured" in done.stderr
