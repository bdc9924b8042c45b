"""The command line: what it prints where, its exit statuses, where options come from."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tests.distributions import Install, good

from perfuse.cli import main
from perfuse.sources.plain import from_plain

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]

COMMAND = [sys.executable, "-m", "perfuse.cli"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No perfuse.toml of the folder that the tests are run in."""
    monkeypatch.chdir(tmp_path)


def perfuse(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def ok(result: Result) -> str:
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def read_json(result: Result) -> dict[str, Any]:
    """The one JSON object that is all there is on standard output."""
    text = ok(result)
    assert text.count("\n") == 1
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def draw(checkpoint: Make, *arguments: object, **environment: str) -> Result:
    model = ("--model", checkpoint("sd1"), "--steps", 2)
    return perfuse("generate", "a red circle", *model, *arguments, **environment)


# ── generate ────────────────────────────────────────────────────────────────────────────────────


def test_generate(checkpoint: Make, tmp_path: Path) -> None:
    text = ok(draw(checkpoint, "--seed", 3, "--backend", "torch:cpu"))
    assert text == "picture.png  (seed 3)\n"
    assert Image.open(tmp_path / "picture.png").size == (16, 16)


def test_a_checkpoint_runs_on_torch_where_nothing_is_said(checkpoint: Make) -> None:
    components = read_json(draw(checkpoint, "--json"))["components"]
    assert {component["target"] for component in components.values()} == {"torch"}


def test_the_command_line_draws_what_python_draws(checkpoint: Make, tmp_path: Path) -> None:
    from perfuse import DiffusionPipeline, EulerDiscreteScheduler

    given = ("--seed", 3, "--guidance", 3, "--negative-prompt", "blue", "--height", 24)
    more = ("--guidance-rescale", 0.5, "--scheduler", "euler", "--backend", "torch:cpu")
    ok(draw(checkpoint, *given, *more))
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"), backend="torch:cpu")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = pipe(
        "a red circle",
        seed=3,
        guidance_scale=3.0,
        negative_prompt="blue",
        height=24,
        guidance_rescale=0.5,
        num_inference_steps=2,
    ).images[0]
    assert (pixels(tmp_path / "picture.png") == np.asarray(expected)).all()


def test_generate_json(checkpoint: Make, tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    found = read_json(draw(checkpoint, "--json", "--output", output, "--seed", 3))
    assert found["pictures"] == [str(output)]
    assert found["seeds"] == [3]
    assert found["prompt"] == "a red circle"
    assert found["model"] == str(checkpoint("sd1"))
    assert set(found["components"]) == {"text_encoder", "unet", "vae_decoder"}
    unet = found["components"]["unet"]
    assert (unet["device"], unet["precision"], unet["fallbacks"]) == ("cpu", "float32", [])
    assert unet["engine"].startswith("torch 2")


def test_a_seed_that_was_not_given_is_said_and_draws_the_same_again(
    checkpoint: Make, tmp_path: Path
) -> None:
    found = read_json(draw(checkpoint, "--json", "--output", "a.png"))
    ok(draw(checkpoint, "--seed", found["seeds"][0], "--output", "b.png"))
    assert (pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")).all()
    other = read_json(draw(checkpoint, "--json", "--output", "c.png"))
    assert other["seeds"] != found["seeds"]


def test_several_pictures(checkpoint: Make, tmp_path: Path) -> None:
    found = read_json(draw(checkpoint, "--json", "--num-images", 3, "--output", "x.y.png"))
    assert found["pictures"] == ["x.y-0.png", "x.y-1.png", "x.y-2.png"]
    drawn = [pixels(tmp_path / name) for name in found["pictures"]]
    assert not (drawn[0] == drawn[1]).all()
    assert not (tmp_path / "x.y.png").exists()


def test_generate_without_words(checkpoint: Make, tmp_path: Path) -> None:
    given = ("generate", "--model", checkpoint("ddpm"), "--steps", 2, "--num-images", 2)
    found = read_json(perfuse(*given, "--json"))
    assert len(found["pictures"]) == 2
    assert found["prompt"] is None


def test_precision(checkpoint: Make) -> None:
    found = read_json(draw(checkpoint, "--json", "--precision", "bfloat16"))
    assert found["components"]["unet"]["precision"] == "bfloat16"


# ── Where options come from ─────────────────────────────────────────────────────────────────────


def seeds(checkpoint: Make, *arguments: object, **environment: str) -> list[int]:
    found: list[int] = read_json(draw(checkpoint, "--json", *arguments, **environment))["seeds"]
    return found


def test_a_flag_beats_the_environment_which_beats_the_file(
    checkpoint: Make, tmp_path: Path
) -> None:
    (tmp_path / "perfuse.toml").write_text("[pipeline]\nseed = 1\n")
    assert seeds(checkpoint) == [1]
    assert seeds(checkpoint, PERFUSE_SEED="2") == [2]
    assert seeds(checkpoint, "--seed", 3, PERFUSE_SEED="2") == [3]


def test_the_file_can_say_everything(checkpoint: Make, tmp_path: Path) -> None:
    settings = {
        "model": str(checkpoint("sd1")),
        "backend": "torch:cpu",
        "precision": "float32",
        "scheduler": "euler",
        "steps": 3,
        "guidance": 2.5,
        "seed": 4,
        "height": 24,
        "width": 16,
        "num_images": 2,
        "negative_prompt": "blue",
        "offline": True,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (tmp_path / "perfuse.toml").write_text("\n".join(["[pipeline]", *lines]), "utf-8")
    found = read_json(perfuse("generate", "red", "--json"))
    assert found["seeds"] == [4]
    assert found["components"]["unet"]["target"] == "torch:cpu"
    assert [Image.open(picture).size for picture in found["pictures"]] == [(16, 24)] * 2
    assert read_json(perfuse("inspect", "--json"))["model"] == str(checkpoint("sd1"))


def test_the_environment_names_the_backend(checkpoint: Make) -> None:
    result = draw(checkpoint, PERFUSE_BACKEND="nonsense")
    assert result.exit_code == 2
    assert "'nonsense'" in result.stderr
    assert draw(checkpoint, "--backend", "torch:cpu", PERFUSE_BACKEND="nonsense").exit_code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pipeline]\nsteps = 'x'\n", "steps"),
        ("[pipeline]\nbackends = 'x'\n", "backends"),
        ("[", ""),
    ],
)
def test_a_wrong_file(checkpoint: Make, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "perfuse.toml").write_text(text)
    result = draw(checkpoint)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "perfuse.toml" in line
    assert words in line


