"""Lumina 2's pictures against Diffusers': same weights, same seed."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.pairs import Pair, make_gentle

from perfuse.errors import CheckpointError, InputError
from perfuse.models.registry import describe

exhaustive = pytest.mark.exhaustive

SHORT, LONG = "a red circle", "a blue square on the white background " * 4
SMALL: dict[str, Any] = {
    "prompt": SHORT,
    "height": 16,
    "width": 16,
    "max_sequence_length": 60,
    "system_prompt": "Draw this:",
}


@pytest.fixture(scope="module")
def pair(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = shutil.copytree(checkpoint("lumina2"), tmp_path_factory.mktemp("lumina") / "lumina2")
    make_gentle(folder, part="transformer", layer="norm_out.linear_2", factor=0.3)
    both = Pair.open(folder, "Lumina2Pipeline")
    both.theirs.vae_scale_factor = 2  # which is 8 there, whatever the autoencoder
    return both


@pytest.mark.parametrize(
    "inputs",
    [
        {"prompt": [SHORT, LONG], "height": 16, "width": 32, "num_inference_steps": 2},
        pytest.param({}, marks=exhaustive),
        pytest.param({"guidance_scale": 1.0, "prompt": LONG}, marks=exhaustive),
        pytest.param({"cfg_normalization": False, "negative_prompt": ["green"]}, marks=exhaustive),
        pytest.param({"cfg_trunc_ratio": 0.6, "num_inference_steps": 5}, marks=exhaustive),
        pytest.param({"num_images_per_prompt": 2}, marks=exhaustive),
        pytest.param({"system_prompt": None, "max_sequence_length": 256}, marks=exhaustive),
    ],
    ids=lambda inputs: "-".join(inputs) or "plain",
)
def test_from_text(pair: Pair, inputs: Mapping[str, Any]) -> None:
    # Diffusers takes negative prompts as lists where prompts are.
    call = {**SMALL, **inputs}
    if isinstance(call.get("negative_prompt"), list):
        call["prompt"] = [call["prompt"]]
    pair.check(**call)
    pair.check_pictures(**call)


def test_what_a_caller_makes_of_the_system_prompt(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pair.ours.system_prompt == pair.theirs.system_prompt
    for pipe in (pair.ours, pair.theirs):
        monkeypatch.setattr(pipe, "system_prompt", "Draw:", raising=False)
    own, given = ({**SMALL, "system_prompt": told} for told in (None, "Draw:"))
    assert np.array_equal(pair.check(**own), pair.check(**given))


def test_what_it_does_not_take(pair: Pair) -> None:
    with pytest.raises(InputError, match="at most 299 tokens"):
        pair.ours(**{**SMALL, "max_sequence_length": 300})
    with pytest.raises(InputError, match="multiples of 4"):
        pair.ours(**{**SMALL, "height": 18})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"axes_dim_rope": [32, 32, 16]}, "axes that make up a head"),
        ({"num_kv_heads": 7}, "num_kv_heads is 7"),
        ({"kinds": 2}, "kinds=2"),
    ],
)
def test_other_variants_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        describe("Lumina2Transformer2DModel", "transformer", "transformer", change)
