"""Bad input, full disks, killed processes: one sentence, the right status, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tests.conftest import needs_exporter

from perfuse.cli import main
from perfuse_conformance.checkpoints import edit_json, write_json

Make = Callable[[str], Path]

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def perfuse(*arguments: object) -> Result:
    """The command line in this process, on torch where no argument names another backend."""
    environment = {"PERFUSE_BACKEND": "torch:cpu"}
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def check_refusal(result: Result, status: int, *words: str) -> None:
    """One line on standard error that holds the words; nothing on standard output."""
    assert result.exit_code == status, (result.stderr, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("perfuse: ")
    for word in words:
        assert word in lines[0], "".join(traceback.format_exception(result.exception))
    assert lines[0].rstrip().endswith((".", "?", ")", "'")) or "Run:" in lines[0], lines[0]


def check_generate(
    status: int, words: tuple[str, ...], tmp_path: Path, *arguments: object, prompt: str = "red"
) -> None:
    """The refusal, and no picture, not even the beginning of one."""
    output = tmp_path / "out" / "picture.png"
    output.parent.mkdir()
    prompts = [prompt] if prompt else []
    result = perfuse("generate", *prompts, "--output", output, "--steps", 2, *arguments)
    check_refusal(result, status, *words)
    assert listing(output.parent) == set()


# ── Backends and devices ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        ("openvin", 2, ("'openvin'", "torch", "perfuse backends")),
        ("torch:warp9", 1, ("'warp9'", "cpu")),
        ("torch:cpu:7", 1, ("cpu:7",)),
        ("onnxruntime:warp9", 1, ("warp9", "cpu")),
        ("openvino:WARP9", 1, ("WARP9", "CPU")),
        (":cpu", 2, ("BACKEND[:DEVICE]",)),
        ("torch:", 2, ("BACKEND[:DEVICE]",)),
        ("", 2, ("BACKEND[:DEVICE]",)),
        ("unett=torch,torch:cpu", 2, ("unett", "text_encoder, unet")),
        ("unet=openvin,torch:cpu", 2, ("'openvin'",)),
    ],
)
def test_target(
    checkpoint: Make, tmp_path: Path, target: str, status: int, words: tuple[str, ...]
) -> None:
    if target.startswith(("onnxruntime", "openvino:")):
        pytest.importorskip(target.split(":")[0])
    check_generate(status, words, tmp_path, "--model", checkpoint("sd1"), "--backend", target)


#: Run by every interpreter that starts with its folder in the path, those of ``perfuse doctor`` too.
HIDE = """
import importlib.util, os, sys
hidden = set(os.environ["HIDDEN"].split(","))
class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hider())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] in hidden else find(name, *a)
"""


def without(modules: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in an environment that does not have these modules."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(HIDE, "utf-8")
        return subprocess.run(
            [sys.executable, "-m", "perfuse.cli", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": folder, "HIDDEN": modules},
        )


@pytest.mark.parametrize(
    ("hidden", "arguments", "extra"),
    [
        ("torch", ("graphs", "add"), "export"),
        ("jsonschema,junitparser", ("conformance", "--backend", "torch"), "conformance"),
        ("skimage", ("bench",), "bench"),
        ("torch", ("calibrate", "--precision", "w8a8", "--output", "new.json"), "torch"),
    ],
)
def test_what_is_not_installed(hidden: str, arguments: tuple[str, ...], extra: str) -> None:
    done = without(hidden, *arguments)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("perfuse: ") and line.endswith(f"pip install 'perfuse[{extra}]'")


@pytest.mark.parametrize("seconds", ["nan", "0", "-1"])
def test_a_case_of_no_time(seconds: str) -> None:
    given = ("conformance", "--backend", "torch", "--timeout", seconds)
    check_refusal(perfuse(*given), 2, f"--timeout {seconds} was given")


@pytest.mark.parametrize("group", ["cache", "graphs", "plugin"])
def test_a_command_of_commands_shows_them(group: str) -> None:
    done = perfuse(group)
    assert done.exit_code == 2
    assert "Commands:\n" in done.stderr and "Error" not in done.stderr


def test_nobody_reads() -> None:
    """As with ``perfuse inspect | head -0``."""
    command = [sys.executable, "-m", "perfuse.cli", "inspect"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_engine_that_is_not_installed(checkpoint: Make, tmp_path: Path, engine: str) -> None:
    output = tmp_path / "picture.png"
    model = ("--model", checkpoint("sd1"), "--backend", engine, "--output", output)
    done = without(engine, "generate", "red", *model)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"pip install 'perfuse[{engine}]'" in line
    assert not output.exists()


def test_backends_lists_engines_that_are_not_installed() -> None:
    done = without("openvino,torch", "backends", "--json")
    assert done.returncode == 0
    rows = {row["backend"]: row for row in json.loads(done.stdout)["backends"]}
    for engine in ("openvino", "torch"):
        assert rows[engine]["state"] == "not installed"
        assert f"perfuse[{engine}]" in rows[engine]["remedy"]


def test_exporter_whose_tools_are_not_installed(checkpoint: Make, tmp_path: Path) -> None:
    given = ("export", "--model", checkpoint("ddpm"), "--output", tmp_path / "a", "--to", "onnx")
    done = without("onnxscript", *given)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "onnxscript" in line
    assert "pip install 'perfuse[export]'" in line
    assert listing(tmp_path) == set()


# ── The checkpoint ──────────────────────────────────────────────────────────────────────────────


def test_model_that_is_not_there(tmp_path: Path) -> None:
    check_generate(1, (str(tmp_path / "no"),), tmp_path, "--model", tmp_path / "no")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ("model_index.json", "nothing")
    check_generate(1, words, tmp_path, "--model", tmp_path / "empty")


def test_folder_without_an_index(copy_of: Make, tmp_path: Path) -> None:
    folder = copy_of("sd1")
    (folder / "model_index.json").unlink()
    check_generate(1, ("model_index.json", "unet"), tmp_path, "--model", folder)


def test_one_component_instead_of_a_pipeline(checkpoint: Make, tmp_path: Path) -> None:
    words = ("UNet2DConditionModel", "model_index.json")
    check_generate(1, words, tmp_path, "--model", checkpoint("sd1") / "unet")


def test_file_instead_of_a_folder(checkpoint: Make, tmp_path: Path) -> None:
    check_generate(
        1,
        ("in Diffusers' layout", "name the folder"),
        tmp_path,
        "--model",
        checkpoint("sd1") / UNET,
    )


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("text", ["", '{"a": 1', "[1, 2]", "\x00\xff"])
def test_json(copy_of: Make, tmp_path: Path, name: str, text: str) -> None:
    folder = copy_of("sd1")
    (folder / name).write_text(text, encoding="latin-1")
    check_generate(1, (name.split("/")[-1],), tmp_path, "--model", folder)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("model_index.json", {"unet": "UNet2DConditionModel"}),
        ("unet/config.json", {"sample_size": "large"}),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"]}),
        ("vae/config.json", {"latent_channels": -4}),
        ("text_encoder/config.json", {"hidden_size": "wide"}),
        ("text_encoder/config.json", {"num_hidden_layers": 1000}),
        ("unet/config.json", {"transformer_layers_per_block": [1, [10**9]]}),
        ("scheduler/scheduler_config.json", {"beta_schedule": 3}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
    ],
)
def test_value_in_json(copy_of: Make, tmp_path: Path, name: str, field: dict[str, Any]) -> None:
    folder = copy_of("sd1")
    edit_json(folder / name, **field)
    check_generate(1, (name.split("/")[-1], *field), tmp_path, "--model", folder)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("model_index.json", {"_class_name": "SpacePipeline"}),
        ("model_index.json", {"_class_name": ...}),
        ("model_index.json", {"unet": ["diffusers", "SpaceNet"]}),
        ("model_index.json", {"scheduler": ["diffusers", "SpaceScheduler"]}),
        ("unet/config.json", {"_class_name": "SpaceNet"}),
        ("unet/config.json", {"down_block_types": ["SpaceBlock", "DownBlock2D"]}),
    ],
)
def test_class_that_nobody_knows(
    copy_of: Make, tmp_path: Path, name: str, field: dict[str, Any]
) -> None:
    folder = copy_of("sd1")
    edit_json(folder / name, **field)
    word = "Space" if "Space" in str(field) else "None"
    check_generate(1, (word,), tmp_path, "--model", folder)


def test_component_that_is_missing(copy_of: Make, tmp_path: Path) -> None:
    folder = copy_of("sd1")
    shutil.rmtree(folder / "text_encoder")
    check_generate(1, ("text_encoder", "incomplete"), tmp_path, "--model", folder)


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def damage_header(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(20)
        file.write(b"\xff\xfe{{{")


def damage_length(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"\xff" * 8)


def damage_empty(path: Path) -> None:
    os.truncate(path, 0)


def damage_gone(path: Path) -> None:
    path.unlink()


def damage_pickle(path: Path) -> None:
    path.rename(path.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (damage_cut, "header describes"),
        (damage_header, "header"),
        (damage_length, "header"),
        (damage_empty, "at least 8 bytes"),
        (damage_gone, "no weights"),
        (damage_pickle, "run code"),
    ],
)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights(
    copy_of: Make, tmp_path: Path, part: str, damage: Callable[[Path], None], word: str
) -> None:
    folder = copy_of("sd1")
    (path,) = (folder / part).glob("*.safetensors")
    damage(path)
    check_generate(1, (word, part), tmp_path, "--model", folder)


def shard(folder: Path) -> tuple[Path, Path]:
    """Put the UNet's weights into two files; return these."""
    from safetensors.numpy import load_file, save_file

    whole = folder / UNET
    tensors = load_file(whole)
    names = sorted(tensors)
    files = [whole.with_name(f"{whole.stem}-{i:05}-of-00002.safetensors") for i in (1, 2)]
    parts = (names[: len(names) // 2], names[len(names) // 2 :])
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, file, metadata={"format": "pt"})
    placed = {name: f.name for f, part in zip(files, parts, strict=True) for name in part}
    index = whole.with_name(whole.name + ".index.json")
    write_json(index, {"metadata": {"total_size": 1}, "weight_map": placed})
    whole.unlink()
    return files[0], files[1]


def test_missing_shard(copy_of: Make, tmp_path: Path) -> None:
    folder = copy_of("sd1")
    shard(folder)[1].unlink()
    words = ("00002-of-00002", "Download")
    check_generate(1, words, tmp_path, "--model", folder)


def test_shard_outside_of_the_folder(copy_of: Make, tmp_path: Path) -> None:
    folder = copy_of("sd1")
    files = shard(folder)
    index = folder / (UNET + ".index.json")
    text = index.read_text("utf-8")
    shutil.move(files[1], folder / "outside.safetensors")
    index.write_text(text.replace(files[1].name, "../outside.safetensors"), "utf-8")
    check_generate(1, ("../outside.safetensors",), tmp_path, "--model", folder)


@pytest.mark.parametrize(
    "name", ["unet", "unet/config.json", UNET, "tokenizer/vocab.json", "model_index.json"]
)
def test_link_out_of_the_folder(copy_of: Make, tmp_path: Path, name: str) -> None:
    folder = copy_of("sd1")
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    check_generate(1, ("outside",), tmp_path, "--model", folder)


def test_component_named_as_a_path(copy_of: Make, tmp_path: Path) -> None:
    folder = copy_of("sd1")
    edit_json(folder / "model_index.json", **{"../unet": ["diffusers", "UNet2DConditionModel"]})
    check_generate(1, ("'../unet'",), tmp_path, "--model", folder)


def test_a_pipe_is_no_file(copy_of: Make, tmp_path: Path) -> None:
    """Reading one would wait for ever."""
    folder = copy_of("sd1")
    for name in ("unet/config.json", "tokenizer/vocab.json", UNET):
        (folder / name).rename(tmp_path / "kept")
        os.mkfifo(folder / name)
        result = perfuse("generate", "red", "--model", folder, "--output", tmp_path / "a.png")
        check_refusal(result, 1, name.split("/")[-1], "pipe")
        (folder / name).unlink()
        (tmp_path / "kept").rename(folder / name)


@pytest.mark.parametrize("flag", ["--image", "--from"])
def test_a_pipe_is_no_picture(checkpoint: Make, tmp_path: Path, flag: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    given = ("--model", checkpoint("sd1"), flag, tmp_path / "pipe")
    check_generate(2, ("it is a pipe",), tmp_path, *given)


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 2500 + "z"])
@pytest.mark.parametrize("flag", ["--model", "--image", "--lora", "--embedding", "--output"])
def test_names_that_no_file_has(checkpoint: Make, tmp_path: Path, flag: str, name: str) -> None:
    given = ("--model", checkpoint("sd1"), flag, name)
    result = perfuse("generate", "red", *given)
    check_refusal(result, 2, "no file can have that name")
    assert len(result.stderr) < 1000


