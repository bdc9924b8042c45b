"""Exported folders run where neither torch nor any exporter's tool can be imported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import needs_exporter

from perfuse import DiffusionPipeline
from perfuse_conformance.checkpoints import write_adapter, write_image_encoder

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]

#: Makes an import of these fail as if they were not installed, and then runs the command line.
PROGRAM = """
import sys

BLOCKED = set(sys.argv.pop(1).split(","))

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from perfuse.cli import main
try:
    main()
except SystemExit as exit:
    status = exit.code
loaded = BLOCKED & {name.split(".")[0] for name in sys.modules}
assert not loaded, loaded
sys.exit(status)
"""
BLOCKED = "torch,transformers,onnx,onnxscript,onnx_ir,diffusers,accelerate,scipy"
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}


def run(
    blocked: str, *arguments: object, **environment: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, blocked, *map(str, arguments)],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(("kind", "backend"), [("words", "onnxruntime"), ("tiny", "openvino")])
def test_draws_the_reference_s_picture(
    checkpoint: Make, exported: Export, tmp_path: Path, kind: str, backend: str
) -> None:
    pytest.importorskip(backend)
    folder = exported(kind, FORMATS[backend])
    prompt = ["a red circle"] if kind == "words" else []
    given = ("--model", folder, "--steps", 4, "--seed", 5, "--json")
    output = tmp_path / "picture.png"
    others = {"onnxruntime", "openvino"} - {backend}
    done = run(",".join([BLOCKED, *others]), "generate", *prompt, *given, "--output", output)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["components"]
    assert {component["target"] for component in report.values()} == {backend}
    pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
    reference = pipe(*prompt, num_inference_steps=4, seed=5).images[0]
    drawn, expected = (np.asarray(image).astype(int) for image in (Image.open(output), reference))
    assert drawn.shape == expected.shape
    assert expected.std() > 5
    assert np.abs(drawn - expected).max() <= 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", FORMATS)
def test_follows_one_picture_and_looks_at_another(
    checkpoint: Make, tmp_path: Path, backend: str
) -> None:
    """A ControlNet and an IP-Adapter, exported with the pipeline."""
    pytest.importorskip(backend)
    needs_exporter(FORMATS[backend])
    config = json.loads((checkpoint("followed") / "unet" / "config.json").read_text())
    write_adapter(tmp_path / "plain.safetensors", "plain", config)
    write_image_encoder(tmp_path / "image_encoder")
    values = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    followed, seen = (Image.fromarray(one) for one in values)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("followed"), backend="torch:cpu")
    pipe.load_ip_adapter(tmp_path, weight_name="plain.safetensors")
    folder = pipe.export(tmp_path / "export", to=FORMATS[backend])
    for name, image in (("followed", followed), ("seen", seen)):
        image.save(tmp_path / f"{name}.png")
    given = ("--model", folder, "--steps", 2, "--seed", 5, "--json")
    given = (*given, "--control-image", tmp_path / "followed.png")
    given = (*given, "--ip-adapter-image", tmp_path / "seen.png")
    done = run(BLOCKED, "generate", "red", *given, "--output", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    drawn = np.asarray(Image.open(tmp_path / "out.png")).astype(int)

    def expected(image: Image.Image, prompt: Image.Image) -> np.ndarray:
        inputs = {"image": image, "ip_adapter_image": prompt, "num_inference_steps": 2, "seed": 5}
        return np.asarray(pipe("red", **inputs).images[0]).astype(int)

    assert np.abs(drawn - expected(followed, seen)).max() <= 2
    for other in (expected(seen, seen), expected(followed, followed)):
        assert np.abs(drawn - other).max() > 2


def test_inspect(exported: Export) -> None:
    folder = exported("words", "onnx")
    blocked = f"{BLOCKED},onnxruntime,openvino"
    done = run(blocked, "inspect", "--model", folder, "--verify", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["exported"]) >= {"unet", "text_encoder", "vae_decoder"}


def test_a_checkpoint_needs_torch_and_says_so(checkpoint: Make, tmp_path: Path) -> None:
    """On torch and, because it must first be exported, on an engine."""
    output = tmp_path / "picture.png"
    given = ("generate", "red", "--model", checkpoint("words"), "--output", output)
    for backend in ("torch", "onnxruntime"):
        # An empty cache: what another test has exported would be found by its content.
        done = run(BLOCKED, *given, "--backend", backend, PERFUSE_CACHE=tmp_path / "cache")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "torch" in line
        assert "pip install 'perfuse[" in line
        assert not output.exists()
