"""Pipelines that are not native, from our own door: ``from_pretrained``, named classes, commands."""

import json
import re
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse.cli.main import main
from perfuse.errors import CheckpointError, InputError, NotNativeError

pytestmark = pytest.mark.export

Make = Callable[[str], Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: The first pipeline of Diffusers' documentation on pipelines of one's own, word for word but for the
#: noise, which is the same each time.
ONE_STEP = """
import torch
from LIBRARY import DiffusionPipeline

class UnetSchedulerOneForwardPipeline(DiffusionPipeline):
    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self):
        shape = (1, self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size)
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        timestep = 1
        model_output = self.unet(image, timestep).sample
        return self.scheduler.step(model_output, timestep, image, generator=torch.Generator().manual_seed(1)).prev_sample
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(checkpoint: Make, tmp_path: Path) -> Path:
    """A checkpoint of a class that perfuse has no models of its own for."""
    unet = diffusers.UNet2DModel.from_pretrained(checkpoint("tiny") / "unet")
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=10)
    diffusers.ConsistencyModelPipeline(unet, scheduler).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def draw(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(num_inference_steps=2, generator=generator, output_type="np").images


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


class TestFromPretrained:
    def test_equals_diffusers_and_is_saved_with_its_graphs(
        self, model: Path, tmp_path: Path
    ) -> None:
        expected = draw(diffusers.ConsistencyModelPipeline.from_pretrained(model))
        pipe = perfuse.DiffusionPipeline.from_pretrained(model, backend="onnxruntime")
        assert isinstance(pipe, diffusers.ConsistencyModelPipeline)
        assert np.abs(draw(pipe) - expected).max() < 1e-5
        (row,) = pipe.perfuse.report()
        assert (row.name, row.calls, row.torch_calls) == ("unet", 2, 0)
        pipe.save_perfuse(tmp_path / "saved")
        shutil.rmtree(tmp_path / "cache")
        again = perfuse.DiffusionPipeline.from_pretrained(tmp_path / "saved")
        assert np.abs(draw(again) - expected).max() < 1e-5
        assert not list((tmp_path / "cache").glob("unet*"))

    def test_as_a_named_class(self, model: Path) -> None:
        from perfuse import ConsistencyModelPipeline  # type: ignore[attr-defined]

        pipe = ConsistencyModelPipeline.from_pretrained(model)
        assert isinstance(pipe, ConsistencyModelPipeline)
        assert isinstance(pipe, diffusers.ConsistencyModelPipeline)
        assert "Nothing ran" in str(pipe.perfuse)

    def test_native_ones_if_asked(self, checkpoint: Make) -> None:
        pipe = perfuse.DiffusionPipeline.from_pretrained(
            checkpoint("tiny"), bridged=True, precision="float16"
        )
        assert type(pipe).__module__.startswith("diffusers.")
        assert pipe.unet.dtype is torch.float16

    def test_only_native_ones_if_asked(self, model: Path) -> None:
        with pytest.raises(
            NotNativeError, match="'ConsistencyModelPipeline', which perfuse does not"
        ):
            perfuse.DiffusionPipeline.from_pretrained(model, bridged=False)
        with pytest.raises(NotNativeError, match="pip install diffusers"):
            perfuse.StableDiffusionPipeline.from_pretrained(model)  # type: ignore[attr-defined]

    def test_refuses_what_native_ones_take(self, model: Path) -> None:
        with pytest.raises(InputError, match="scheduler_from was given; .* runs through Diffusers"):
            perfuse.DiffusionPipeline.from_pretrained(model, scheduler_from=str(model))
        with pytest.raises(InputError, match="reads safetensors alone"):
            perfuse.DiffusionPipeline.from_pretrained(model, use_safetensors=False)
        with pytest.raises(InputError, match="bridged=True was given for the bundled model"):
            perfuse.DiffusionPipeline.from_pretrained(bridged=True)

    @pytest.mark.parametrize(
        ("key", "value"), [("unet", [["diffusers"], "UNet2DModel"]), ("_class_name", True)]
    )
    def test_an_index_that_names_no_class(self, model: Path, key: str, value: object) -> None:
        index = json.loads((model / "model_index.json").read_text())
        (model / "model_index.json").write_text(json.dumps(index | {key: value}))
        with pytest.raises(CheckpointError, match=f"{key} is .* was expected"):
            perfuse.DiffusionPipeline.from_pretrained(model, bridged=True)

    def test_weights_that_no_file_has(self, model: Path) -> None:
        """Diffusers warns, and leaves them without content."""
        path = model / "unet" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"layers_per_block": config["layers_per_block"] + 1}))
        with pytest.raises(CheckpointError, match="weights of its unet are in no file"):
            perfuse.DiffusionPipeline.from_pretrained(model, bridged=True)

    def test_says_what_diffusers_said(self, model: Path) -> None:
        (model / "unet" / "config.json").write_text("{")
        with pytest.raises(
            CheckpointError, match=r"was opened by Diffusers .*, which raised OSError"
        ):
            perfuse.DiffusionPipeline.from_pretrained(model)
        index = json.loads((model / "model_index.json").read_text())
        (model / "model_index.json").write_text(json.dumps(index | {"_class_name": "NewPipeline"}))
        with pytest.raises(
            CheckpointError, match="A NewPipeline was asked for; neither perfuse nor"
        ):
            perfuse.DiffusionPipeline.from_pretrained(model)


class TestCode:
    @pytest.mark.parametrize("library", ["diffusers", "perfuse"])
    @pytest.mark.parametrize(
        "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
    )
    def test_a_file_of_one_s_own(
        self, engine: str, library: str, checkpoint: Make, tmp_path: Path
    ) -> None:
        pytest.importorskip(engine)
        file = tmp_path / "one_step_unet.py"
        file.write_text(ONE_STEP.replace("LIBRARY", library))
        for custom, backend in ((file, engine), (str(file), "torch")):
            pipe = perfuse.DiffusionPipeline.from_pretrained(
                checkpoint("tiny"), custom_pipeline=custom, backend=backend
            )
            assert type(pipe).__name__ == "UnetSchedulerOneForwardPipeline"
            assert isinstance(pipe, perfuse.DiffusionPipeline) == (library == "perfuse")
            with torch.no_grad():
                found = torch.as_tensor(pipe())
            if backend == engine:
                first = found
        assert torch.allclose(first, found, atol=1e-5)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("raise RuntimeError('no')", "was imported for a pipeline's class; it raised RuntimeE"),
            ("x = 1", "one class that derives from DiffusionPipeline; it has none"),
            (
                "from perfuse import DiffusionPipeline as D\nclass A(D): pass\nclass B(D): pass",
                "it has A, B",
            ),
        ],
    )
    def test_a_file_that_cannot_be_used(self, text: str, said: str, tmp_path: Path) -> None:
        (tmp_path / "pipeline.py").write_text(text)
        with pytest.raises(InputError, match=said):
            perfuse.DiffusionPipeline.from_pretrained(custom_pipeline=tmp_path)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no file"):
            perfuse.DiffusionPipeline.from_pretrained(custom_pipeline=tmp_path / "a.py")
        with pytest.raises(InputError, match="it is no file, and the Hub did not give it"):
            perfuse.DiffusionPipeline.from_pretrained(custom_pipeline="one_step", offline=True)

    def test_a_repository_s_runs_if_trusted_and_pinned(
        self, checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        repository = tmp_path / "hub" / "models--owner--code"
        file = repository / "snapshots" / COMMIT / "pipeline.py"
        file.parent.mkdir(parents=True)
        ran = tmp_path / "ran"
        file.write_text(f"open({str(ran)!r}, 'w')" + ONE_STEP.replace("LIBRARY", "perfuse"))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)

        def opened(**settings: Any) -> Any:
            return perfuse.DiffusionPipeline.from_pretrained(
                checkpoint("tiny"), custom_pipeline="owner/code", offline=True, **settings
            )

        with pytest.raises(InputError, match=r"would run .*pipeline\.py\. Read it, and give trust"):
            opened()
        with pytest.raises(InputError, match="name the commit, custom_revision="):
            opened(trust_remote_code=True, custom_revision="main")
        assert not ran.exists()
        pipe = opened(trust_remote_code=True, custom_revision=COMMIT)
        assert type(pipe).__name__ == "UnetSchedulerOneForwardPipeline" and ran.exists()

    def test_a_checkpoint_s_own_runs_if_trusted(self, model: Path) -> None:
        index = json.loads((model / "model_index.json").read_text())
        index |= {"_class_name": ["own", "OwnPipeline"], "unet": ["own_unet", "OwnUNet"]}
        (model / "model_index.json").write_text(json.dumps(index))
        (model / "own.py").write_text("raise AssertionError('it ran')")
        with pytest.raises(InputError, match=r"run code of its own: own\.py, unet/own_unet\.py"):
            perfuse.DiffusionPipeline.from_pretrained(model)


class TestCommands:
    def test_inspect(self, model: Path, checkpoint: Make) -> None:
        assert "ConsistencyModelPipeline" in command("inspect", "--model", model).output
        found = json.loads(command("inspect", "--json", "--model", model).output)
        assert found["run"] == "bridged"
        assert found["components"]["unet"]["class"] == "UNet2DModel"
        assert found["components"]["unet"]["weight_bytes"] > 1000
        native = json.loads(command("inspect", "--json", "--model", checkpoint("tiny")).output)
        assert native["run"] == "native"

    def test_export_then_generate(self, model: Path, tmp_path: Path) -> None:
        folder = tmp_path / "exported"
        done = command("export", "--model", model, "--to", "onnx", "--output", folder)
        assert done.exit_code == 0, done.output
        drawn = command(
            "generate", "--model", folder, "--steps", 2, "--seed", 3, "--json", "--quiet",
            "--output", tmp_path / "a.png",
        )  # fmt: skip
        assert drawn.exit_code == 0, drawn.output
        result = json.loads(drawn.stdout)
        assert (result["run"], result["seed"]) == ("bridged", 3)
        (row,) = result["components"]
        assert (row["target"], row["calls"], row["torch_calls"]) == ("onnxruntime", 2, 0)
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("a red circle",), "prompt was given; ConsistencyModelPipeline takes batch_size"),
            (("--arg", "num_frames=3"), "num_frames was given; ConsistencyModelPipeline takes"),
            (("--arg", "x"), "an argument is written NAME=VALUE"),
            (("--embedding", "a"), "--embedding was given; .* runs through Diffusers"),
            (("--lora", "a"), "--lora a was given; ConsistencyModelPipeline takes none"),
            (
                ("--ip-adapter", "a"),
                "--ip-adapter a was given; ConsistencyModelPipeline takes none",
            ),
            (("--arg", "batch_size=-1"), "it raised "),
            (("--output", "-"), "a bridged pipeline writes files"),
            (("--output", "no/a.png"), "there is no folder no"),
            (
                ("--steps", "1", "--output", "a.mp4"),
                "the pipeline made pictures, which are written",
            ),
        ],
    )
    def test_what_it_cannot_take(
        self, arguments: tuple[str, ...], said: str, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(model)
        done = command("generate", "--model", model, "--quiet", *arguments)
        assert done.exit_code != 0 and not isinstance(done.exception, InputError)
        assert re.search(said, done.output), done.output

    def test_in_a_pipe_it_shows_no_bar(self, checkpoint: Make, tmp_path: Path) -> None:
        """Neither Diffusers', nor transformers' when it loads the text encoder."""
        output = tmp_path / "a.png"
        asked = (
            "--model",
            checkpoint("words"),
            "--bridged",
            "--backend",
            "torch",
            "--output",
            output,
        )
        done = command("generate", "red", *asked, "--steps", 1)
        assert done.exit_code == 0, done.output
        assert "\r" not in done.stderr and "|" not in done.stderr

    def test_native_ones_take_no_arguments(self, checkpoint: Make) -> None:
        done = command("generate", "--model", checkpoint("tiny"), "--arg", "a=1", "--quiet")
        assert done.exit_code == 2 and "this model runs natively" in done.output

    def test_sound(self, tmp_path: Path) -> None:
        net = diffusers.UNet1DModel(
            block_out_channels=(32, 32), extra_in_channels=64, sample_size=512,
            sample_rate=16_000, time_embedding_type="fourier", use_timestep_embedding=False,
            flip_sin_to_cos=True, down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
            up_block_types=("UpBlock1D", "UpBlock1DNoSkip"), mid_block_type="UNetMidBlock1D",
        )  # fmt: skip
        scheduler = diffusers.IPNDMScheduler()
        diffusers.DanceDiffusionPipeline(net, scheduler).save_pretrained(tmp_path / "sound")
        done = command(
            "generate", "--model", tmp_path / "sound", "--steps", 2, "--seed", 0, "--quiet",
            "--output", tmp_path / "a.wav",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        with wave.open(str(tmp_path / "a.wav")) as file:
            assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 16_000, 512)

    @pytest.mark.parametrize(
        "backend",
        [
            "torch",
            pytest.param("onnxruntime", marks=pytest.mark.exhaustive),
            pytest.param("openvino", marks=pytest.mark.exhaustive),
        ],
    )
    def test_a_video(self, backend: str, tmp_path: Path) -> None:
        pytest.importorskip(backend)
        from PIL import Image

        from perfuse.bridge.outputs import made, written
        from perfuse_conformance.bridged.measure import save_pipeline

        save_pipeline("TextToVideoSDPipeline", tmp_path / "video")
        done = command(
            "generate", "red", "--model", tmp_path / "video", "--backend", backend, "--steps", 2,
            "--seed", 0, "--height", 32, "--width", 32, "--arg", "num_frames=3", "--fps", 5,
            "--quiet", "--json", "--output", tmp_path / "x.gif",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout)
        assert result["run"] == "bridged"
        engine = {row["name"]: row for row in result["components"]}
        assert backend == "torch" or engine["unet"]["calls"] == 2
        pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "video")
        frames = pipe(
            "red", num_inference_steps=2, height=32, width=32, num_frames=3,
            generator=torch.Generator().manual_seed(0),
        ).frames  # fmt: skip
        (expected,) = written(made({"frames": frames})[0], tmp_path / "y.gif", fps=5, rate=1)
        pictures = []
        for path in (tmp_path / "x.gif", expected):
            video: Any = Image.open(path)
            assert (video.format, video.n_frames, video.size) == ("GIF", 3, (32, 32))
            assert video.info["duration"] == 200
            shown = []
            for i in range(3):
                video.seek(i)
                shown.append(np.asarray(video.convert("RGB"), np.float32))
            pictures.append(np.stack(shown))
        drawn, wanted = pictures
        assert np.abs(drawn - wanted).mean() < (1e-6 if backend == "torch" else 2)
        assert np.abs(wanted[0] - wanted[1]).mean() > 2


class TestOutputs:
    @pytest.mark.parametrize("kind", ["pil", "np", "pt"])
    def test_videos(self, kind: str, tmp_path: Path) -> None:
        from PIL import Image

        from perfuse.bridge.outputs import made, written

        frames: Any = np.random.default_rng(0).random((2, 3, 16, 16, 3))
        if kind == "pil":
            frames = [[Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(3)] for _ in range(2)]
        if kind == "pt":
            frames = torch.as_tensor(frames)
        (one,) = made({"frames": frames})
        assert one.kind == "videos" and [len(video) for video in one.things] == [3, 3]
        paths = written(one, tmp_path / "a.gif", fps=5, rate=1)
        assert [path.name for path in paths] == ["a-0.gif", "a-1.gif"]
        assert Image.open(paths[0]).n_frames == 3  # type: ignore[attr-defined]

    def test_views_are_a_video_and_the_rest_arrays(self, tmp_path: Path) -> None:
        from PIL import Image

        from perfuse.bridge.outputs import made, written

        (views,) = made({"images": [[Image.new("RGB", (8, 8))] * 4]})
        assert views.kind == "videos" and len(views.things[0]) == 4
        (rest,) = made({"image_embeds": torch.ones(2, 3), "nothing": None})
        assert rest.kind == "arrays"
        written(rest, tmp_path / "a.npz", fps=1, rate=1)
        assert np.load(tmp_path / "a.npz")["image_embeds"].shape == (2, 3)
        with pytest.raises(InputError, match="none of it is a picture"):
            made({"flags": [True]})
