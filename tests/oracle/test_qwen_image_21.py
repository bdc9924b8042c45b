"""Qwen-Image 2.1's pictures against Diffusers': same weights, same seed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from tests.oracle.pairs import LATENTS, Pair

from perfuse import DiffusionPipeline
from perfuse.errors import CheckpointError
from perfuse.models.building import wrap
from perfuse.models.qwen_image_21_transformer.description import picture_place
from perfuse.models.registry import describe, host_inputs
from perfuse.tasks.prompts.language import causal_bias
from perfuse_conformance.cases.checkpoint_parts import edit_json, randomise

exhaustive = pytest.mark.exhaustive

SHORT, LONG = "a red circle", "a blue square on the white background " * 9
SMALL: dict[str, Any] = {"prompt": SHORT, "height": 16, "width": 24}
GUIDED = {"negative_prompt": "x", "true_cfg_scale": 3.0}


def processor(folder: Path) -> Any:
    """Transformers' processor without eyes, whose video half needs torchvision."""
    made = transformers.Qwen3VLProcessor.__new__(transformers.Qwen3VLProcessor)
    made.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    made.image_processor = made.video_processor = None
    made.chat_template = (folder / "chat_template.jinja").read_text("utf-8")
    made.image_token = made.video_token = "<|image_pad|>"
    made.image_token_id = made.tokenizer.convert_tokens_to_ids(made.image_token)
    made.video_token_id = made.image_token_id
    return made


@pytest.fixture(scope="module")
def pair(checkpoint: Callable[[str], Path]) -> Pair:
    folder = checkpoint("qwen-image-21")
    both = Pair.open(folder, "QwenImage21Pipeline", processor=processor(folder / "processor"))
    both.theirs.vae_scale_factor = 4  # which is 16 there, whatever the autoencoder
    return both


@pytest.mark.parametrize(
    "inputs",
    [
        {
            **GUIDED,
            "prompt": [SHORT, LONG],
            "negative_prompt": ["x", LONG],
            "num_images_per_prompt": 2,
        },
        pytest.param({}, marks=exhaustive),
        pytest.param({**GUIDED, "prompt": LONG, "negative_prompt": ""}, marks=exhaustive),
        pytest.param({"height": 24, "width": 16, "sigmas": [1.0, 0.5]}, marks=exhaustive),
    ],
    ids=lambda inputs: "-".join(inputs) or "plain",
)
def test_from_text(pair: Pair, inputs: Mapping[str, Any]) -> None:
    pair.check(**{**SMALL, **inputs})
    drawn = pair.check_pictures(**{**SMALL, **inputs})
    assert drawn.shape[-1] == 4  # with transparency


def test_encode_prompt(pair: Pair) -> None:
    with torch.no_grad():
        wanted = pair.theirs.encode_prompt([SHORT, LONG], None, "cpu")
    found = pair.ours.encode_prompt([SHORT, LONG], None, "cpu")
    assert np.abs(np.asarray(found[0]) - wanted[0].numpy()).max() <= 1e-4
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(found[1:], wanted[1:], strict=True))


@pytest.mark.parametrize("causal", [True, False])
def test_transformer(causal: bool) -> None:
    """Texts of two lengths, filled up at their end."""
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "context_in_dim": 32,
        "axes_dims_rope": [4, 4, 8],
        "causal_condition": causal,
    }
    theirs = randomise(diffusers.QwenImage21Transformer2DModel(**config), 1)
    (spec,) = describe("QwenImage21Transformer2DModel", "transformer", "transformer", config)
    generator = torch.Generator().manual_seed(0)
    texts, height, width = 7, 4, 6
    sample = torch.randn(2, height * width, 4, generator=generator)
    states = torch.randn(2, texts, 32, generator=generator)
    seen = torch.ones(2, texts, dtype=torch.int64)
    seen[1, 4:] = 0
    sizes = {"batch": 2, "sequence": texts, "latent_height": height, "latent_width": width}
    tables = {"picture_rotary": picture_place(spec, 2, texts), **host_inputs(spec, sizes)}
    given = {name: torch.from_numpy(table) for name, table in tables.items()}
    bias = torch.from_numpy(causal_bias(seen.numpy()))
    told = torch.tensor([900.0, 300.0])
    slots = torch.zeros(2, texts + height * width // 4, dtype=torch.bool)
    slots[:, texts:] = True
    with torch.no_grad():
        (ours,) = wrap(spec, theirs)(sample, told, states, bias, **given)
        (whole,) = theirs(
            sample,
            states,
            told / 1000,
            [[(1, height, width)]] * 2,
            slots,
            encoder_hidden_states_mask=seen,
            return_dict=False,
        )
    assert (ours - whole[:, -height * width :]).abs().max() < 1e-5


def test_the_autoencoder() -> None:
    config = {
        "base_dim": 8,
        "decoder_base_dim": 12,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [False, True],
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    }
    theirs = randomise(diffusers.AutoencoderKLQwenImage21(**config), 1)
    encoder, decoder = describe("AutoencoderKLQwenImage21", "vae", "vae", config)
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(2, 4, 24, 16, generator=generator)
    latents = torch.randn(2, 4, 6, 4, generator=generator)
    with torch.no_grad():
        (moments,) = wrap(encoder, theirs)(picture)
        (drawn,) = wrap(decoder, theirs)(latents)
        encoded = theirs.encode(picture[:, :, None]).latent_dist.parameters[:, :, 0]
        decoded = theirs.decode(latents[:, :, None]).sample[:, :, 0]
    assert (moments - encoded).abs().max() < 1e-5
    assert (drawn.clamp(-1, 1) - decoded).abs().max() < 1e-5


def test_levels_of_the_author(checkpoint: Callable[[str], Path], pair: Pair) -> None:
    """A checkpoint of few steps says which; ``sigmas`` of a call come before them."""
    folder = checkpoint("qwen-image-21")
    index = folder / "model_index.json"
    edit_json(index, sample_sigmas=[1.0, 0.7, 0.2])
    try:
        few = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    finally:
        edit_json(index, sample_sigmas=None)
    call = {**SMALL, "seed": 0, "output_type": "latent"}
    expected = pair.ours(**call, sigmas=[1.0, 0.7, 0.2]).images
    assert torch.equal(few(**call).images, expected)
    other = pair.ours(**call, sigmas=[1.0, 0.5]).images
    assert torch.equal(few(**call, sigmas=[1.0, 0.5]).images, other)


@exhaustive
def test_loras(pair: Pair) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {
        f"transformer.{name}.lora_{factor}.weight": 0.2 * torch.randn(*shape, generator=generator)
        for name, layer in pair.theirs.transformer.named_modules()
        if isinstance(layer, torch.nn.Linear) and ("attn" in name or "mlp" in name)
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
    assert float((ours - before).abs().max()) > 0.01


def test_guidance_by_halves(pair: Pair) -> None:
    for half in ({"true_cfg_scale": 3.0}, {"negative_prompt": "x"}, {"guidance_scale": 3.0}):
        with pytest.warns(UserWarning, match="give both or neither"):
            pair.ours(**SMALL, **half, num_inference_steps=2)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("QwenImage21Transformer2DModel", {"patch_size": 2}, "patch_size is 2"),
        ("QwenImage21Transformer2DModel", {"new": 1}, "new=1"),
        ("AutoencoderKLQwenImage21", {"is_residual": False}, "is_residual is False"),
    ],
)
def test_other_variants_are_refused(name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        describe(name, "part", "part", change)
