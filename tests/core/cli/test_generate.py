"""``perfuse generate``: drawing again, previews, where pictures go, what is said meanwhile."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tests.distributions import Install

from perfuse.arrays.metadata import attach, of, read
from perfuse.arrays.pictures import save_png
from perfuse.cli import main

Make = Callable[[str], Path]

COMMAND = [sys.executable, "-m", "perfuse.cli"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No perfuse.toml of the folder that the tests are run in."""
    monkeypatch.chdir(tmp_path)


def perfuse(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def ok(result: Result) -> Result:
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def refused(result: Result, words: str, status: int = 2) -> None:
    """One line on standard error, and nothing on standard output."""
    assert result.exit_code == status, (result.stderr, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert words in line


def draw(checkpoint: Make, *arguments: object, **environment: str) -> Result:
    model = ("--model", checkpoint("sd1"), "--steps", 2, "--backend", "torch:cpu")
    return perfuse("generate", "a red circle", *model, *arguments, **environment)


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_picture_is_varied_without_words(checkpoint: Make) -> None:
    Image.new("RGB", (20, 16), "red").save("a.png")
    model = ("--model", checkpoint("unclip"), "--backend", "torch:cpu", "--steps", 2)
    ok(perfuse("generate", *model, "--image", "a.png", "--noise-level", 50, "--seed", 1))
    ok(
        perfuse(
            "generate", "a circle", *model, "--image", "a.png", "--output", "b.png", "--seed", 1
        )
    )
    assert (pixels("picture.png") != pixels("b.png")).any()
    refused(perfuse("generate", "a circle", *model), "image and image_embeds were given")


# ── Drawing again ───────────────────────────────────────────────────────────────────────────────


def test_a_picture_drawn_again(checkpoint: Make) -> None:
    given = ("--negative-prompt", "blue", "--guidance", 3, "--height", 24, "--scheduler", "euler")
    ok(draw(checkpoint, *given, "--precision", "bfloat16", "--output", "a.png"))
    result = ok(perfuse("generate", "--from", "a.png", "--output", "b.png"))
    assert (pixels("a.png") == pixels("b.png")).all()
    assert read("a.png") == read("b.png")
    assert f"a.png names model {checkpoint('sd1')}; backend torch:cpu" in result.stderr


def test_flags_beat_the_picture_which_beats_the_environment(checkpoint: Make) -> None:
    ok(draw(checkpoint, "--seed", 3, "--output", "a.png"))
    ok(draw(checkpoint, "--seed", 4, "--guidance", 2, "--output", "b.png"))
    Path("perfuse.toml").write_text("[pipeline]\nguidance = 9.0\n")
    again = ("generate", "--from", "a.png", "--output", "c.png")
    ok(perfuse(*again, PERFUSE_SEED="5", PERFUSE_STEPS="1"))
    assert (pixels("c.png") == pixels("a.png")).all()
    ok(perfuse(*again, "--seed", 4, "--guidance", 2))
    assert (pixels("c.png") == pixels("b.png")).all()
    ok(perfuse("generate", "blue", "--from", "a.png", "--output", "c.png", "--scheduler", "euler"))
    found = read("c.png")
    assert found.inputs["prompt"] == "blue"
    assert found.scheduler["_class_name"] == "EulerDiscreteScheduler"
    assert found.seeds == (3,)


def test_one_of_several_drawn_again(checkpoint: Make) -> None:
    ok(draw(checkpoint, "--num-images", 2, "--output", "a.png"))
    ok(perfuse("generate", "--from", "a-1.png", "--output", "b.png"))
    assert (pixels("b.png") == pixels("a-1.png")).all()
    assert read("b.png") == read("a-1.png")
    ok(perfuse("generate", "--from", "a-1.png", "--output", "c.png", "--num-images", 1))
    assert read("c.png").pictures == 1


def test_without_words_drawn_again(checkpoint: Make) -> None:
    given = ("--model", checkpoint("tiny"), "--steps", 2, "--output", "a.png")
    ok(perfuse("generate", *given))
    ok(perfuse("generate", "--from", "a.png", "--output", "b.png"))
    assert (pixels("a.png") == pixels("b.png")).all()


def test_another_backend_does_not_get_the_first_one_s_switches(checkpoint: Make) -> None:
    ok(draw(checkpoint, "--option", "tf32=true", "--output", "a.png"))
    assert read("a.png").options == {"tf32": "true"}
    again = ("generate", "--from", "a.png", "--output", "b.png")
    assert "backend torch:cpu, tf32=true" in ok(perfuse(*again)).stderr
    assert read("b.png").options == {"tf32": "true"}
    ok(perfuse(*again, "--backend", "torch:cpu"))
    assert read("b.png").options == {}


def test_pictures_that_cannot_be_drawn_again(checkpoint: Make) -> None:
    result = draw(checkpoint, "--no-metadata", "--output", "plain.png")
    ok(result)
    refused(perfuse("generate", "--from", "plain.png"), "does not say what it was drawn from")
    refused(perfuse("generate", "--from", "gone.png"), "no picture at gone.png")
    refused(perfuse("inspect", "plain.png"), "does not say what it was drawn from")
    assert "parameters" not in Image.open("plain.png").info


def test_a_picture_that_cannot_be_read_is_said_before_a_task_refuses_it(checkpoint: Make) -> None:
    Path("text.png").write_text("hello")
    given = ("generate", "--model", checkpoint("tiny"), "--image", "text.png")
    refused(perfuse(*given), "text.png cannot be read as a picture")


def forged(checkpoint: Make, **fields: Any) -> Path:
    """A picture whose metadata somebody changed."""
    import dataclasses

    from perfuse import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    (image,) = pipe(num_inference_steps=1, seed=0).images
    attach(image, dataclasses.replace(of(image), **fields))
    return save_png(image, "forged.png")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inputs": {"batch_sise": 1}}, "it was given batch_sise"),
        ({"inputs": {"noise_mode": 3}}, "noise_mode is 3, which is of another type"),
        ({"inputs": {"timesteps": "all"}}, "timesteps is 'all', which is of another type"),
        ({"inputs": {"num_inference_steps": "many"}}, "num_inference_steps"),
        ({"unrecorded": ("latents",)}, "drawn with latents, which a picture cannot hold"),
        ({"scheduler": {"_class_name": "Evil"}}, "'Evil'"),
        (
            {"scheduler": {"_class_name": "DDPMScheduler", "beta_start": "x"}},
            "its scheduler cannot be used",
        ),
        ({"backend": "nonsense"}, "'nonsense'"),
        ({"model": "/there/is/nothing"}, "/there/is/nothing"),
        ({"transforms": ("nonsense",)}, "nonsense"),
        ({"options": {"nonsense": "1"}}, "nonsense"),
    ],
)
def test_a_forged_picture(checkpoint: Make, fields: dict[str, Any], words: str) -> None:
    path = forged(checkpoint, **fields)
    result = perfuse("generate", "--from", path, "--output", "b.png")
    assert result.exit_code in (1, 2), result.exception
    named, line = result.stderr.splitlines()
    assert named.startswith("perfuse: forged.png names model ")
    assert words in line
    assert not Path("b.png").exists()


