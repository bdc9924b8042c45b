"""``perfuse tune``: what is tried, what is chosen, what is written."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from perfuse.cli import main
from perfuse.cli.settings import known_settings, read_settings
from perfuse.errors import ConfigError

pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("flip_evaluator")


def tune(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["tune", "--quiet", *(str(one) for one in arguments)])


@pytest.mark.exhaustive
def test_the_fastest_that_loses_little_is_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    written, plot = tmp_path / "perfuse.toml", tmp_path / "plot.svg"
    given = ("--backend", "onnxruntime", "--steps", 3, "--prompt", "a red circle", "--time", "1h")
    done = tune(*given, "--output", written, "--plot", plot, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    tried = [(one["precision"], one["threads"], one["transforms"]) for one in found["points"]]
    assert tried[0] == ("float32", None, [])
    assert any(precision == "int8" for precision, _, _ in tried)
    assert any(threads == 1 for _, threads, _ in tried)
    assert any(transforms for _, _, transforms in tried)
    good = [one for one in found["points"] if one["ssim"] >= 0.95]
    best = max(good, key=lambda one: one["speed"])
    assert {name: best[name] for name in found["chosen"]} == found["chosen"]
    settings = tomllib.loads(written.read_text("utf-8"))["pipeline"]
    assert settings.get("transforms", []) == best["transforms"]
    assert plot.stat().st_size > 1000


def test_where_time_is_short_the_first_is_chosen(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "perfuse.toml"
    given = (
        "--backend",
        "onnxruntime",
        "--steps",
        1,
        "--prompt",
        "a red circle",
        "--time",
        "0.01s",
    )
    done = tune(*given, "--output", path)
    assert done.exit_code == 0, done.output
    assert "* onnxruntime float32" in done.stdout
    settings = read_settings(tmp_path, known_settings)  # as other commands do
    assert settings == {"backend": "onnxruntime", "precision": "float32"}


def test_what_is_tried_is_what_the_engine_has() -> None:
    from perfuse.run.tuning import Point, _precisions

    tried = [one.precision for one in _precisions(Point(backend="torch:cpu"))]
    assert tried == ["float32", "float16", "bfloat16", "int8", "int8+bfloat16"]


def test_settings_may_hold_lists(tmp_path: Path) -> None:
    path = tmp_path / "perfuse.toml"
    path.write_text('[pipeline]\ntransforms = ["easycache"]\noptions = ["threads=2"]\n', "utf-8")
    settings = read_settings(tmp_path, known_settings)
    assert settings == {"transforms": ["easycache"], "options": ["threads=2"]}
    path.write_text("[pipeline]\ntransforms = [1]\n", "utf-8")
    with pytest.raises(ConfigError, match="it takes a list of texts"):
        read_settings(tmp_path, known_settings)


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
