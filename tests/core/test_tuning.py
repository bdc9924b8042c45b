"""``perfuse tune``: what is tried, what is chosen, what is written."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from perfuse.cli import main
from perfuse.cli.settings import known_settings, read_settings

pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("flip_evaluator")

Make = Callable[[str], Path]


def tune(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["tune", "--quiet", *(str(one) for one in arguments)])


def test_the_fastest_that_loses_little_is_written(checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    written, plot = tmp_path / "perfuse.toml", tmp_path / "plot.svg"
    given = ("--model", checkpoint("words"), "--steps", 2, "--prompt", "red", "--time", "1h")
    asked = ("--backend", "onnxruntime", "--output", written, "--plot", plot, "--json")
    done = tune(*given, *asked)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    names = [(one["precision"], one["threads"], one["transforms"]) for one in found["points"]]
    assert names[0] == ("float32", None, [])
    assert any(precision == "int8" for precision, _, _ in names)
    assert any(threads == 1 for _, threads, _ in names)
    good = [one for one in found["points"] if one["ssim"] >= 0.95]
    best = max(good, key=lambda one: one["speed"])
    chosen = {name: best[name] for name in found["chosen"]}
    assert chosen == found["chosen"]
    # What is written is what the commands read.
    settings = tomllib.loads(written.read_text("utf-8"))["pipeline"]
    assert settings == read_settings(tmp_path, known_settings)
    assert (settings["backend"], settings["precision"]) == (best["backend"], best["precision"])
    assert settings.get("transforms", []) == best["transforms"]
    assert plot.stat().st_size > 1000
    again = tune(*given[:-1], "1s", "--backend", "onnxruntime", "--output", written)
    assert again.exit_code == 0, again.output
    assert "* onnxruntime float32" in again.stdout


@pytest.mark.parametrize("given", [(), ("--time", "0m"), ("--time", "soon"), ("--time", "-5m")])
def test_tune_without_time(given: tuple[str, ...]) -> None:
    done = tune(*given)
    assert done.exit_code == 2, done.output
    assert "say how long to look: 90s, 5m or 1h." in done.output


def test_what_others_wrote_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "perfuse.toml"
    path.write_text("[pipeline]\n", "utf-8")
    done = tune("--time", "1s", "--output", path)
    assert done.exit_code == 2
    assert "it is there, and not of perfuse tune" in done.output
