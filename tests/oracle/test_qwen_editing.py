"""Editing with Qwen-Image-Edit against Diffusers': same weights, same seed.

Diffusers 0.42 does not tell Transformers 5 which tokens are of pictures; then their positions are those of a
text, and not of rows and columns, as they were in training. The pipeline to compare with tells it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as one_picture
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as several_pictures
from PIL import Image
from tests.oracle.pairs import Pair

from perfuse import DiffusionPipeline
from perfuse.errors import InputError
from perfuse.models.language_model.vision import Grid
from perfuse_conformance.checkpoints import make_checkpoint

SHORT, LONG = "a red circle", "a blue square on the white background " * 9
_AREA = 64**2


class Processor:
    """Transformers' image processor and tokenizer together; its own needs torchvision."""

    def __init__(self, folder: Any) -> None:
        self.pictures = transformers.AutoImageProcessor.from_pretrained(
            folder / "processor", backend="pil"
        )
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")

    def __call__(self, text: list[str], images: Any, **settings: Any) -> Any:
        images = images if isinstance(images, list) else [images]
        found = self.pictures(images=images, return_tensors="pt")
        sizes = [
            int(grid.prod()) // self.pictures.merge_size**2 for grid in found["image_grid_thw"]
        ]
        for size in sizes:
            text = [one.replace("<|image_pad|>", "<|place|>" * size, 1) for one in text]
        text = [one.replace("<|place|>", "<|image_pad|>") for one in text]
        return transformers.BatchFeature({**self.tokenizer(text, **settings), **found})


def opened(tmp_path_factory: pytest.TempPathFactory, kind: str, class_name: str) -> Pair:
    folder = make_checkpoint(tmp_path_factory.mktemp(kind), kind)
    theirs = getattr(diffusers, class_name).from_pretrained(folder, processor=None)
    theirs.processor = Processor(folder)
    theirs.set_progress_bar_config(disable=True)
    encoder = theirs.text_encoder
    read = encoder.forward

    def seeing(**inputs: Any) -> Any:
        kinds = (inputs["input_ids"] == encoder.config.image_token_id).int()
        return read(**inputs, mm_token_type_ids=kinds)

    encoder.forward = seeing
    return Pair(DiffusionPipeline.from_pretrained(folder, backend="torch:cpu"), theirs)


@pytest.fixture(autouse=True)
def of_the_models_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers' sizes are those of the real model; here they are those of the small one."""
    for module in (one_picture, several_pictures):
        right = module.calculate_dimensions

        def small(area: int, ratio: float, right: Any = right) -> Any:
            return tuple(
                n if n is None else max(n, 32) for n in right(area * _AREA / 1024**2, ratio)
            )

        monkeypatch.setattr(module, "calculate_dimensions", small)


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return opened(tmp_path_factory, "qwen-edit", "QwenImageEditPipeline")


@pytest.fixture(scope="module")
def plus(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return opened(tmp_path_factory, "qwen-edit-plus", "QwenImageEditPlusPipeline")


def picture(wide: int, high: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"negative_prompt": LONG, "true_cfg_scale": 2.0},
        {"image": picture(150, 40), "height": 48, "width": 32},
        {"num_images_per_prompt": 2},
    ],
    ids=lambda inputs: "-".join(inputs) or "plain",
)
def test_latents(inputs: dict[str, Any], edit: Pair) -> None:
    edit.check(**{"prompt": SHORT, "image": picture(70, 50), "num_inference_steps": 2, **inputs})


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": picture(70, 50)},
        {"image": [picture(70, 50), picture(33, 90, 1)], "negative_prompt": "x"},
    ],
    ids=["one", "two"],
)
def test_latents_of_several(inputs: dict[str, Any], plus: Pair) -> None:
    plus.check(prompt=LONG, num_inference_steps=2, **inputs)


def test_another_template(edit: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert edit.ours.prompt_template_encode == edit.theirs.prompt_template_encode
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    for pipe in (edit.ours, edit.theirs):
        monkeypatch.setattr(pipe, "prompt_template_encode", f"Look: {place}{{}}!", raising=False)
        monkeypatch.setattr(pipe, "prompt_template_encode_start_idx", 1, raising=False)
    edit.check(prompt=SHORT, image=picture(40, 30))
    edit.ours.prompt_template_encode = "{}"
    with pytest.raises(InputError, match="no place for the picture"):
        edit.ours(prompt=SHORT, image=picture(40, 30), num_inference_steps=2)


def test_pictures(plus: Pair) -> None:
    plus.check_pictures(prompt=SHORT, image=[picture(70, 50), picture(40, 40, 1)])


def test_the_order_of_patches() -> None:
    """Seven by six states in windows of two by two: Transformers' order, and back."""
    grid = Grid(rows=14, columns=12, merge=2, window=4)
    kept = grid.places[grid.seen]
    assert len(np.unique(kept, axis=0)) == len(kept) == 14 * 12
    assert kept[:4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]  # the patches of one state
    firsts = grid.places[::4][grid.states] // 2
    assert np.array_equal(firsts, np.indices((7, 6)).reshape(2, -1).T)


_DRAW = """
import json, sys
import numpy as np
from PIL import Image
from perfuse import DiffusionPipeline
export, drawn, picture, call = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(export)
np.save(drawn, pipe(image=Image.open(picture), **json.loads(call)).images)
assert not {"torch", "transformers", "jinja2"} & set(sys.modules)
"""


@pytest.mark.exhaustive
@pytest.mark.export
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_export_edits_without_torch(format: str, edit: Pair, tmp_path: Path) -> None:
    call = {"prompt": LONG, "negative_prompt": "x", "num_inference_steps": 2, "seed": 1}
    call["output_type"] = "np"
    expected = edit.ours(image=picture(70, 50), **call).images
    picture(70, 50).save(tmp_path / "picture.png")
    edit.ours.export(tmp_path / "export", to=format)
    paths = [str(tmp_path / name) for name in ("export", "drawn.npy", "picture.png")]
    subprocess.run([sys.executable, "-c", _DRAW, *paths, json.dumps(call)], check=True)
    assert np.abs(np.load(tmp_path / "drawn.npy") - expected).max() * 255 <= 2


class TestBadInput:
    def test_no_picture(self, edit: Pair) -> None:
        with pytest.raises(InputError, match="image"):
            edit.ours(prompt=SHORT)

    def test_several_for_one(self, edit: Pair) -> None:
        with pytest.raises(InputError, match="EditPlus"):
            edit.ours(prompt=SHORT, image=[picture(9, 9), picture(9, 9)])

    def test_a_token_of_pictures_in_the_prompt(self, edit: Pair) -> None:
        with pytest.raises(InputError, match="image_pad"):
            edit.ours(prompt="a <|image_pad|>", image=picture(40, 40))

    def test_a_line(self, edit: Pair) -> None:
        with pytest.raises(InputError, match="200"):
            edit.ours(prompt=SHORT, image=picture(1, 6500))
