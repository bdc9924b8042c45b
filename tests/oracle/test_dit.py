"""DiT's pictures of classes against Diffusers': same weights, same seed."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.pairs import LATENTS, Pair, make_gentle, stack

from perfuse import DiffusionPipeline
from perfuse.errors import CheckpointError, InputError
from perfuse.models.registry import describe
from perfuse_conformance.cases.checkpoint_parts import edit_json

exhaustive = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Path(shutil.copytree(checkpoint("dit"), tmp_path_factory.mktemp("dit") / "dit"))
    return make_gentle(made, part="transformer", layer="proj_out_2")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return Pair.open(folder, "DiTPipeline")


@pytest.mark.parametrize(
    "inputs",
    [
        {"class_labels": [3, 999]},
        pytest.param({"class_labels": [3], "guidance_scale": 1.0}, marks=exhaustive),
        pytest.param({"class_labels": [1, 1000], "guidance_scale": 7.0}, marks=exhaustive),
    ],
    ids=str,
)
def test_classes(pair: Pair, inputs: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, vae = [], pair.theirs.vae
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: drawn.append(z) or decode(z))
    ours, theirs = (stack(images) for images in pair.run("pil", **inputs))
    assert ours.std() > 5
    assert np.abs(ours - theirs).max() <= 1
    latents = pair.ours(**inputs, seed=0, num_inference_steps=4, output_type="latent").images
    difference = latents - drawn[0] * vae.config.scaling_factor
    assert float(difference.abs().max()) <= LATENTS


def test_names_and_sizes(pair: Pair) -> None:
    call = {"seed": [1, 2], "num_inference_steps": 2, "output_type": "np", "width": 24}
    named = pair.ours(class_labels=["ring", "blue square"], **call).images
    for pipe in (pair.theirs, pair.ours):
        assert pipe.get_label_ids(["ring", "blue square"]) == [0, 1]
    assert list(pair.ours.labels.items()) == list(pair.theirs.labels.items())
    assert named.shape == (2, 16, 24, 3)
    assert np.array_equal(named, pair.ours([0, 1], **call).images)
    assert np.array_equal(named, pair.ours(np.array([0, 1]), **call).images)


@pytest.mark.parametrize(
    ("label", "said"), [("a cat", "blue square, red circle"), (1001, "0 to 999"), (0.5, "0 to 999")]
)
def test_a_class_that_is_not_there(pair: Pair, label: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pair.ours(class_labels=[label], num_inference_steps=1)


def test_the_class_of_before(folder: Path, pair: Pair, tmp_path: Path) -> None:
    """Checkpoints of its authors name the class that it was a part of, and that's fields."""
    older = Path(shutil.copytree(folder, tmp_path / "older"))
    name, fields = "Transformer2DModel", {"cross_attention_dim": None, "num_vector_embeds": None}
    edit_json(older / "model_index.json", transformer=["diffusers", name])
    edit_json(older / "transformer" / "config.json", _class_name=name, **fields)
    pipe = DiffusionPipeline.from_pretrained(older, backend="torch:cpu")
    call = {"class_labels": [5], "seed": 0, "num_inference_steps": 2, "output_type": "np"}
    assert np.array_equal(pipe(**call).images, pair.ours(**call).images)
    edit_json(older / "transformer" / "config.json", num_vector_embeds=4)
    with pytest.raises(CheckpointError, match="num_vector_embeds=4"):
        DiffusionPipeline.from_pretrained(older, backend="torch:cpu")


@pytest.mark.parametrize(
    ("class_name", "change", "said"),
    [
        ("DiTTransformer2DModel", {"norm_type": "layer_norm"}, "norm_type is 'layer_norm'"),
        ("DiTTransformer2DModel", {"new": 1}, "new=1"),
        ("Transformer2DModel", {"norm_type": "layer_norm"}, "which DiT and PixArt have"),
    ],
)
def test_other_variants_are_refused(class_name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        describe(class_name, "transformer", "transformer", change)
