"""SDXL's watermark against Diffusers', with a stand-in for the library that both call."""

import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.pipelines.stable_diffusion_xl import watermark as theirs

from perfuse import DiffusionPipeline
from perfuse.errors import InputError
from perfuse.tasks.watermark import watermark


class Encoder:
    """Adds the bits to the first row of the first channel, so that order and values are seen."""

    def set_watermark(self, kind: str, bits: list[int]) -> None:
        assert kind == "bits"
        self.bits = np.asarray(bits, dtype=np.float32)

    def encode(self, picture: np.ndarray, method: str) -> np.ndarray:
        assert method == "dwtDct"
        marked = picture.copy()
        marked[0, : len(self.bits), 0] += 3 * self.bits
        return marked


def mark(decoded: Any, asked: bool | None = None, output_type: str = "pil") -> Any:
    tools: Any = SimpleNamespace(spec=SimpleNamespace(options={"add_watermarker": asked}))
    return watermark.run(tools, decoded, output_type)["decoded"]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in: Any = ModuleType("imwatermark")
    stand_in.WatermarkEncoder = Encoder
    stand_in.__spec__ = importlib.machinery.ModuleSpec("imwatermark", None)
    monkeypatch.setitem(sys.modules, "imwatermark", stand_in)
    monkeypatch.setattr(theirs, "WatermarkEncoder", Encoder, raising=False)


@pytest.mark.usefixtures("library")
def test_as_diffusers_does() -> None:
    decoded = torch.rand(2, 3, 8, 256, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    expected = theirs.StableDiffusionXLWatermarker().apply_watermark(decoded).numpy()
    for given in (decoded, decoded.numpy()):
        marked = mark(given)
        assert np.abs(marked - expected).max() <= 1e-6
        assert np.abs(marked - decoded.clamp(-1, 1).numpy()).max() > 0.01
    small = decoded[..., :128]
    assert mark(small) is small
    assert mark(decoded, asked=False) is decoded
    assert mark(decoded, output_type="latent") is decoded


def test_what_the_caller_made_it(checkpoint: Callable[[str], Path]) -> None:
    """Many programs switch it off by an object that gives back what it is given."""
    given = {"prompt": "red", "num_inference_steps": 1, "seed": 0, "output_type": "np"}
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sdxl"), add_watermarker=False)
    plain = pipe(**given).images
    pipe.watermark = SimpleNamespace(apply_watermark=lambda pictures: 0 * pictures)
    assert np.all(pipe(**given).images == 0.5) and pipe(**given).images.shape == plain.shape
    for one in (SimpleNamespace(apply_watermark=lambda pictures: pictures), None):
        pipe.watermark = one
        assert np.array_equal(pipe(**given).images, plain)


@pytest.mark.export
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_the_object_of_diffusers_on_an_engine(
    checkpoint: Callable[[str], Path], output_type: str
) -> None:
    pytest.importorskip("onnxruntime")
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("sdxl"), backend="onnxruntime", add_watermarker=False
    )
    given = {"prompt": "red", "num_inference_steps": 1, "seed": 0, "height": 32, "width": 256}
    plain = pipe(**given, output_type=output_type).images
    pipe.watermark = theirs.StableDiffusionXLWatermarker()
    marked = pipe(**given, output_type=output_type).images
    assert type(marked) is type(plain) and marked.shape == plain.shape
    assert 0.001 < abs(np.asarray(marked) - np.asarray(plain)).max() < 0.2


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    decoded = np.zeros((1, 3, 8, 256), np.float32)
    assert mark(decoded) is decoded
    with pytest.raises(InputError, match="invisible-watermark is missing"):
        mark(decoded, asked=True)
