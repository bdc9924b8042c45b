"""Qwen-Image 2.1's pictures against Diffusers': same weights, same seed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.pipelines.qwenimage21 import pipeline_qwenimage21
from PIL import Image
from tests.oracle.pairs import LATENTS, Pair

from perfuse import DiffusionPipeline
from perfuse.errors import CheckpointError, InputError
from perfuse.models.building import wrap
from perfuse.models.qwen_image_21_transformer.description import PictureAmongWords, told_of
from perfuse.models.registry import describe, host_inputs
from perfuse_conformance.cases.checkpoint_parts import edit_json, randomise

exhaustive = pytest.mark.exhaustive

SHORT, LONG = "a red circle", "a blue square on the white background " * 9
SMALL: dict[str, Any] = {"prompt": SHORT, "height": 16, "width": 24}
GUIDED = {"negative_prompt": "x", "true_cfg_scale": 3.0}


def processor(folder: Path) -> Any:
    """Transformers' processor without its video half, which needs torchvision."""
    made = transformers.Qwen3VLProcessor.__new__(transformers.Qwen3VLProcessor)
    made.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    made.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    made.video_processor = None
    made.chat_template = (folder / "chat_template.jinja").read_text("utf-8")
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    made.image_token_id = made.tokenizer.convert_tokens_to_ids(made.image_token)
    made.video_token_id = -1  # which no word has
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


def picture(wide: int, high: int, seed: int = 0) -> Image.Image:
    """One that is transparent here and there."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    return Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "inputs",
    [
        {**GUIDED, "image": [picture(70, 50), picture(150, 15, 1).convert("RGB")]},
        pytest.param({"image": picture(70, 50)}, marks=exhaustive),
        pytest.param(
            {"image": picture(40, 60), "prompt": [SHORT, LONG], "num_images_per_prompt": 2},
            marks=exhaustive,
        ),
    ],
    ids=["two", "one", "several"],
)
def test_from_pictures(
    pair: Pair, inputs: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diffusers' sizes are those of the real model; here they are those of the small one."""
    right = pipeline_qwenimage21.calculate_dimensions

    def small(area: int, ratio: float) -> Any:
        sides = right(area * 16**2 / 1024**2, ratio)
        return tuple(side if side is None else max(side, 32) for side in sides)

    monkeypatch.setattr(pipeline_qwenimage21, "calculate_dimensions", small)
    pair.check(**{**SMALL, **inputs})
    text, _ = pair.run("latent", **{**SMALL, "num_inference_steps": 2})
    seen, _ = pair.run("latent", **{**SMALL, **inputs, "num_inference_steps": 2})
    assert float((text[:1] - seen[:1]).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"output_resolution": 31}, (24, 24)),  # of multiples of 8
        ({"output_resolution": 24, "width": 16, "use_kv_cache": False}, (24, 16)),
        ({"output_resolution": 48, "image": picture(70, 50)}, (32, 64)),
        ({"output_resolution": 48, "image": picture(70, 50), "height": 16}, (16, 64)),
    ],
    ids=["square", "width", "picture", "height"],
)
def test_the_resolution(pair: Pair, given: Mapping[str, Any], shape: tuple[int, int]) -> None:
    drawn = pair.check_pictures(prompt=SHORT, num_inference_steps=2, **given)
    assert drawn.shape[1:3] == shape


@pytest.mark.parametrize(("side", "said"), [(7, "multiples of 8"), (0, "at least 1")])
def test_a_resolution_that_there_is_not(pair: Pair, side: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pair.ours(SHORT, output_resolution=side)


def test_a_picture_needs_the_prompt_itself(pair: Pair) -> None:
    with pytest.raises(InputError, match="Give the prompt"):
        pair.ours(image=picture(40, 40), prompt_embeds=np.zeros((1, 3, 32), np.float32))


def test_encode_prompt(pair: Pair) -> None:
    with torch.no_grad():
        wanted = pair.theirs.encode_prompt([SHORT, LONG], None, "cpu")
    found = pair.ours.encode_prompt([SHORT, LONG], None, "cpu")
    assert np.abs(np.asarray(found[0]) - wanted[0].numpy()).max() <= 1e-4
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(found[1:], wanted[1:], strict=True))


@pytest.mark.parametrize(("causal", "pictures"), [(True, False), (False, False), (True, True)])
def test_transformer(causal: bool, pictures: bool) -> None:
    """Texts of two lengths, filled up at their end; with a picture among the words."""
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
    # A picture of 2×4 latents, which has the place of two words.
    shown = torch.randn(8, 4, generator=generator) if pictures else torch.empty(0, 4)
    place = PictureAmongWords(tokens=shown.numpy(), height=2, width=4, start=1, words=2)
    sizes = {"batch": 2, "sequence": texts, "latent_height": height, "latent_width": width}
    words = [one[: int(mask.sum())].numpy() for one, mask in zip(states, seen, strict=True)]
    tables = told_of(spec, words, [place] if pictures else [])
    given = {n: torch.tensor(one) for n, one in {**tables, **host_inputs(spec, sizes)}.items()}
    told = torch.tensor([900.0, 300.0])
    slots = torch.zeros(2, texts + height * width // 4, dtype=torch.bool)
    slots[:, texts:] = True
    if pictures:
        slots[:, 1:3] = True
    with torch.no_grad():
        (ours,) = wrap(spec, theirs)(sample, told, **given)
        (whole,) = theirs(
            torch.cat([shown.expand(2, -1, -1), sample], dim=1) if pictures else sample,
            states,
            told / 1000,
            [[*([(1, 2, 4)] if pictures else []), (1, height, width)]] * 2,
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
