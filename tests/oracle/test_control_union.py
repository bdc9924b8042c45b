"""ControlNet-Union against Diffusers': the network, and pipelines with one or several."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.oracle.pairs import Pair, make_gentle
from tests.oracle.test_control import CONTROLNET, MASK, A, B, same
from tests.oracle.test_models import pair

from perfuse import DiffusionPipeline
from perfuse.models import describe
from perfuse_conformance.checkpoints import make_checkpoint, randomise, union_config

pytestmark = pytest.mark.slow

XL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}
UNION: dict[str, Any] = {
    **CONTROLNET,
    **XL,
    "num_trans_channel": 16,
    "num_proj_channel": 16,
    "num_trans_head": 4,
}


@pytest.mark.parametrize(
    ("modes", "given"),
    [
        ([2], {"conditioning_scale": 0.7}),
        ([3, 0], {"conditioning_scale": [0.7, 0.4]}),
        ([3, 0, 3], {"conditioning_scale": 0.7, "guess_mode": True}),
        ([1, 2], {"conditioning_scale": 0.7, "from_multi": True}),
    ],
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        pytest.param(
            {"num_control_type": 8, "num_trans_layer": 2, "global_pool_conditions": True},
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_network(fields: dict[str, Any], modes: list[int], given: dict[str, Any]) -> None:
    config = {**UNION, **fields}
    theirs, mine = pair("ControlNetUnionModel", config)
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> Any:
        return torch.randn(shape, generator=generator)

    # The pictures differ in the batch: the items of a batch see each other.
    pictures = [torch.rand(3, 3, 14, 18, generator=generator) for _ in modes]
    kinds = torch.zeros(3, config.get("num_control_type", 6))
    kinds[:, modes] = 1
    inputs = (drawn(3, 4, 7, 9), torch.tensor([3, 700, 2]), drawn(3, 5, 16), pictures, kinds, modes)
    added = {"text_embeds": drawn(3, 32), "time_ids": 99 * drawn(3, 6)}
    settings = {**given, "added_cond_kwargs": added, "return_dict": False}
    with torch.no_grad():
        (down, mid), (other_down, other_mid) = (net(*inputs, **settings) for net in (mine, theirs))
    same((*down, mid), (*other_down, other_mid))
    (spec,) = describe("ControlNetUnionModel", "controlnet", "controlnet", config)
    dims = {"batch": 3, "latent_height": 7, "latent_width": 9}
    said = [tensor.resolve(dims) for tensor in spec.signature.outputs]
    assert said == [tuple(one.shape) for one in (*down, mid)]


# Pipelines

_CLASS = "StableDiffusionXLControlNetUnion"
_TWO: dict[str, Any] = {"control_image": [A, B], "control_mode": [0, 3]}
PIPELINES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "one picture": (
        "",
        1,
        {"control_image": [A], "control_mode": [3], "controlnet_conditioning_scale": 0.6},
    ),
    "two pictures for their parts of the steps": (
        "",
        1,
        {
            **_TWO,
            "controlnet_conditioning_scale": [0.5, 0.9],
            "control_guidance_start": [0.0, 0.5],
            "control_guidance_end": [0.6, 0.9],
        },
    ),
    # With guidance Diffusers' own raises an error there: it doubles control_type, and nothing else.
    "guess mode": ("", 1, {**_TWO, "guess_mode": True, "guidance_scale": 1.0}),
    "a picture for each prompt": (
        "",
        1,
        {
            "prompt": ["a", "the red"],
            "control_image": [[A, B], [B, A]],
            "control_mode": [1, 2],
            "num_images_per_prompt": 2,
        },
    ),
    "two nets": ("", 2, {**_TWO, "controlnet_conditioning_scale": [0.5, 0.9]}),
    "image to image": ("Img2Img", 1, {"image": B, "control_image": [A], "control_mode": [1]}),
    "inpainting": (
        "Inpaint",
        1,
        {"image": B, "mask_image": MASK, **_TWO, "height": 16, "width": 24},
    ),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Pair]:
    """``opened("Img2Img", 1)``: both pipelines for a task, with one net or two."""
    folder: Path = make_gentle(make_checkpoint(tmp_path_factory.mktemp("union") / "xl", "sdxl"))
    unet = json.loads((folder / "unet" / "config.json").read_text())
    known = inspect.signature(diffusers.ControlNetUnionModel.__init__).parameters
    config = {n: value for n, value in union_config(unet).items() if n in known}
    nets = [randomise(diffusers.ControlNetUnionModel(**config), seed) for seed in (5, 6)]
    made: dict[tuple[str, int], Pair] = {}

    def open_pair(word: str, count: int) -> Pair:
        if (word, count) not in made:
            given: Any = nets[0] if count == 1 else nets[:count]
            theirs = getattr(diffusers, f"{_CLASS}{word}Pipeline").from_pretrained(
                folder, controlnet=given, add_watermarker=False
            )
            theirs.set_progress_bar_config(disable=True)
            ours = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", controlnet=given)
            made[word, count] = Pair(ours, theirs)
        return made[word, count]

    return open_pair


#: The others are those of ``make conformance``.
_DEFAULT = ("two pictures for their parts of the steps", "a picture for each prompt")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.exhaustive] if case not in _DEFAULT else [])
        for case in PIPELINES
    ],
)
def test_pipeline(opened: Callable[[str, int], Pair], case: str) -> None:
    word, count, inputs = PIPELINES[case]
    opened(word, count).check(1, **{"prompt": "a red circle", **inputs})
