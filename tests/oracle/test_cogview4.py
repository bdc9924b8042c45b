"""CogView 4's pictures against Diffusers': same weights, same seed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.pairs import LATENTS, Pair

from perfuse.errors import CheckpointError, InputError
from perfuse.models.registry import describe

exhaustive = pytest.mark.exhaustive

SHORT, LONG = "a red circle", "a blue square on the white background " * 4
SMALL: dict[str, Any] = {"prompt": SHORT, "height": 16, "width": 32}


@pytest.fixture(scope="module")
def pair(checkpoint: Callable[[str], Path]) -> Pair:
    return Pair.open(checkpoint("cogview4"), "CogView4Pipeline")


@pytest.mark.parametrize(
    "inputs",
    [
        {
            "prompt": [SHORT, LONG],
            "negative_prompt": ["green", LONG],
            "height": 32,
            "width": 16,
            "num_images_per_prompt": 2,
        },
        pytest.param({"prompt": LONG, "guidance_scale": 1.0}, marks=exhaustive),
        pytest.param({"sigmas": [1.0, 0.8, 0.5, 0.2]}, marks=exhaustive),
        pytest.param({"timesteps": [999, 700, 300, 5], "max_sequence_length": 5}, marks=exhaustive),
        pytest.param(
            {"original_size": (64, 48), "crops_coords_top_left": (2, 3)}, marks=exhaustive
        ),
    ],
    ids=lambda inputs: "-".join(inputs),
)
def test_from_text(pair: Pair, inputs: Mapping[str, Any]) -> None:
    pair.check(**{**SMALL, **inputs})
    pair.check_pictures(**{**SMALL, **inputs})


@exhaustive
def test_loras(pair: Pair) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {
        f"transformer.{name}.lora_{factor}.weight": 0.2 * torch.randn(*shape, generator=generator)
        for name, layer in pair.theirs.transformer.named_modules()
        if isinstance(layer, torch.nn.Linear) and ("attn" in name or "ff" in name)
        for factor, shape in {"A": (4, layer.in_features), "B": (layer.out_features, 4)}.items()
    }
    before, _ = pair.run("latent", **SMALL)
    for pipe in (pair.ours, pair.theirs):
        pipe.load_lora_weights(dict(state), adapter_name="one")
        pipe.set_adapters(["one"], [0.7])
    ours, theirs = pair.run("latent", **SMALL)
    for pipe in (pair.ours, pair.theirs):
        pipe.unload_lora_weights()
    assert float((ours - theirs).abs().max()) <= LATENTS
    assert float((ours - before).abs().max()) > 0.1


def test_what_it_does_not_take(pair: Pair) -> None:
    with pytest.raises(InputError, match="two whole numbers"):
        pair.ours(**SMALL, original_size=64)
    with pytest.raises(InputError, match="multiples of 4"):
        pair.ours(**{**SMALL, "height": 18})


@pytest.mark.parametrize(
    ("change", "said"),
    [({"out_channels": 4}, "out_channels is 4"), ({"new": 1}, "new=1")],
)
def test_other_variants_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        describe("CogView4Transformer2DModel", "transformer", "transformer", change)
