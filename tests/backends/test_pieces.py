"""Components in pieces on real engines: the numbers of the whole, in the memory that was asked for."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import Export
from tests.loras import factors, write

from perfuse import DiffusionPipeline

pytestmark = pytest.mark.export
torch = pytest.importorskip("torch")

Make = Callable[[str], Path]
GIVEN = {"num_inference_steps": 2, "seed": 0, "output_type": "latent"}
ENGINES = {"torch:cpu": "torch", "onnxruntime:cpu": "onnxruntime", "openvino:CPU": "openvino"}
EXPORTS = (("onnxruntime:cpu", "onnx"), ("openvino:CPU", "openvino"))


@pytest.fixture(params=ENGINES)
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(ENGINES[request.param])
    if request.param != "torch:cpu":
        pytest.importorskip("onnxscript")
    return str(request.param)


def latents(pipe: DiffusionPipeline, **given: Any) -> Any:
    return np.asarray(pipe("red", **{**GIVEN, **given}).images)


def difference(found: Any, right: Any) -> float:
    """The largest difference, over the largest number: latents begin as large as the first sigma."""
    return float(np.abs(found - right).max() / np.abs(right).max())


def details(pipe: DiffusionPipeline) -> Any:
    return pipe.programs()[pipe.spec.denoiser.name].report().details


@pytest.mark.parametrize(
    "kind",
    [
        "words",
        pytest.param("sd1", marks=pytest.mark.exhaustive),
        pytest.param("sdxl", marks=pytest.mark.exhaustive),
        pytest.param("sd3", marks=pytest.mark.exhaustive),
    ],
)
def test_the_numbers_are_those_of_the_whole(checkpoint: Make, kind: str, backend: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend=backend)
    whole = latents(pipe)
    pipe.keep_within("low")
    assert difference(latents(pipe), whole) < 1e-4
    found = details(pipe)
    assert found["pieces"] > 2 and found["kept"] < found["pieces"] and found["loading"] > 0
    # Of another size, on pieces that were loaded for the first.
    size = 2 * pipe.spec.default_size[0]
    other = latents(pipe, height=size)
    pipe.keep_within(None)
    assert difference(latents(pipe, height=size), other) < 1e-4


def test_a_lora_is_in_the_pieces(checkpoint: Make, backend: str, tmp_path: Path) -> None:
    read = DiffusionPipeline.from_pretrained(checkpoint("words"))
    write(tmp_path / "lora.safetensors", factors(read), "peft")
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend=backend)
    plain = latents(pipe)
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    changed = latents(pipe)
    assert np.abs(changed - plain).max() > 1e-3
    pipe.keep_within("low")
    assert difference(latents(pipe), changed) < 1e-4 and details(pipe)["pieces"] > 2
    pipe.unload_lora_weights()
    assert difference(latents(pipe), plain) < 1e-4


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("torch:cpu", "followed"),
        ("onnxruntime:cpu", "followed"),
        pytest.param("openvino:CPU", "followed", marks=pytest.mark.exhaustive),
        *(pytest.param(one, "control", marks=pytest.mark.exhaustive) for one in ENGINES),
    ],
    indirect=["backend"],
)
def test_a_denoiser_takes_residuals_in_pieces(checkpoint: Make, kind: str, backend: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend=backend)
    nets = [name for name in pipe.spec.components if name.startswith("controlnet")]
    picture = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    given = {"image": [picture] * len(nets) if len(nets) > 1 else picture}
    whole, without = (
        latents(pipe, **given),
        latents(pipe, controlnet_conditioning_scale=0.0, **given),
    )
    assert np.abs(whole - without).max() > 1e-3
    pipe.keep_within("low")
    assert difference(latents(pipe, **given), whole) < 1e-4
    for name in ("unet", *nets):  # both at a time, since they run in turns
        found = pipe.programs()[name].report().details
        assert found["pieces"] > 2 and found["kept"] < found["pieces"]


@pytest.mark.parametrize(("engine", "format"), EXPORTS)
@pytest.mark.parametrize(
    "kind",
    [
        "words",
        pytest.param("control", marks=pytest.mark.exhaustive),
        pytest.param("sdxl", marks=pytest.mark.exhaustive),
        pytest.param("sd3", marks=pytest.mark.exhaustive),
    ],
)
def test_an_export_runs_in_pieces(
    exported: Export, checkpoint: Make, kind: str, engine: str, format: str, tmp_path: Path
) -> None:
    pytest.importorskip(ENGINES[engine])
    pipe = DiffusionPipeline.from_pretrained(exported(kind, format), backend=engine)
    given: dict[str, Any] = {}
    if kind == "control":
        given["image"] = [np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)] * 2
    plain = latents(pipe, **given)
    assert "pieces" not in details(pipe)
    pipe.keep_within("low")
    assert difference(latents(pipe, **given), plain) < 1e-4
    assert details(pipe)["pieces"] > 2 and details(pipe)["loading"] > 0
    if kind != "words":
        return
    read = DiffusionPipeline.from_pretrained(checkpoint(kind))
    lora = write(tmp_path / "lora.safetensors", factors(read), "peft")
    pipe.load_lora_weights(lora)
    changed = latents(pipe)
    pipe.keep_within(None)
    assert difference(latents(pipe), changed) < 1e-4 and "pieces" not in details(pipe)
    assert np.abs(changed - plain).max() > 1e-3


#: What a child runs: it draws one step, and says what that took beyond what was there before.
_CHILD = """
import re, sys
from pathlib import Path
from perfuse import DiffusionPipeline