def test_a_working_folder_that_is_gone(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    model = ("--model", checkpoint("tiny"))
    given = ("--steps", 1, "--output", tmp_path / "a.png")
    check_refusal(perfuse("inspect", *model), 1, "working folder")
    check_refusal(perfuse("generate", *model, *given), 1, "working folder")
    check_refusal(perfuse("export", *model, "--to", "onnx", "--output", "new"), 1, "working folder")
    assert listing(tmp_path) == set()


def test_a_cache_that_cannot_be_written(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary one is used, and said."""
    needs_exporter("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "file").touch()
    monkeypatch.setenv("PERFUSE_CACHE", str(tmp_path / "file" / "cache"))
    given = ("--model", checkpoint("tiny"), "--backend", "onnxruntime:cpu", "--steps", 1)
    result = perfuse("generate", *given, "--output", tmp_path / "a.png")
    assert result.exit_code == 0, result.stderr
    assert "cannot be written; a temporary one is used" in result.stderr


def test_a_terminal_of_ascii_alone(copy_of: Make, tmp_path: Path) -> None:
    model = copy_of("tiny").rename(tmp_path / "größe")
    done = subprocess.run(
        [sys.executable, "-m", "perfuse.cli", "inspect", "--model", str(model)],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"gr?" in done.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "moment", ["cli.generate._Generate.parse_args", "cli.main.make_context", "cli.main.invoke"]
)
def test_signals_end_a_command(moment: str, number: signal.Signals, status: int) -> None:
    """The signal comes while an option is read, or before any command is known."""
    code = f"""
import os
import perfuse.cli.generate
from perfuse.cli import main
perfuse.{moment} = lambda *_, **__: os.kill(os.getpid(), {int(number)}) or __import__('time').sleep(9)
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "generate"], check=False, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    # Outside a command click ends the line that a terminal shows ^C in.
    assert done.stderr.lstrip("\n") == "perfuse: interrupted; nothing half done was kept.\n"


# ── What is asked for ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", 0), ("steps", "0")),
        (("--steps", -3), ("-3",)),
        (("--steps", 5000), ("5000", "1000")),
        (("--height", 15), ("height 15", "14 or 16")),
        (("--width", 0), ("width 0",)),
        (("--height", -8), ("height -8",)),
        (("--num-images", 0), ("0",)),
        (("--num-images", -1), ("-1",)),
        (("--precision", "float12"), ("float12", "float16")),
        (("--scheduler", "magic"), ("'magic'", "ddim")),
        (("--seed", 2**70), (str(2**70),)),
        (("--option", "compile"), ("'compile'", "NAME=VALUE")),
        (("--option", "magic=true"), ("magic", "compile")),
        (("--option", "compile=maybe"), ("maybe", "true")),
        (("--guidance", "nan"), ("nan",)),
        (("--guidance-rescale", 3), ("3",)),
    ],
)
def test_settings(
    checkpoint: Make, tmp_path: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    model = ("--model", checkpoint("sd1"))
    check_generate(2, words, tmp_path, *model, *arguments)


def test_height_that_the_model_cannot_take(copy_of: Make, tmp_path: Path) -> None:
    """Said from the configuration alone: weights that do not fit it are not looked at."""
    folder = copy_of("sd1")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "block_out_channels": [8] * 4}
    edit_json(folder / "vae/config.json", up_block_types=["UpDecoderBlock2D"] * 4, **blocks)
    words = ("height 100", "multiples of 8", "96 or 104")
    check_generate(2, words, tmp_path, "--model", folder, "--height", 100)


