"""AuraFlow's pictures against Diffusers': same weights, same seed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.pairs import LATENTS, Pair

from perfuse.errors import CheckpointError, InputError
from perfuse.models.building import wrap
from perfuse.models.registry import describe, host_inputs
from perfuse_conformance.cases.checkpoint_parts import randomise

exhaustive = pytest.mark.exhaustive

SHORT, LONG = "a red circle", "a blue square on the white background " * 4
SMALL: dict[str, Any] = {"prompt": SHORT, "height": 16, "width": 24, "max_sequence_length": 40}


@pytest.fixture(scope="module")
def pair(checkpoint: Callable[[str], Path]) -> Pair:
    return Pair.open(checkpoint("aura-flow"), "AuraFlowPipeline")


@pytest.mark.parametrize(
    "inputs",
    [
        {"prompt": [SHORT, LONG], "negative_prompt": "green", "num_images_per_prompt": 2},
        pytest.param({"height": 16, "width": 16, "max_sequence_length": 256}, marks=exhaustive),
        pytest.param({"prompt": LONG, "guidance_scale": 1.0}, marks=exhaustive),
        pytest.param({"sigmas": [1.0, 0.6]}, marks=exhaustive),
    ],
    ids=lambda inputs: "-".join(inputs),
)
def test_from_text(pair: Pair, inputs: Mapping[str, Any]) -> None:
    pair.check(**{**SMALL, **inputs})
    pair.check_pictures(**{**SMALL, **inputs})


def test_an_odd_table_of_places() -> None:
    """The picture lies in the middle of the learned places, as Diffusers rounds it."""
    config = {
        "in_channels": 4,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "caption_projection_dim": 16,
        "pos_embed_max_size": 81,
    }
    theirs = randomise(diffusers.AuraFlowTransformer2DModel(**config), 1)
    (spec,) = describe("AuraFlowTransformer2DModel", "transformer", "transformer", config)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 10, 6, generator=generator)
    text = torch.randn(2, 5, 24, generator=generator)
    places = host_inputs(spec, {"batch": 2, "latent_height": 10, "latent_width": 6})["places"]
    told = torch.tensor([8.0, 0.0])  # Diffusers rounds thousandths of it, more for larger ones
    with torch.no_grad():
        (ours,) = wrap(spec, theirs)(sample, told, text, torch.from_numpy(places))
        expected = theirs(sample, text, told / 1000).sample
    assert (ours - expected).abs().max() < 1e-5


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
    with pytest.raises(InputError, match="multiples of 4"):
        pair.ours(**{**SMALL, "height": 18})
    with pytest.raises(InputError, match="latent_height of at most 32"):
        pair.ours(**{**SMALL, "height": 128})


@pytest.mark.parametrize(
    ("change", "said"),
    [({"caption_projection_dim": 16}, "caption_projection_dim is 16"), ({"new": 1}, "new=1")],
)
def test_other_variants_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        describe("AuraFlowTransformer2DModel", "transformer", "transformer", change)
