"""Sana and Sana-Sprint beside Diffusers': same weights, same seed."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.pairs import Pair, make_gentle

from perfuse.errors import CheckpointError, InputError
from perfuse.models.building import wrap
from perfuse.models.registry import describe, host_inputs
from perfuse_conformance.cases.checkpoint_parts import randomise

exhaustive = pytest.mark.exhaustive

SHORT, LONG = "A red circle", "a blue square on the white background " * 4
#: Diffusers draws in sizes of the training, of which this model has none.
SMALL: dict[str, Any] = {
    "prompt": SHORT,
    "height": 32,
    "width": 32,
    "max_sequence_length": 24,
    "use_resolution_binning": False,
    "complex_human_instruction": ["Given a prompt, say more of it:", "User Prompt: "],
}
ODD = {
    **SMALL,
    "prompt": [SHORT, LONG],
    "height": 32,
    "width": 64,
    "max_sequence_length": 40,
    "num_inference_steps": 2,
}
#: Without one, tokens of a prompt alone; ``None`` stands for the instruction that is usual.
PLAIN = {**SMALL, "complex_human_instruction": []}


@pytest.fixture(scope="module")
def pair(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Pair]:
    opened: dict[str, Pair] = {}

    def open_once(kind: str) -> Pair:
        if kind not in opened:
            name = {"sana": "SanaPipeline", "sana-sprint": "SanaSprintPipeline"}[kind]
            folder = shutil.copytree(checkpoint(kind), tmp_path_factory.mktemp(kind) / kind)
            make_gentle(folder, part="transformer", layer="proj_out", factor=0.3)
            opened[kind] = Pair.open(folder, name)
        return opened[kind]

    return open_once


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("sana", {**ODD, "negative_prompt": "green"}),
        ("sana-sprint", {**SMALL, "num_inference_steps": 2}),
        pytest.param("sana", SMALL, marks=exhaustive),
        pytest.param("sana", PLAIN, marks=exhaustive),
        pytest.param("sana", {**SMALL, "guidance_scale": 1.0, "prompt": LONG}, marks=exhaustive),
        pytest.param("sana", {**ODD, "num_images_per_prompt": 1}, marks=exhaustive),
        pytest.param("sana", {**SMALL, "num_images_per_prompt": 2}, marks=exhaustive),
        pytest.param(
            "sana",
            {name: one for name, one in SMALL.items() if not name.startswith("complex")},
            marks=exhaustive,
        ),
        pytest.param(
            "sana-sprint",
            {**ODD, "num_inference_steps": 3, "intermediate_timesteps": None},
            marks=exhaustive,
        ),
        pytest.param(
            "sana-sprint",
            {**SMALL, "num_inference_steps": 2, "guidance_scale": 1.0},
            marks=exhaustive,
        ),
    ],
)
def test_from_text(pair: Callable[[str], Pair], kind: str, call: Mapping[str, Any]) -> None:
    both = pair(kind)
    both.check(**call)
    both.check_pictures(**call)


@exhaustive
def test_prompts_of_several_pictures_keep_their_masks(pair: Callable[[str], Pair]) -> None:
    """Diffusers 0.42 repeats masks in another order than states; ours are those of one prompt each."""
    both = pair("sana")
    call = {**ODD, "num_inference_steps": 1, "output_type": "latent"}
    whole = both.ours(**call, num_images_per_prompt=2, seed=[1, 2, 3, 4]).images
    for i, prompt in enumerate(call["prompt"]):
        own = {**call, "prompt": prompt, "num_images_per_prompt": 2}
        alone = both.ours(**own, seed=[1 + 2 * i, 2 + 2 * i]).images
        assert float((alone - whole[2 * i : 2 * i + 2]).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "fields",
    [
        {"interpolation_scale": 2.0},
        pytest.param({"timestep_scale": 0.001, "out_channels": 8}, marks=exhaustive),
        pytest.param({"patch_size": 2, "attention_bias": True}, marks=exhaustive),
    ],
    ids=lambda fields: "-".join(fields),
)
def test_the_transformer(fields: Mapping[str, Any]) -> None:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 24,
        "sample_size": 8,
        **fields,
    }
    theirs = randomise(diffusers.SanaTransformer2DModel(**config))
    (spec,) = describe("SanaTransformer2DModel", "transformer", "transformer", config)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 6, 10, generator=generator)
    text = torch.randn(2, 7, 24, generator=generator)
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    step = torch.tensor([700.0, 20.0])
    sizes = {"batch": 2, "latent_height": 6, "latent_width": 10, "sequence": 7}
    more = [torch.from_numpy(one) for one in host_inputs(spec, sizes).values()]
    with torch.no_grad():
        (ours,) = wrap(spec, theirs)(sample, step, text, mask, *more)
        scaled = step * theirs.config.timestep_scale
        expected = theirs(sample, text, scaled, encoder_attention_mask=mask).sample
    assert float((ours - expected[:, :4]).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {
            "downsample_block_type": "Conv",
            "upsample_block_type": "interpolate",
            "encoder_layers_per_block": [0, 1, 2],
            "decoder_layers_per_block": [0, 1, 2],
        },
        pytest.param(
            {
                "encoder_out_shortcut": False,
                "decoder_in_shortcut": False,
                "decoder_act_fns": ["relu", "silu", "silu"],
            },
            marks=exhaustive,
        ),
    ],
    ids=lambda fields: "-".join(fields) or "plain",
)
def test_the_autoencoder(fields: Mapping[str, Any]) -> None:
    kinds = ["ResBlock", "ResBlock", "EfficientViTBlock"]
    config = {
        "latent_channels": 4,
        "attention_head_dim": 8,
        "encoder_block_types": kinds,
        "decoder_block_types": kinds,
        "encoder_block_out_channels": [8, 16, 32],
        "decoder_block_out_channels": [8, 16, 32],
        "encoder_layers_per_block": [1, 1, 1],
        "decoder_layers_per_block": [1, 1, 2],
        "encoder_qkv_multiscales": [[], [], [5]],
        "decoder_qkv_multiscales": [[], [], [3, 5]],
        **fields,
    }
    theirs = randomise(diffusers.AutoencoderDC(**config), 1)
    encoder, decoder = describe("AutoencoderDC", "vae", "vae", config)
    picture = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (ours,) = wrap(encoder, theirs)(picture)
        latents = theirs.encode(picture).latent
        assert float((ours - latents).abs().max()) < 1e-5
        (drawn,) = wrap(decoder, theirs)(latents)
        assert float((drawn - theirs.decode(latents).sample).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("class_name", "change", "said"),
    [
        ("SanaTransformer2DModel", {"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'"),
        ("SanaTransformer2DModel", {"cross_attention_dim": 8}, "cross_attention_dim is 8"),
        ("AutoencoderDC", {"decoder_norm_types": "batch_norm"}, "decoder_norm_types"),
        ("AutoencoderDC", {"encoder_block_types": ["ResBlock"]}, "as many values of each kind"),
    ],
)
def test_other_variants_are_refused(class_name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        describe(class_name, "model", "model", change)


def test_what_it_does_not_take(pair: Callable[[str], Pair]) -> None:
    pipe = pair("sana").ours
    with pytest.raises(InputError, match="multiples of 2"):
        pipe(**{**SMALL, "height": 31})
    with pytest.raises(InputError, match="must be lines of text"):
        pipe(**{**SMALL, "complex_human_instruction": "say more"})
    with pytest.warns(UserWarning, match="was cut off"):
        pipe(**{**SMALL, "prompt": LONG, "num_inference_steps": 1})
