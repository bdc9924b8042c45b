"""Diffusers patched: its own ``from_pretrained`` accelerates, and programs that cannot be edited."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse.bridge.script import main
from perfuse.errors import BackendError, InputError

pytestmark = pytest.mark.export

Make = Callable[[str], Path]
SCRIPTS = Path(__file__).parent / "scripts"
DOORS = (
    (diffusers.DiffusionPipeline, "from_pretrained"),
    (diffusers.AutoPipelineForText2Image, "from_pipe"),
    (diffusers.ModelMixin, "from_pretrained"),
    (diffusers.ModularPipeline, "from_pretrained"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSE_CACHE", str(tmp_path / "cache"))


def attributes() -> list[Any]:
    return [vars(kind)[name] for kind, name in DOORS]


def test_a_pipeline_and_a_model_are_accelerated_as_they_are_asked(checkpoint: Make) -> None:
    folder, before = checkpoint("tiny"), attributes()
    with perfuse.patch_diffusers():
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, backend="onnxruntime")
        plain = diffusers.DDPMPipeline.from_pretrained(folder)
        unet, info = diffusers.UNet2DModel.from_pretrained(
            folder / "unet", backend="onnxruntime", precision="float16", output_loading_info=True
        )
        with pytest.raises(InputError, match="precision='float16' was given without a backend"):
            diffusers.DDPMPipeline.from_pretrained(folder, precision="float16")
        with pytest.raises(InputError, match="A target was given for vae"):
            diffusers.DDPMPipeline.from_pretrained(folder, backend="vae=onnxruntime")
    assert attributes() == before
    assert isinstance(pipe, diffusers.DDPMPipeline) and not hasattr(plain, "perfuse")
    assert "missing_keys" in info and unet.perfuse.manner.precision == "float16"
    given = {"num_inference_steps": 2, "output_type": "np"}
    pictures = []
    for one in (pipe, plain):
        one.set_progress_bar_config(disable=True)
        pictures.append(one(generator=torch.Generator().manual_seed(0), **given).images)
    assert np.abs(pictures[0] - pictures[1]).max() < 1e-3
    (row,) = pipe.perfuse.report()
    assert (row.name, row.target, row.calls, row.torch_calls) == ("unet", "onnxruntime", 2, 0)


def test_patches_may_be_undone_in_any_order(checkpoint: Make) -> None:
    folder, before = checkpoint("tiny"), attributes()
    outer = perfuse.patch_diffusers("unet=onnxruntime,vae=openvino", precision="float32")
    inner = perfuse.patch_diffusers("torch")
    outer.undo()
    pipe = diffusers.DDPMPipeline.from_pretrained(folder)
    assert str(pipe.perfuse.placement) == "torch"
    inner.undo()
    inner.undo()
    assert attributes() == before
    with outer, perfuse.patch_diffusers("unet=onnxruntime,vae=onnxruntime") as patch:
        pipe = diffusers.DDPMPipeline.from_pretrained(folder)
        assert str(pipe.perfuse.placement) == "torch,unet=onnxruntime"  # it has no vae
        assert (
            str(diffusers.UNet2DModel.from_pretrained(folder / "unet").perfuse.placement) == "torch"
        )
        patch.undo()
    assert attributes() == before
    with pytest.raises(BackendError, match="'openvin' was asked for"):
        perfuse.patch_diffusers("openvin")
    with pytest.raises(InputError, match="'float8' was asked for"):
        perfuse.patch_diffusers("onnxruntime", precision="float8")
    assert attributes() == before


def test_pipelines_of_the_same_models_share_their_graphs(checkpoint: Make) -> None:
    with perfuse.patch_diffusers():
        first = diffusers.DDPMPipeline.from_pretrained(checkpoint("tiny"), backend="onnxruntime")
        second = diffusers.DDIMPipeline.from_pipe(first)
    given = {"num_inference_steps": 2, "output_type": "np"}

    def draw(pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        return pipe(generator=torch.Generator().manual_seed(0), **given).images

    before = draw(first)
    draw(second)
    (row,) = second.perfuse.report()
    assert (row.calls, row.graphs, row.torch_calls) == (4, 1, 0)
    second.perfuse.restore()
    with torch.no_grad():  # where a version of the tensor does not tell
        first.unet.conv_in.weight.data += 0.1
    assert np.abs(draw(first) - before).max() > 1e-3
    (row,) = first.perfuse.report()
    assert (row.calls, row.torch_calls) == (6, 0)


def test_a_model_is_the_same_by_itself_and_in_a_pipeline() -> None:
    from perfuse.bridge.state import described

    layer = torch.nn.Linear(2, 2)
    before = described(layer)
    perfuse.accelerate(layer, "onnxruntime")
    assert described(layer) == before


@pytest.mark.parametrize(
    ("script", "model"),
    [
        ("loop", "tiny"),
        pytest.param("text_to_image", "words", marks=pytest.mark.exhaustive),
        pytest.param("image_to_image", "words", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize(
    "backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_a_program_that_cannot_be_edited(
    script: str,
    model: str,
    backend: str,
    checkpoint: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = [str(SCRIPTS / f"{script}.py"), str(checkpoint(model))]
    drawn = []
    for where in ("torch", backend):
        monkeypatch.setenv("PERFUSE_ACCELERATE", where)
        main([*arguments, str(tmp_path / f"{where}.npy")])
        drawn.append(np.load(tmp_path / f"{where}.npy").astype(int))
    assert drawn[0].std() > 1
    assert np.abs(drawn[0] - drawn[1]).max() <= 2
    said = capfd.readouterr().err
    assert script == "loop" or f"perfuse: unet (UNet2DConditionModel): {backend}: " in said


@pytest.mark.exhaustive
def test_the_door_in_a_process_of_its_own(checkpoint: Make, tmp_path: Path) -> None:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    script, model = str(SCRIPTS / "loop.py"), str(checkpoint("tiny"))
    assert run(script, model, "plain.npy").returncode == 0
    done = run("-m", "perfuse.run", script, model, "fast.npy", PERFUSE_ACCELERATE="onnxruntime")
    assert done.returncode == 0, done.stderr
    assert "perfuse: module (UNet2DModel): onnxruntime: 4 calls" in done.stderr
    pictures = [np.load(tmp_path / name).astype(int) for name in ("plain.npy", "fast.npy")]
    assert np.abs(pictures[0] - pictures[1]).max() <= 2


def test_how_a_program_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PERFUSE_ACCELERATE", "torch")
    (tmp_path / "beside.py").write_text("import sys\nprint(sys.argv[1:], __name__)\n")
    script = tmp_path / "script.py"
    script.write_text("import runpy, sys, beside\nprint(sys.argv, __name__)\nsys.exit(3)\n")
    with pytest.raises(SystemExit, match="3"):
        main([str(script), "a", "-b"])
    assert capsys.readouterr().out == f"['a', '-b'] beside\n['{script}', 'a', '-b'] __main__\n"
    main(["-m", "beside", "c"])
    assert capsys.readouterr().out == "['c'] __main__\n"
    main(["--help"])
    assert (
        "usage: PERFUSE_ACCELERATE=TARGET python -m perfuse.run SCRIPT" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("backend", "precision", "said"),
    [
        ("", "", "PERFUSE_ACCELERATE is not set"),
        ("openvin", "", "Backend 'openvin' was asked for"),
        ("onnxruntime,torch", "", "cannot both be the default"),
        ("onnxruntime:tpu", "", "asks for onnxruntime:tpu: "),
        ("onnxruntime", "bfloat16", "asks for onnxruntime: .*bfloat16"),
        ("torch", "float8", "'float8' was asked for"),
        ("torch", "", "nothing.py was to be run; there is no such file"),
    ],
)
def test_what_the_environment_says_is_checked_before_the_program_begins(
    backend: str,
    precision: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    monkeypatch.setenv("PERFUSE_ACCELERATE", backend)
    monkeypatch.setenv("PERFUSE_PRECISION", precision)
    before = attributes()
    with pytest.raises(SystemExit, match="2"):
        main(["nothing.py"])
    assert re.search(said, capsys.readouterr().err)
    assert attributes() == before