def test_no_prompt(checkpoint: Make, tmp_path: Path) -> None:
    check_generate(2, ("words",), tmp_path, "--model", checkpoint("sd1"), prompt="")


def test_prompt_for_a_model_without_words(checkpoint: Make, tmp_path: Path) -> None:
    words = ("'red'", "without one")
    check_generate(2, words, tmp_path, "--model", checkpoint("ddpm"))


def test_guidance_for_a_model_without_words(checkpoint: Make, tmp_path: Path) -> None:
    given = ("--model", checkpoint("ddpm"), "--guidance", 3)
    check_generate(2, ("--guidance was given", "--steps"), tmp_path, *given, prompt="")


@pytest.mark.parametrize("name", ["no/picture.png", "."])
def test_output(checkpoint: Make, tmp_path: Path, name: str) -> None:
    given = ("--model", checkpoint("sd1"), "--output", tmp_path / name)
    check_refusal(perfuse("generate", "red", *given), 2, "--output")
    assert listing(tmp_path) == set()


def test_output_that_cannot_be_written(checkpoint: Make, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    given = ("--model", checkpoint("sd1"), "--steps", 1, "--output", folder / "a.png")
    check_refusal(perfuse("generate", "red", *given), 1, "locked")


def test_prompt_over_the_limit_is_cut_with_a_warning(checkpoint: Make, tmp_path: Path) -> None:
    output = tmp_path / "picture.png"
    words = "a red circle on the white background " * 12 + "blue"
    given = ("--model", checkpoint("sd1"), "--steps", 1)
    result = perfuse("generate", words, *given, "--output", output, "--quiet")
    assert result.exit_code == 0
    assert output.is_file()
    (line,) = result.stderr.splitlines()
    assert line.startswith("perfuse: warning: ")
    assert "77" in line
    assert "background blue" in line
    assert words not in line  # what was cut, not all of it


def put_nan(folder: Path, file: str, tensor: str) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / file)
    tensors[tensor] = np.full_like(tensors[tensor], np.nan)
    save_file(tensors, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    ("kind", "file", "tensor", "first"),
    [
        ("sd1", UNET, "conv_out.bias", "unet"),
        ("sd1", VAE, "decoder.conv_out.bias", "vae_decoder"),
        ("ddpm", UNET, "conv_out.bias", "unet"),
    ],
)
def test_nan(
    copy_of: Make, tmp_path: Path, kind: str, file: str, tensor: str, first: str, images: int
) -> None:
    """The component that it comes from is named, and where that ran."""
    folder = copy_of(kind)
    put_nan(folder, file, tensor)
    given = ("--model", folder, "--num-images", images)
    words = ("NaN", f"such values was {first}, on torch:cpu in float32.")
    check_generate(1, words, tmp_path, *given, prompt="red" if kind == "sd1" else "")


def test_nan_through_diffusers(copy_of: Make, tmp_path: Path) -> None:
    """Which would draw black."""
    pytest.importorskip("diffusers")
    folder = copy_of("tiny")
    put_nan(folder, UNET, "conv_out.bias")
    check_generate(
        1, ("DDPMPipeline drew NaN",), tmp_path, "--model", folder, "--bridged", prompt=""
    )


def test_nan_does_not_replace_an_earlier_picture(copy_of: Make, tmp_path: Path) -> None:
    folder, output = copy_of("ddpm"), tmp_path / "picture.png"
    Image.new("RGB", (4, 4)).save(output)
    earlier = output.read_bytes()
    put_nan(folder, UNET, "conv_out.bias")
    given = ("--model", folder, "--steps", 1, "--output", output)
    check_refusal(perfuse("generate", *given), 1, "NaN")
    assert output.read_bytes() == earlier
