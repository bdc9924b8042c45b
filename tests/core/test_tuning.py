"""``perfuse tune``: what is tried, what is chosen, what is written."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from perfuse.arrays.metadata import read
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


#: A line of the table: the chosen one's mark, the point, seconds, speed, SSIM.
LINE = re.compile(r"([* ]) (.+?) +([\d.e+-]+) s +([\d.]+)× +SSIM ([\d.]+)")


@pytest.mark.parametrize(
    ("backends", "duration", "steps"),
    [
        (("torch:cpu",), "0.1s", 2),
        pytest.param(("onnxruntime",), "1h", 4, marks=pytest.mark.exhaustive),
        pytest.param(
            ("torch:cpu", "onnxruntime", "openvino:CPU"), "90s", 4, marks=pytest.mark.exhaustive
        ),
    ],
)
def test_what_was_found_is_drawn_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backends: tuple[str, ...],
    duration: str,
    steps: int,
) -> None:
    """The table, the plot and the settings say the same, and ``generate`` in that folder heeds them."""
    pytest.importorskip("matplotlib")
    for backend in backends:
        pytest.importorskip(backend.partition(":")[0])
    monkeypatch.chdir(tmp_path)
    targets = [part for backend in backends for part in ("--backend", backend)]
    given = (
        "--model",
        "shapes",
        "--prompt",
        "a red circle",
        "--steps",
        steps,
        "--plot",
        "plot.png",
    )
    done = tune(*targets, *given, "--time", duration)
    assert done.exit_code == 0, done.output
    rows = [match.groups() for line in done.stdout.splitlines() if (match := LINE.match(line))]
    seconds = [float(row[2]) for row in rows]
    assert seconds == sorted(seconds)
    points = {row[1]: float(row[4]) for row in rows}
    assert points[f"{backends[0]} float32"] == 1  # what the others are compared to
    (chosen,) = (row[1] for row in rows if row[0] == "*")
    assert chosen == next(name for name, ssim in points.items() if ssim >= 0.95)
    assert done.stdout.splitlines()[-1] == f"perfuse.toml: {chosen}"
    if duration == "1h":  # all of them were tried
        assert f"{backends[0]} int8" in points
        assert any("threads=" in name for name in points)
        assert len([name for name in points if "deepcache" in name]) >= 2  # presets
    with Image.open("plot.png") as plot:
        assert len(plot.convert("RGB").getcolors(1 << 24)) > 10

    settings = tomllib.loads(Path("perfuse.toml").read_text("utf-8"))["pipeline"]
    threads = settings.get("options", [])
    said = (settings["backend"], settings["precision"], *threads, *settings.get("transforms", ()))
    assert " ".join(said) == chosen
    drawing = ("generate", "a red circle", "--steps", steps, "--seed", 0, "--output", "picture.png")
    drawn = CliRunner().invoke(main, [str(one) for one in drawing])
    assert drawn.exit_code == 0, drawn.output
    found = read("picture.png")
    assert (found.model, found.backend) == ("shapes", settings["backend"])
    assert found.precision == settings["precision"]
    assert [f"{name}={value}" for name, value in found.options.items()] == threads
    assert list(found.transforms) == settings.get("transforms", [])
    again = tune(*targets, *given, "--time", "0.01s")  # its own file is replaced
    assert again.exit_code == 0, again.output
    assert read_settings(tmp_path, known_settings)["backend"] == backends[0]


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


def test_a_folder_that_is_not_there_is_said_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "perfuse.toml"
    done = tune("--model", tmp_path / "nothing", "--time", "1s", "--output", path)
    assert done.exit_code == 2
    assert f"there is no folder {path.parent}. Make it." in done.output
    assert not path.parent.exists()
