"""The safety checker as a component: on every engine, in an export, and where parts are missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import DiffusionPipeline, Role
from perfuse.arrays.image_processor import ImageProcessor
from perfuse.errors import CheckpointError, InputError
from perfuse_conformance.checkpoints import edit_json

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]
GIVEN: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 0}


def make_picky(folder: Path) -> None:
    """Lower every bar, so that the checker objects to all."""
    from safetensors.torch import load_file, save_file

    path = folder / "safety_checker" / "model.safetensors"
    weights = load_file(path)
    weights["concept_embeds_weights"] -= 3
    save_file(weights, path, metadata={"format": "pt"})


def last(pipe: DiffusionPipeline, **inputs: Any) -> Any:
    state: Any = {}
    for event in pipe.stream(**{**GIVEN, **inputs}):
        state = event.state
    return state


def test_a_pipeline_without_a_checker_checks_nothing(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), safety_checker=None)
    assert last(pipe)["nsfw_content_detected"] is None
    assert pipe.safety_checker is None
    assert pipe.feature_extractor is None
    with pytest.raises(InputError, match="safety_checker was to be a dict, which perfuse does not"):
        pipe.safety_checker = {}


def test_what_a_checker_needs(copy_of: Make) -> None:
    folder = copy_of("sd1-checked")
    with pytest.raises(InputError, match="no feature_extractor to prepare pictures for it"):
        DiffusionPipeline.from_pretrained(folder, feature_extractor=None)
    pipe = DiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )  # without a warning
    assert not pipe.spec.having(Role.SAFETY_CHECKER)
    edit_json(folder / "feature_extractor" / "preprocessor_config.json", crop_size="24")
    pipe = DiffusionPipeline.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="which cannot be used: .*'24'"):
        last(pipe)


def test_bad_pictures_for_a_processor() -> None:
    processor = ImageProcessor.from_config({"do_resize": False, "do_center_crop": False})
    small, large = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(InputError, match="differ in size: 4 x 4, 6 x 4"):
        processor([small, large])
    with pytest.raises(InputError, match="No picture was given"):
        processor([])
    assert isinstance(processor(small, return_tensors="pt").pixel_values, torch.Tensor)


@pytest.mark.export
@pytest.mark.exhaustive
def test_an_export_has_the_checker(copy_of: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = copy_of("sd1-checked")
    reference = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    expected = reference(**GIVEN, output_type="np").images
    make_picky(folder)
    picked = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    written = picked.export(tmp_path / "onnx", to="onnx")
    pipe = DiffusionPipeline.from_pretrained(written)
    assert set(pipe.spec.components) == set(picked.spec.components)
    assert pipe.spec.processors == picked.spec.processors
    pixels = np.random.default_rng(0).standard_normal((3, 3, 24, 24), dtype=np.float32)
    ours = pipe.program("safety_checker")(clip_input=pixels)
    theirs = picked.program("safety_checker")(clip_input=pixels)
    for name, scores in theirs.items():
        assert np.abs(ours[name] - scores).max() <= 1e-5
    with pytest.warns(UserWarning, match="objected to 1 of 1 pictures"):
        state = last(pipe, output_type="np")
    assert state["nsfw_content_detected"] == [True]
    assert not state["images"].any()
    with pytest.warns(UserWarning, match="switched off"):
        off = DiffusionPipeline.from_pretrained(written, safety_checker=None)
    assert np.abs(off(**GIVEN, output_type="np").images - expected).max() <= 2 / 255


@pytest.mark.export
def test_openvino_scores_alike(checkpoint: Make) -> None:
    pytest.importorskip("openvino")
    pixels = np.random.default_rng(0).standard_normal((2, 3, 24, 24), dtype=np.float32)
    scores = [
        DiffusionPipeline.from_pretrained(checkpoint("sd1-checked"), backend=backend).program(
            "safety_checker"
        )(clip_input=pixels)
        for backend in ("torch:cpu", "openvino:CPU")
    ]
    for name, expected in scores[0].items():
        assert np.abs(scores[1][name] - expected).max() <= 1e-5