def test_a_picture_does_not_write_to_the_terminal(checkpoint: Make) -> None:
    path = forged(checkpoint, model="\x1b]0;title\x07 \x1b[2J")
    result = perfuse("generate", "--from", path)
    assert result.exit_code == 1
    assert "\x1b" not in result.stderr.splitlines()[0]
    shown = ok(perfuse("inspect", path)).stdout
    assert "\x1b" not in shown
    assert "\\x1b]0;title" in shown


def test_inspect_a_picture(checkpoint: Make) -> None:
    ok(draw(checkpoint, "--seed", 3, "--output", "a.png"))
    found = json.loads(ok(perfuse("inspect", "a.png", "--json")).stdout)
    assert found["file"] == "a.png"
    assert found["seeds"] == [3]
    assert found["inputs"]["prompt"] == "a red circle"
    text = ok(perfuse("inspect", "a.png")).stdout
    for word in ("a red circle", "torch:cpu", "seed", "num_inference_steps", "vae_decoder"):
        assert word in text


# ── Where pictures go ───────────────────────────────────────────────────────────────────────────


def test_standard_output(checkpoint: Make, tmp_path: Path) -> None:
    result = ok(draw(checkpoint, "--seed", 3, "--output", "-"))
    ok(draw(checkpoint, "--seed", 3, "--output", "a.png"))
    image = Image.open(io.BytesIO(result.stdout_bytes))
    assert (np.asarray(image) == pixels("a.png")).all()
    assert "(seed 3)" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.png"}


