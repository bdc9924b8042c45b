"""The depth estimator and its image processor against Transformers', and the pipeline with Diffusers'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from PIL import Image
from tests.oracle.pairs import Pair, make_gentle

import perfuse.models
from perfuse import DiffusionPipeline
from perfuse.arrays.image_processor import ImageProcessor
from perfuse.errors import CheckpointError, InputError
from perfuse_conformance.checkpoints import dpt_config, make_checkpoint, randomise

_PLAIN = {
    "is_hybrid": False,
    "backbone_config": None,
    "patch_size": 8,
    "reassemble_factors": [4, 2, 1, 0.5],
    "neck_hidden_sizes": [8, 16, 24, 32],
}
CASES: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "hybrid, odd": {"image_size": 80, "head_in_index": 2, "qkv_bias": False},
    "plain": _PLAIN,
    "plain, add, norm": {
        **_PLAIN,
        "readout_type": "add",
        "use_batch_norm_in_fusion_residual": True,
        "backbone_out_indices": [0, 1, 2, 3],
    },
    "plain, ignore, projection": {
        **_PLAIN,
        "readout_type": "ignore",
        "add_projection": True,
        "fusion_hidden_size": 256,
    },
}


def estimators(fields: dict[str, Any]) -> tuple[Any, Any]:
    config = {**dpt_config(), **fields}
    theirs = transformers.DPTForDepthEstimation(transformers.DPTConfig(**config))
    randomise(theirs, seed=1)
    with torch.no_grad():
        theirs.head.head[4].bias += 1  # depth is nowhere below zero, and should not be zero
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=torch.Generator().manual_seed(2))
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(3))
    mine = perfuse.models.DPTForDepthEstimation(**config)
    mine.load_state_dict(theirs.state_dict())
    return theirs.eval(), mine.eval()


@pytest.mark.parametrize("case", CASES)
def test_estimator(case: str) -> None:
    theirs, mine = estimators(CASES[case])
    size = mine.config.image_size
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted, (found,) = theirs(pictures).predicted_depth, mine(pictures)
    assert found.shape == wanted.shape == (2, mine.config.depth_size, mine.config.depth_size)
    assert wanted.std() > 1e-2
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": {"height": 48, "width": 40}, "resample": 2},
        {
            "size": {"height": 64, "width": 64},
            "keep_aspect_ratio": True,
            "ensure_multiple_of": 16,
            "image_mean": [0.4, 0.5, 0.6],
        },
    ],
)
def test_image_processor(config: dict[str, Any]) -> None:
    theirs = transformers.DPTImageProcessor(**config)
    mine = ImageProcessor.from_config({**config, "image_processor_type": "DPTImageProcessor"})
    again = ImageProcessor.from_config(mine.to_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (50, 75, 3), dtype=np.uint8)
    wanted = theirs(images=[Image.fromarray(pixels)], return_tensors="np").pixel_values
    for one in (mine, again):
        found = one(pixels).pixel_values
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-6


def test_pipeline(tmp_path: Path) -> None:
    folder = make_gentle(make_checkpoint(tmp_path / "depth", "depth-estimated"))
    models = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None
    ).components
    estimator = transformers.DPTForDepthEstimation.from_pretrained(folder / "depth_estimator")
    for unused in ("safety_checker", "feature_extractor", "image_encoder"):
        models.pop(unused, None)
    theirs = diffusers.StableDiffusionDepth2ImgPipeline(
        **models,
        depth_estimator=estimator,
        feature_extractor=transformers.DPTImageProcessor.from_pretrained(
            folder / "feature_extractor", size={"height": 64, "width": 64}
        ),
    )
    theirs.set_progress_bar_config(disable=True)
    pair = Pair(DiffusionPipeline.from_pretrained(folder, backend="torch:cpu"), theirs)
    given = {"prompt": "a red circle", "image": picture(0), "strength": 0.7}
    pair.check_pictures(3, **given)
    drawn = pair.check(3, **given)
    flat = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 1, 16).repeat(16, axis=1)
    assert np.abs(drawn - pair.check(3, **given, depth_map=torch.from_numpy(flat))).max() > 1e-3
    pair.check(3, prompt=["a circle"] * 2, image=[picture(1), picture(2)], strength=0.7)
    ours = pair.ours
    same = {"num_inference_steps": 4, "seed": 3, "strength": 0.7, "output_type": "np"}
    arrays = ours("a circle", image=np.asarray(picture(1)), **same).images
    assert np.abs(arrays - ours("a circle", image=picture(1), **same).images).max() < 1e-5
    with pytest.raises(InputError, match="Latents were given as image, whose depth"):
        ours("a circle", image=torch.zeros(1, 4, 8, 8))
    bare = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", depth_estimator=None)
    with pytest.raises(InputError, match="has no depth estimator here"):
        bare("a circle", image=picture(0))
    ours.feature_extractor = {"image_processor_type": "DPTImageProcessor", "size": 48}
    with pytest.raises(InputError, match=r"depth_estimator takes pixel_values of shape"):
        ours("a circle", image=picture(0))


def picture(seed: int) -> Image.Image:
    """A picture of smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((24, 16), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"readout_type": "add"}, "readout_type is 'add'; this model takes project"),
        ({"backbone_config": {"layer_type": "preactivation"}}, "layer_type is 'preactivation'"),
        ({"is_hybrid": False}, "backbone_config is that of another model, 'bit'"),
        ({"image_size": 70}, "a number that divides image_size, 70"),
        ({"backbone_out_indices": [0, 1, 2, 4]}, "layers below 4"),
        ({"neck_hidden_sizes": [16, 24, 32, 32]}, "widths of the backbone's first stages"),
    ],
)
def test_config_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        perfuse.models.DPTForDepthEstimation(**{**dpt_config(), **fields})
