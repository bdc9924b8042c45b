"""ControlNets and T2I-Adapters against Diffusers': the networks, and pipelines with them."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image
from tests.oracle.pairs import Pair, make_gentle
from tests.oracle.test_models import pair

from perfuse import DiffusionPipeline
from perfuse.models import describe
from perfuse_conformance.checkpoints import (
    adapter_config,
    controlnet_config,
    edit_json,
    make_checkpoint,
    randomise,
)

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5

CONTROLNET: dict[str, Any] = {
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "conditioning_embedding_out_channels": [4, 8],
}
_XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}


def same(mine: Any, theirs: Any) -> None:
    """Every output agrees, relative to its largest value."""
    for own, other in zip(mine, theirs, strict=True):
        assert own.shape == other.shape
        assert float((own - other).abs().max()) <= TOLERANCE * float(other.abs().max())
        assert float(other.std()) > 1e-3


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"controlnet_conditioning_channel_order": "bgr", "layers_per_block": 2},
        {"global_pool_conditions": True},
        {"conditioning_embedding_out_channels": [4, 8, 8, 16], "conditioning_channels": 1},
        {"num_class_embeds": 5},
        {"mid_block_type": "UNetMidBlock2D", "use_linear_projection": True},
        _XL,
    ],
)
def test_controlnet(fields: dict[str, Any], guess: bool) -> None:
    config = {**CONTROLNET, **fields}
    theirs, mine = pair("ControlNetModel", config)
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> Any:
        return torch.randn(shape, generator=generator)

    scale = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    picture = torch.rand(
        2, config.get("conditioning_channels", 3), 7 * scale, 9 * scale, generator=generator
    )
    given: dict[str, Any] = {"guess_mode": guess, "return_dict": False}
    if fields is _XL:
        given["added_cond_kwargs"] = {"text_embeds": drawn(2, 32), "time_ids": 99 * drawn(2, 6)}
    if "num_class_embeds" in fields:
        given["class_labels"] = torch.tensor([1, 4])
    inputs = (drawn(2, 4, 7, 9), torch.tensor([3, 700]), drawn(2, 5, 16), picture, 0.7)
    with torch.no_grad():
        (down, mid), (other_down, other_mid) = mine(*inputs, **given), theirs(*inputs, **given)
    same((*down, mid), (*other_down, other_mid))
    (spec,) = describe("ControlNetModel", "controlnet", "controlnet", config)
    dims = {"batch": 2, "latent_height": 7, "latent_width": 9}
    said = [tensor.resolve(dims) for tensor in spec.signature.outputs]
    assert said == [tuple(one.shape) for one in (*down, mid)]


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": [8, 16, 16]},
        {"channels": [8, 16, 32, 32], "downscale_factor": 4, "adapter_type": "full_adapter_xl"},
        {"channels": [8, 16], "adapter_type": "light_adapter", "in_channels": 1},
    ],
)
def test_adapter(fields: dict[str, Any]) -> None:
    config = adapter_config(num_res_blocks=2, **fields)
    theirs, mine = pair("T2IAdapter", config)
    picture = torch.rand(2, config.get("in_channels", 3), 20, 28)
    with torch.no_grad():
        features = mine(picture)
        same(features, theirs(picture))
    assert mine.total_downscale_factor == theirs.total_downscale_factor
    (spec,) = describe("T2IAdapter", "adapter", "adapter", config)
    said = [one.resolve({"batch": 2, "height": 20, "width": 28}) for one in spec.signature.outputs]
    assert said == [tuple(one.shape) for one in features]


# Pipelines


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


A, B, ODD = picture(1), picture(2), picture(3, (29, 19))
MASK = Image.fromarray(np.repeat([[0, 255]], [10, 14], axis=1).repeat(16, 0).astype(np.uint8))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """``opened("sd1", CLASS, "one")``: both pipelines with these nets."""
    folders: dict[str, Path] = {}
    made: dict[str, Any] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            new = tmp_path_factory.mktemp("control") / kind
            folders[kind] = make_gentle(make_checkpoint(new, kind))
        return folders[kind]

    def net(kind: str, name: str) -> Any:
        if (key := f"{kind} {name}") in made:
            return made[key]
        unet = json.loads((folder(kind) / "unet" / "config.json").read_text())
        known = inspect.signature(diffusers.ControlNetModel.__init__).parameters
        config = {n: value for n, value in controlnet_config(unet).items() if n in known}
        if name == "pooled":
            config |= {
                "global_pool_conditions": True,
                "controlnet_conditioning_channel_order": "bgr",
            }
        model = diffusers.ControlNetModel(**config)
        if name.startswith("adapter"):
            xl = {"downscale_factor": 4, "adapter_type": "full_adapter_xl"}
            model = diffusers.T2IAdapter(**adapter_config(**(xl if kind == "sdxl" else {})))
        made[key] = randomise(model, len(made) + 5)
        return made[key]

    def open_pair(kind: str, class_name: str, *names: str) -> Pair:
        part = "adapter" if names[0].startswith("adapter") else "controlnet"
        nets = [net(kind, name) for name in names]
        given = nets[0] if len(nets) == 1 else nets
        more = {"add_watermarker": False} if "XLControlNet" in class_name else {}
        key = f"{kind} {class_name} {names}"
        if key not in made:
            theirs = getattr(diffusers, class_name).from_pretrained(
                folder(kind), **{part: given}, **more
            )
            theirs.set_progress_bar_config(disable=True)
            ours = DiffusionPipeline.from_pretrained(
                folder(kind), backend="torch:cpu", **{part: given}
            )
            made[key] = Pair(ours, theirs)
        return made[key]

    return open_pair


_SD, _XL_CLASS = "StableDiffusion", "StableDiffusionXL"
_TWO: dict[str, Any] = {
    "image": [A, B],
    "controlnet_conditioning_scale": [0.5, 0.9],
    "control_guidance_start": [0.0, 0.5],
    "control_guidance_end": [0.5, 1.0],
}
_PART: dict[str, Any] = {"image": A, "control_image": B, "mask_image": MASK}
_SIZE: dict[str, Any] = {"height": 16, "width": 24}

PIPELINES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "one": ("ControlNet", ("one",), {"image": A}),
    "its size": (
        "ControlNet",
        ("one",),
        {"image": ODD, "controlnet_conditioning_scale": 0.6, "num_images_per_prompt": 2},
    ),
    "a batch": (
        "ControlNet",
        ("one",),
        {"prompt": ["a", "the red"], "image": [A, B], "num_images_per_prompt": 2},
    ),
    "a tensor": ("ControlNet", ("one",), {"image": torch.rand(1, 3, 16, 24)}),
    "guess mode": ("ControlNet", ("one",), {"image": A, "guess_mode": True}),
    "guess mode without guidance": (
        "ControlNet",
        ("one",),
        {"image": A, "guess_mode": True, "guidance_scale": 1.0},
    ),
    "a part of the steps": (
        "ControlNet",
        ("one",),
        {"image": A, "control_guidance_start": 0.3, "control_guidance_end": 0.8},
    ),
    "pooled": ("ControlNet", ("pooled",), {"image": A}),
    "two": ("ControlNet", ("one", "two"), _TWO),
    "two, one of them pooled": (
        "ControlNet",
        ("one", "pooled"),
        {"image": [A, B], "guess_mode": True},
    ),
    "two for each of two prompts": (
        "ControlNet",
        ("one", "two"),
        {"prompt": ["a", "the red"], "image": [[A, B], [B, A]]},
    ),
    "image to image": (
        "ControlNetImg2Img",
        ("one",),
        {"image": A, "control_image": B, "strength": 0.6},
    ),
    "inpainting": ("ControlNetInpaint", ("one",), {**_PART, **_SIZE}),
    "adapter": ("Adapter", ("adapter",), {"image": A, "adapter_conditioning_scale": 0.7}),
    "two adapters": (
        "Adapter",
        ("adapter", "adapter two"),
        {"image": [A, B], "adapter_conditioning_scale": [0.7, 0.3], "num_images_per_prompt": 2},
    ),
}
PIPELINES_XL: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "one": ("ControlNet", ("one",), {"image": A}),
    "two in guess mode": ("ControlNet", ("one", "two"), {"image": [A, B], "guess_mode": True}),
    "image to image": ("ControlNetImg2Img", ("one",), {"image": A, "control_image": B}),
    "inpainting": ("ControlNetInpaint", ("one",), {**_PART, **_SIZE, "strength": 0.7}),
    "adapter": (
        "Adapter",
        ("adapter",),
        {"image": A, "adapter_conditioning_scale": 0.7, "adapter_conditioning_factor": 0.5},
    ),
}


@pytest.mark.parametrize("case", PIPELINES)
def test_pipeline(opened: Callable[..., Pair], case: str) -> None:
    kind, names, inputs = PIPELINES[case]
    both = opened("sd1", f"{_SD}{kind}Pipeline", *names)
    both.check(1, **{"prompt": "a red circle", **inputs})


@pytest.mark.parametrize("case", PIPELINES_XL)
def test_pipeline_xl(opened: Callable[..., Pair], case: str) -> None:
    kind, names, inputs = PIPELINES_XL[case]
    both = opened("sdxl", f"{_XL_CLASS}{kind}Pipeline", *names)
    both.check(1, **{"prompt": "a red circle", **inputs})


def test_padding_crops_the_picture_to_follow(opened: Callable[..., Pair]) -> None:
    both = opened("sd1", f"{_SD}ControlNetInpaintPipeline", "one")
    both.check_pictures(1, prompt="a red circle", **_PART, **_SIZE, padding_mask_crop=2)


def test_what_diffusers_saves_with_several_nets(
    opened: Callable[..., Pair], tmp_path: Path
) -> None:
    both = opened("sd1", f"{_SD}ControlNetPipeline", "one", "two")
    both.theirs.save_pretrained(tmp_path / "saved")
    saved = DiffusionPipeline.from_pretrained(tmp_path / "saved", backend="torch:cpu")
    assert [n for n in saved.spec.components if "control" in n] == ["controlnet", "controlnet_1"]
    given: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "seed": 1, **_TWO}
    assert np.array_equal(saved("a", **given).images, both.ours("a", **given).images)
    # And folder by folder, into the plain checkpoint.
    edit_json(
        tmp_path / "saved" / "model_index.json",
        _class_name="StableDiffusionPipeline",
        controlnet=...,
    )
    nets = [tmp_path / "saved" / name for name in ("controlnet", "controlnet_1")]
    again = DiffusionPipeline.from_pretrained(
        tmp_path / "saved", backend="torch:cpu", controlnet=nets
    )
    assert np.array_equal(again("a", **given).images, saved("a", **given).images)