def said(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

model, small, backend, memory = sys.argv[1:]
given = {"num_inference_steps": 2, "seed": 0, "output_type": "latent"}
# What is imported and compiled at a first draw is no weight.
first = DiffusionPipeline.from_pretrained(small, backend=backend)
first.keep_within("low")
first("red", **given)
first.close()
pipe = DiffusionPipeline.from_pretrained(model, backend=backend)
pipe.keep_within(int(memory) or None)
before = said("VmRSS")
pipe("red", **given)
print(said("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def wide(made_once: Callable[..., Path]) -> Path:
    """``sd1`` with a UNet of 300 MB."""

    def make(folder: Path) -> None:
        from perfuse.models import UNet2DConditionModel
        from perfuse_conformance.checkpoints import make_checkpoint, randomise, unet_config

        make_checkpoint(folder, "sd1")
        config = unet_config(block_out_channels=[320, 640])
        randomise(UNet2DConditionModel(**config)).save_pretrained(folder / "unet")

    return made_once("checkpoints", "wide", make)


def peak(model: Path, small: Path, backend: str, memory: int) -> int:
    asked = [sys.executable, "-c", _CHILD, str(model), str(small), backend, str(memory)]
    return int(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory there was")
def test_a_process_takes_what_was_asked_for(wide: Path, checkpoint: Make, backend: str) -> None:
    small = checkpoint("sd1")
    for folder in (small, wide):  # graphs are made here, not there
        pipe = DiffusionPipeline.from_pretrained(folder, backend=backend)
        pipe.keep_within("low")
        latents(pipe)
        pipe.close()
    memory = int(0.7 * pipe.residency.sizes["unet"])
    assert peak(wide, small, backend, memory) <= memory < peak(wide, small, backend, 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(("engine", "format"), EXPORTS)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory there was")
def test_so_does_a_process_that_runs_an_export(
    wide: Path, exported: Export, engine: str, format: str, precision: str, tmp_path: Path
) -> None:
    pytest.importorskip(ENGINES[engine])
    folder, small = tmp_path / "wide", exported("sd1", format)
    DiffusionPipeline.from_pretrained(wide, precision=precision).export(folder, to=format)
    pipe = DiffusionPipeline.from_pretrained(folder, backend=engine)
    memory = int((0.7 if precision == "float32" else 1.4) * pipe.residency.sizes["unet"])
    assert peak(folder, small, engine, memory) <= memory < peak(folder, small, engine, 0)
