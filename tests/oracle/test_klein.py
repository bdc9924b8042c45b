"""FLUX.2 klein's pictures against Diffusers': same weights, same seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.pairs import LATENTS, Pair

from perfuse.errors import CheckpointError, InputError
from perfuse.models.building import wrap
from perfuse.models.registry import describe
from perfuse_conformance.cases.checkpoint_parts import edit_json, randomise, vae_config
from perfuse_conformance.checkpoints import make_checkpoint

SHORT, LONG = "a red circle", "a blue square on the white background " * 9
SMALL = {"height": 16, "width": 16, "max_sequence_length": 48}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = make_checkpoint(tmp_path_factory.mktemp("klein") / "base", "klein")
    return Pair.open(folder, "Flux2KleinPipeline")


def normalised(pipe: Any, latents: Any) -> Any:
    """Diffusers' latents as the loop has them: it gives them out unpacked and denormalised."""
    norm = pipe.vae.bn
    mean, deviation = norm.running_mean, torch.sqrt(norm.running_var + norm.eps)
    patches = pipe._patchify_latents(latents)
    patches = (patches - mean[None, :, None, None]) / deviation[None, :, None, None]
    return pipe._pack_latents(patches)


def check(pair: Pair, seed: Any = 0, **inputs: Any) -> None:
    ours, theirs = pair.run("latent", seed, **inputs)
    theirs = normalised(pair.theirs, theirs)
    assert ours.shape == theirs.shape
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() <= LATENTS


@pytest.mark.parametrize(
    "inputs",
    [{}, {"guidance_scale": 1.0}, {"prompt": LONG}, {"height": 16, "width": 28}],
    ids=lambda inputs: "-".join(inputs) or "plain",
)
def test_latents(inputs: dict[str, Any], pair: Pair) -> None:
    check(pair, **{"prompt": SHORT, **SMALL, **inputs})


def test_several_prompts_and_pictures(pair: Pair) -> None:
    check(pair, [1, 2, 3, 4], prompt=[SHORT, LONG], num_images_per_prompt=2, **SMALL)


def test_other_layers_of_the_text_encoder(pair: Pair) -> None:
    given = {"prompt": SHORT, "num_inference_steps": 2, **SMALL}
    check(pair, **given, text_encoder_out_layers=(3, 20, 28))  # the last one is normed
    check(pair, **given, text_encoder_out_layers=(-2, 0, 5))
    check(pair, **given)
    drawn = [
        pair.ours(**given, seed=0, output_type="np", **more).images
        for more in ({}, {"text_encoder_out_layers": [3, 20, 28]})
    ]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    theirs = pair.theirs.encode_prompt(SHORT, None, 1, None, 16, (1, 2, 3))
    ours = pair.ours.encode_prompt(SHORT, None, 1, None, 16, (1, 2, 3))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((9, 18), "Give 3 that differ, of 0 to 28"),
        ((9, 9, 18), "Give 3 that differ"),
        ((9, -20, 18), "Give 3 that differ"),
        ((9, 18, 29), "has 28 layers"),
        ("9+18", "give the numbers of layers"),
    ],
)
def test_layers_that_there_are_not(layers: Any, said: str, pair: Pair) -> None:
    with pytest.raises(InputError, match=said):
        pair.ours(prompt=SHORT, text_encoder_out_layers=layers, **SMALL)


def test_pictures(pair: Pair) -> None:
    pair.check_pictures(prompt=SHORT, **SMALL)


def test_a_distilled_model_has_no_guidance(pair: Pair) -> None:
    from perfuse import DiffusionPipeline

    folder = Path(pair.theirs.config._name_or_path)
    edit_json(folder / "model_index.json", is_distilled=True)
    ours = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    edit_json(folder / "model_index.json", is_distilled=False)
    call = {"prompt": SHORT, "num_inference_steps": 2, "output_type": "np", "seed": 0, **SMALL}
    with pytest.warns(UserWarning, match="distilled"):
        guided = ours(**call, guidance_scale=3.0).images
    assert np.array_equal(guided, ours(**call).images)
    assert np.array_equal(guided, pair.ours(**call, guidance_scale=1.0).images)


def test_the_autoencoder() -> None:
    """A decoder of other widths than the encoder, and a batch norm with statistics."""
    config = vae_config(latent_channels=4, decoder_block_out_channels=[24, 32])
    theirs = randomise(diffusers.AutoencoderKLFlux2(**config), 1)
    generator = torch.Generator().manual_seed(0)
    theirs.bn.running_mean.normal_(generator=generator)
    theirs.bn.running_var.uniform_(0.5, 2.0, generator=generator)
    encoder, decoder = describe("AutoencoderKLFlux2", "vae", "vae", config)
    picture = torch.randn(2, 3, 16, 24, generator=generator)
    mean, deviation = theirs.bn.running_mean, torch.sqrt(theirs.bn.running_var + theirs.bn.eps)
    with torch.no_grad():
        (ours,) = wrap(encoder, theirs)(picture)
        means = theirs.encode(picture).latent_dist.mean
        patches = diffusers.Flux2KleinPipeline._patchify_latents(means)
        patches = (patches - mean[None, :, None, None]) / deviation[None, :, None, None]
        assert (ours - patches).abs().max() < 1e-5
        (drawn,) = wrap(decoder, theirs)(patches)
        assert (drawn - theirs.decode(means).sample).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "said"), [({"axes_dims_rope": [4, 4, 8]}, "axes"), ({"kv_heads": 2}, "kv_heads=2")]
)
def test_other_variants_are_refused(change: dict[str, Any], said: str) -> None:
    config = {"attention_head_dim": 16, "axes_dims_rope": [4, 4, 4, 4]}
    with pytest.raises(CheckpointError, match=said):
        describe("Flux2Transformer2DModel", "transformer", "transformer", {**config, **change})


@pytest.mark.parametrize("sizes", [[(64, 72)], [(72, 64), (66, 71)]], ids=["one", "two"])
def test_editing(sizes: list[tuple[int, int]], pair: Pair) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes
    ]
    check(pair, prompt=SHORT, image=images, max_sequence_length=48, own={"image": list(images)})