def test_a_wrong_file_does_not_hide_the_rest(tmp_path: Path) -> None:
    (tmp_path / "perfuse.toml").write_text("[")
    assert "Usage:" in ok(perfuse("--help"))
    for command in ("generate", "export", "inspect"):
        assert "Usage:" in ok(perfuse(command, "--help"))
    ok(perfuse("backends", "--no-devices"))


# ── A wrong command line ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "red", "--stepss", "3"),
        ("generate", "red", "--steps", "three"),
        ("generate", "red", "--seed", "1.5"),
        ("generate", "red", "blue"),
        ("generate", "red", "--steps"),
        ("generat", "red"),
        ("export", "--output", "x"),
        ("export", "--to", "onnx"),
        ("cache", "lost"),
        ("doctor", "--timeout", "nan"),
        ("tune", "--quality", "nan"),
        ("--nonsense",),
    ],
)
def test_wrong_lines_end_in_2(arguments: tuple[str, ...]) -> None:
    result = perfuse(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_environment_variable_ends_in_2(checkpoint: Make) -> None:
    result = perfuse("generate", "red", "--model", checkpoint("sd1"), PERFUSE_STEPS="many")
    assert result.exit_code == 2
    assert "PERFUSE_STEPS" in result.stderr or "--steps" in result.stderr


def test_help_and_version() -> None:
    for arguments in (("--help",), ("-h",), ("generate", "-h"), ("export", "--help")):
        assert "Usage:" in ok(perfuse(*arguments))
    import perfuse as package

    assert package.__version__ in ok(perfuse("--version"))


# ── inspect, backends, cache ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "ddpm"])
def test_inspect(checkpoint: Make, kind: str) -> None:
    from perfuse import Checkpoint, PipelineSpec

    found = read_json(perfuse("inspect", "--model", checkpoint(kind), "--json"))
    spec = Checkpoint.open(checkpoint(kind)).spec
    assert found["model"] == str(checkpoint(kind))
    fields = {field.name: found[field.name] for field in dataclasses.fields(PipelineSpec)}
    assert from_plain(PipelineSpec, fields) == spec
    text = ok(perfuse("inspect", "--model", checkpoint(kind)))
    for word in (spec.class_name, *spec.components, str(spec.scheduler["_class_name"])):
        assert word in text


def test_a_model_without_its_option(checkpoint: Make) -> None:
    model = checkpoint("sd1")
    found = read_json(perfuse("inspect", model, "--json"))
    assert found == read_json(perfuse("inspect", "--model", model, "--json"))
    twice = perfuse("graphs", "add", model, "--model", checkpoint("ddpm"))
    assert twice.exit_code != 0 and "Give one model." in twice.stderr


def test_inspect_loads_no_engine_and_reads_no_weights(checkpoint: Make) -> None:
    program = (
        "import sys\nfrom perfuse.cli import main\n"
        "try: main()\nexcept SystemExit as exit: assert exit.code == 0\n"
        "assert not {'torch', 'transformers', 'onnxruntime', 'openvino'} & set(sys.modules)"
    )
    model = ("inspect", "--model", str(checkpoint("sd1")))
    subprocess.run([sys.executable, "-c", program, *model], check=True, capture_output=True)


def test_verify_is_for_exports(checkpoint: Make) -> None:
    result = perfuse("inspect", "--verify", "--model", checkpoint("sd1"))
    assert result.exit_code == 2
    assert "only exported folders record the checksums of their" in result.stderr


@pytest.mark.slow
def test_backends() -> None:
    known = {"PERFUSE_PLUGINS": "torch,onnxruntime,openvino"}
    rows = read_json(perfuse("backends", "--json", **known))["backends"]
    found = {row["backend"]: row for row in rows}
    assert {"torch", "onnxruntime", "openvino"} <= set(found)
    targets = {device["target"] for device in found["torch"]["devices"]}
    assert "torch:cpu" in targets
    text = ok(perfuse("backends", **known))
    assert all(target in text for target in targets)


def test_cache(tmp_path: Path) -> None:
    from perfuse import ArtifactStore

    environment = {"PERFUSE_CACHE": str(tmp_path / "cache")}
    assert read_json(perfuse("cache", "list", "--json", **environment))["entries"] == []

    def make(folder: Path) -> None:
        (folder / "file").write_bytes(b"x" * 1500)

    store = ArtifactStore(tmp_path / "cache" / "artifacts")
    entry = store.get_or_make("unet-onnx-float32", {}, make)
    listed = read_json(perfuse("cache", "list", "--json", **environment))
    assert listed["entries"] == [{"folder": str(entry), "bytes": 1500}]
    text = ok(perfuse("cache", "list", **environment))
    assert entry.name in text
    assert "1.5 kB" in text
    assert "1 export" in ok(perfuse("cache", "clear", **environment))
    assert not entry.exists()


# ── plugin ──────────────────────────────────────────────────────────────────────────────────────


def test_plugins_are_listed_and_switched_without_being_imported(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFUSE_CONFIG", str(tmp_path / "config"))
    install("bad", "raise AssertionError('imported')", dist="perfuse-bad")

    def state() -> str:
        rows = read_json(perfuse("plugin", "list", "--json"))["plugins"]
        (row,) = [row for row in rows if row["name"] == "bad"]
        assert (row["distribution"], row["version"]) == ("perfuse-bad", "1.2")
        return str(row["state"])

    assert state() == "enabled"
    assert not (tmp_path / "config").exists()
    assert ok(perfuse("plugin", "disable", "bad")) == "perfuse-bad:bad disabled\n"
    assert state() == "disabled"
    assert "perfuse plugin enable bad" in ok(perfuse("plugin", "list"))
    assert ok(perfuse("plugin", "enable", "perfuse_bad")) == "perfuse-bad:bad enabled\n"
    assert state() == "enabled"
    result = perfuse("plugin", "disable", "baad")
    assert result.exit_code == 2
    assert "'baad' was named; installed: " in result.stderr
    assert "perfuse-bad:bad" in result.stderr
    assert "plugin_perfuse_bad" not in sys.modules


def test_what_is_disabled_cannot_be_asked_for(
    install: Install, checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFUSE_CONFIG", str(tmp_path / "config"))
    good(install, "sound")
    ok(perfuse("plugin", "disable", "sound"))
    result = draw(checkpoint, "--backend", "sound")
    assert result.exit_code == 2
    assert "Backend 'sound' was asked for; found: " in result.stderr
    assert "sound (disabled)" in result.stderr


@pytest.mark.export
def test_a_backend_needs_no_other(exported: Export) -> None:
    """What is named runs where nothing else may be loaded."""
    pytest.importorskip("onnxruntime")
    environment = {**os.environ, "PERFUSE_PLUGINS": "onnxruntime"}
    model = ("--model", str(exported("tiny", "onnx")), "--steps", "1")
    line = [*COMMAND, "generate", *model, "--backend", "onnxruntime", "--json"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["components"]["unet"]["target"] == "onnxruntime"


# ── Commands of plugins ─────────────────────────────────────────────────────────────────────────


def test_a_command_that_a_plugin_brings(install: Install) -> None:
    code = """
import click
@click.command()
@click.option("--times", default=1)
def command(times):
    "Say moin."
    click.echo("moin " * times)
"""
    install("greet", code, group="perfuse.commands", dist="perfuse-greet")
    assert ok(perfuse("greet", "--times", 2)) == "moin moin \n"
    assert "Say moin." in ok(perfuse("greet", "--help"))
    assert perfuse("greet", "--tims", 2).exit_code == 2


BROKEN_COMMANDS = {
    "gone": ("import there_is_no_such_module", "ModuleNotFoundError"),
    "leaves": ("raise SystemExit(0)", "SystemExit: 0"),
    "nothing": ("x = 1", "no attribute 'command'"),
    "text": ("command = 'echo'", "is a str, not a click command"),
}


@pytest.mark.parametrize("name", BROKEN_COMMANDS)
def test_a_command_that_cannot_be_loaded(install: Install, name: str) -> None:
    """One line where it is asked for; nothing imported where it is not."""
    code, words = BROKEN_COMMANDS[name]
    install(name, code, group="perfuse.commands", dist=f"perfuse-{name}")
    install("generate", code, group="perfuse.commands", dist="perfuse-thief")
    shown = ok(perfuse("--help"))
    assert f"From perfuse-{name} 1.2" in shown
    assert "Draw pictures" in shown
    assert "Usage:" in ok(perfuse("generate", "--help"))
    assert f"plugin_perfuse_{name}" not in sys.modules
    result = perfuse(name)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert f"{name!r} was asked for; it is from perfuse-{name} 1.2" in line
    assert words in line


# ── export ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.export
def test_export(checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    given = ("export", "--model", checkpoint("tiny"), "--to", "onnx", "--output", "out")
    found = read_json(perfuse(*given, "--json"))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    listed = [path for path in files if path.name != "perfuse.json"]
    seconds = found.pop("seconds")
    assert seconds["total"] >= seconds["components"]["unet"]["export"] > 0
    assert found == {
        "folder": "out",
        "files": len(listed),
        "bytes": sum(path.stat().st_size for path in listed),
    }
    ok(perfuse("inspect", "--model", "out", "--verify"))
    shown = read_json(perfuse("inspect", "--model", "out", "--json"))
    assert shown["exported"]["unet"]["format"] == "onnx"
    drawn = read_json(perfuse("generate", "--model", "out", "--steps", 1, "--json"))
    assert drawn["components"]["unet"]["target"] == "onnxruntime"
    with open(tmp_path / "out" / "unet" / "model.onnx", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    result = perfuse("inspect", "--model", "out", "--verify")
    assert result.exit_code == 1
    assert "model.onnx" in result.stderr
    again = perfuse("export", "--model", "out", "--to", "onnx", "--output", "more")
    assert again.exit_code == 2
    assert "is an export already" in again.stderr
    assert not (tmp_path / "more").exists()


def test_export_does_not_write_over_other_things(checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more work")
    for name in ("mine", "file"):
        given = ("--model", checkpoint("tiny"), "--to", "onnx", "--output", name)
        result = perfuse("export", *given)
        assert result.exit_code == 2
        assert "Name a new folder" in result.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "more work"


def test_export_to_an_unknown_format(checkpoint: Make, tmp_path: Path) -> None:
    given = ("--model", checkpoint("tiny"), "--to", "onix", "--output", "out")
    result = perfuse("export", *given)
    assert result.exit_code in (1, 2)
    (line,) = result.stderr.splitlines()
    assert "'onix'" in line
    assert "onnx" in line
    assert not (tmp_path / "out").exists()


# ── Real processes ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_nothing_but_the_result_in_a_pipe(checkpoint: Make, tmp_path: Path) -> None:
    model = ("--model", str(checkpoint("sd1")), "--steps", "2", "--backend", "torch:cpu")
    done = subprocess.run(
        [*COMMAND, "generate", "red", *model, "--json"], capture_output=True, text=True, check=True
    )
    # transformers imports torchao where it is installed, as ExecuTorch has it, and that complains.
    others = ("torchao", "natively supported by torch.compile")
    said = [line for line in done.stderr.splitlines() if not any(o in line for o in others)]
    assert said == []
    assert json.loads(done.stdout)["pictures"] == ["picture.png"]


@pytest.mark.slow
def test_a_bar_on_a_terminal(checkpoint: Make, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    model = ("--model", str(checkpoint("sd1")), "--steps", "4", "--backend", "torch:cpu")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "generate", "red", *model, "--json"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["pictures"]
    assert b"Denoise" in shown
    assert b"4/4" in shown


@pytest.mark.slow
def test_a_reader_that_goes_away() -> None:
    """``perfuse … | head -0``: no traceback."""
    process = subprocess.Popen(
        [*COMMAND, "backends", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() != 0
    assert b"Traceback" not in error


def test_the_script_is_installed() -> None:
    script = Path(sys.executable).parent / "perfuse"
    if not script.exists():
        pytest.skip("the environment has no scripts")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert "perfuse" in done.stdout


def test_an_error_is_one_line_that_a_terminal_does_not_obey(tmp_path: Path) -> None:
    result = perfuse("inspect", "--model", "no\nsuch \x1b[31mfolder")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "\x1b" not in line
    assert "\\x1b[31mfolder" in line