def test_what_standard_output_does_not_take(checkpoint: Make) -> None:
    refused(draw(checkpoint, "--output", "-", "--json"), "both write to standard output")
    refused(draw(checkpoint, "--output", "-", "--preview"), "name its file")
    refused(draw(checkpoint, "--output", "-", "--num-images", 2, "--quiet"), "takes one")


@pytest.mark.parametrize("several", [(), ("--num-images", 2)])
def test_what_is_not_a_picture_stays(checkpoint: Make, several: tuple[object, ...]) -> None:
    path = Path("thesis-1.txt" if several else "thesis.txt")
    path.write_text("years of work")
    result = draw(checkpoint, "--output", "thesis.txt", "--quiet", *several)
    refused(result, f"{path} was asked for; what is there is not a picture")
    assert path.read_text() == "years of work"
    assert [one.name for one in Path().iterdir()] == [path.name]


def test_what_is_a_picture_is_replaced(checkpoint: Make) -> None:
    Image.new("L", (4, 4)).save("a.png")
    Path("empty.png").touch()
    for name in ("a.png", "empty.png"):
        ok(draw(checkpoint, "--output", name))
        assert pixels(name).shape == (16, 16, 3)
    os.symlink("a.png", "link.png")
    ok(draw(checkpoint, "--seed", 5, "--output", "link.png"))
    assert Path("link.png").is_symlink()
    assert read("a.png").seeds == (5,)


def test_a_pipe_is_not_waited_for(checkpoint: Make) -> None:
    os.mkfifo("pipe.png")
    refused(draw(checkpoint, "--output", "pipe.png"), "not a picture")


# ── Previews ────────────────────────────────────────────────────────────────────────────────────


def test_a_preview(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes near the picture, which is what it is without."""
    ok(draw(checkpoint, "--seed", 3, "--scheduler", "euler-ancestral", "--output", "a.png"))
    given = ("--seed", 3, "--scheduler", "euler-ancestral", "--output", "b.png")
    result = ok(draw(checkpoint, *given, "--preview", "--preview-every", 1, "--json"))
    assert (pixels("a.png") == pixels("b.png")).all()
    assert "preview" in json.loads(result.stdout)["seconds"]["steps"]
    shown = Image.open("b.preview.png")
    assert shown.size == (16, 16)
    assert "parameters" not in shown.info
    # The last step aims at the picture itself.
    assert np.abs(pixels("b.preview.png").astype(int) - pixels("b.png")).max() <= 2


def test_every_so_many_steps(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from perfuse.run import preview

    seen: list[int] = []
    decoded = preview.decoded

    def counted(tools: Any, task: Any, event: Any, latents: Any, decoder: Any = None) -> Any:
        seen.append(event.done)
        return decoded(tools, task, event, latents, decoder)

    monkeypatch.setattr(preview, "decoded", counted)
    ok(draw(checkpoint, "--steps", 7, "--preview=p.png", "--preview-every", 3, "--num-images", 2))
    assert seen == [3, 6]
    assert Image.open("p.png").size == (32, 16)
    seen.clear()
    ok(draw(checkpoint, "--steps", 12, "--preview=p.png"))
    assert seen == [3, 6, 9, 12]


def test_pictures_and_previews_by_a_small_autoencoder(checkpoint: Make) -> None:
    from perfuse.models import AutoencoderTiny
    from perfuse_conformance.checkpoints import randomise

    stages = {"encoder_block_out_channels": [8] * 3, "decoder_block_out_channels": [8] * 3}
    stages |= {"num_encoder_blocks": [1, 1, 1], "num_decoder_blocks": [1, 1, 1]}
    randomise(AutoencoderTiny(**stages)).save_pretrained("taesd")
    ok(draw(checkpoint, "--seed", 3, "--output", "a.png"))
    ok(draw(checkpoint, "--seed", 3, "--output", "rough.png", "--vae", "taesd"))
    assert pixels("rough.png").shape == (32, 32, 3)
    again = ok(
        perfuse("generate", "--from", "rough.png", "--output", "again.png", "--vae", "taesd")
    )
    assert (pixels("again.png") == pixels("rough.png")).all()
    assert "another vae" not in again.stderr
    other = ok(perfuse("generate", "--from", "rough.png", "--output", "other.png"))
    assert "drawn with another vae" in other.stderr
    ok(draw(checkpoint, "--seed", 3, "--output", "b.png", "--preview-vae", "taesd"))
    assert (pixels("a.png") == pixels("b.png")).all()
    assert Image.open("b.preview.png").size == (32, 32)  # twice as many pixels a latent
    refused(draw(checkpoint, "--preview-vae", "gone"), "there is no gone/config.json", 1)
    wide = AutoencoderTiny(**stages, latent_channels=16)
    wide.save_pretrained("wide")
    refused(draw(checkpoint, "--preview-vae", "wide"), "this model's latents have 4")
    refused(draw(checkpoint, "--preview-vae", checkpoint("sd1") / "unet"), "not decode latents")


def test_previews_that_cannot_be(checkpoint: Make) -> None:
    model = ("--model", checkpoint("sd1"))
    refused(perfuse("generate", *model, "--preview", "a red circle"), "put them before it")
    refused(draw(checkpoint, "--preview=picture.png"), "name two files")
    refused(draw(checkpoint, "--preview=gone/a.png"), "there is no folder gone")
    Path("notes.png").write_text("mine")
    refused(draw(checkpoint, "--preview=notes.png"), "not a picture")


# ── What is said ────────────────────────────────────────────────────────────────────────────────


def test_what_is_said_at_the_end(checkpoint: Make) -> None:
    result = ok(draw(checkpoint, "--seed", 3))
    assert result.stdout == "picture.png  (seed 3)\n"
    *components, last = result.stderr.splitlines()
    assert [line.split()[:2] for line in components] == [
        ["text_encoder", "torch:cpu"],
        ["unet", "torch:cpu"],
        ["vae_decoder", "torch:cpu"],
    ]
    assert last.endswith(" s")
    assert "in all " in last
    assert ok(draw(checkpoint, "--seed", 3, "--quiet")).stderr == ""


def test_times_in_json(checkpoint: Make) -> None:
    result = ok(draw(checkpoint, "--json"))
    assert result.stderr == ""
    found = json.loads(result.stdout)
    seconds = found["seconds"]
    assert {"open", "encode_prompt", "denoise", "decode"} <= set(seconds["steps"])
    assert set(seconds["components"]) == {"text_encoder", "unet", "vae_decoder"}
    parts = [*seconds["steps"].values(), *(s["prepare"] for s in seconds["components"].values())]
    assert sum(parts) == pytest.approx(seconds["total"], rel=0.2, abs=0.05)
    assert found["metadata"][0]["inputs"]["num_inference_steps"] == 2


# ── The options of tasks ────────────────────────────────────────────────────────────────────────


def test_an_option_that_the_task_does_not_take(checkpoint: Make) -> None:
    model = ("--model", checkpoint("tiny"), "--steps", 1)
    result = perfuse("generate", *model, "--guidance", 3)
    refused(result, "--guidance was given; this model's task, unconditional, takes --height, ")
    ok(perfuse("generate", *model, PERFUSE_GUIDANCE="3"))


PLUGIN = """
from dataclasses import replace
from perfuse import hookimpl
from perfuse.contract.hooks import PipelineManifest
from perfuse.contract.steps import Input
from perfuse.tasks.unconditional import UNCONDITIONAL
from perfuse.families.ddpm import PIPELINES

TASK = replace(
    UNCONDITIONAL,
    inputs={**UNCONDITIONAL.inputs, "wetness": Input(kind=float, option="--wetness", help="0 to 1.")},
)

@hookimpl
def perfuse_pipelines():
    kind = next(one for one in PIPELINES if one.class_name == "DDPMPipeline")
    return [replace(kind, class_name="WetPipeline", tasks={"unconditional": __name__ + ":TASK"})]
"""


def test_an_option_of_a_plugin_s_task(install: Install, copy_of: Make) -> None:
    install("wet", PLUGIN, dist="perfuse-wet")
    folder = copy_of("tiny")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "WetPipeline"}))
    given = ("generate", "--model", folder, "--steps", 1)
    ok(perfuse(*given, "--wetness", 0.5))
    assert read("picture.png").inputs["wetness"] == 0.5
    assert perfuse(*given, "--wetnes", 0.5).exit_code == 2
    Path("perfuse.toml").write_text("[pipeline]\nwetness = 0.25\n")
    ok(perfuse(*given, "--steps", 1))


def test_help_has_the_options_of_the_tasks() -> None:
    text = ok(perfuse("generate", "--help")).stdout
    for word in ("--steps", "--guidance-rescale", "--num-images", "Denoising steps", "--from"):
        assert word in text


# ── Interrupts ──────────────────────────────────────────────────────────────────────────────────

#: The command line, which sends itself a signal as a file of a name is first made, or gets that name.
STRUCK = """
import os, signal, sys
name, number = sys.argv.pop(1), int(sys.argv.pop(1))
struck = []

def watch(event, arguments):
    made = event == "open" and name in str(arguments[0]) and arguments[2] & os.O_CREAT
    if not struck and (made or event == "os.rename" and str(arguments[1]).endswith(name)):
        struck.append(name)
        os.kill(os.getpid(), number)

sys.addaudithook(watch)
from perfuse.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "name",
    [
        ".a-1.png-",
        "/a-0.png",  # the last that takes its name
        ".a.preview.png-",
        pytest.param("main-file.json", marks=pytest.mark.exhaustive),
    ],
)
def test_an_interrupt(checkpoint: Make, tmp_path: Path, name: str, number: int) -> None:
    cache = tmp_path / "cache"
    target = ("--backend", "torch:cpu")
    if name == "main-file.json":
        pytest.importorskip("onnxscript")
        target = ("--backend", "onnxruntime:cpu")
    given = ("--model", checkpoint("tiny"), "--steps", 2, *target, "--preview", "--num-images", 2)
    line = [sys.executable, "-c", STRUCK, name, str(int(number)), "generate", *map(str, given)]
    done = subprocess.run(
        [*line, "--output", "a.png"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PERFUSE_CACHE": str(cache)},
    )
    assert done.returncode == 128 + number, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("perfuse: interrupted")
    assert "Traceback" not in done.stderr
    left = {path.name for path in tmp_path.iterdir() if path != cache}
    pictures = {"a-0.png", "a-1.png"} if name == "/a-0.png" else set()
    assert pictures <= left
    assert left - pictures <= ({"a.preview.png"} if name in (".a-1.png-", "/a-0.png") else set())
    assert list((cache / "artifacts").glob("*")) == [] or name != "main-file.json"
