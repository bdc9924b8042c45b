"""Transformer families beside Diffusers: FLUX.1, Chroma, Stable Diffusion 3 and PixArt."""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from PIL import Image
from tests.oracle.pairs import LATENTS, Pair, make_gentle

import perfuse
from perfuse import DiffusionPipeline
from perfuse.errors import CheckpointError, InputError
from perfuse.models import registry
from perfuse.models.t5_encoder import description, network

exhaustive = pytest.mark.exhaustive
Make = Callable[[str], Path]

PROMPT, OTHER = "a red circle on the white background", "a blue square"
GIVEN: dict[str, Any] = {"prompt": PROMPT, "height": 32, "width": 32, "max_sequence_length": 24}
#: Another length of the prompt, a size that is not square, two prompts with two pictures each.
ODD = {
    **GIVEN,
    "prompt": [PROMPT, OTHER],
    "height": 24,
    "width": 40,
    "max_sequence_length": 16,
    "num_images_per_prompt": 2,
    "num_inference_steps": 2,
}
TRUE = {"negative_prompt": "green", "true_cfg_scale": 3.0}
#: Diffusers' class of each checkpoint, and what it is to be opened with beside the folder.
CLASSES = {
    "flux": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
    "flux-fill": "FluxFillPipeline",
    "flux-kontext": "FluxKontextPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd3-without-t5": "StableDiffusion3Pipeline",
    "chroma": "ChromaPipeline",
    "pixart": "PixArtAlphaPipeline",
    "pixart-sigma": "PixArtSigmaPipeline",
}
WITHOUT: Mapping[str, Any] = {"sd3-without-t5": {"text_encoder_3": None, "tokenizer_3": None}}


def picture() -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask() -> Any:
    pixels = np.zeros((40, 32), dtype=np.uint8)
    pixels[:, :16] = 255
    return Image.fromarray(pixels)


FROM = {**GIVEN, "image": picture(), "num_inference_steps": 5}
MASKED = {**FROM, "mask_image": mask()}
EDITED = {**GIVEN, "image": picture(), "max_area": 1024, "_auto_resize": False}
PLAIN = {**GIVEN, "use_resolution_binning": False, "clean_caption": False}


@pytest.fixture(scope="module")
def pair(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    opened: dict[str, Pair] = {}

    def open_once(kind: str) -> Pair:
        if kind not in opened:
            folder = checkpoint(kind)
            if kind.startswith("pixart"):
                folder = Path(shutil.copytree(folder, tmp_path_factory.mktemp(kind) / kind))
                make_gentle(folder, part="transformer", layer="proj_out")
            opened[kind] = Pair.open(folder, CLASSES[kind], **WITHOUT.get(kind, {}))
        return opened[kind]

    return open_once


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("flux", {**ODD, **TRUE, "negative_prompt": ["green", "a"]}),
        ("sd3", {**ODD, "negative_prompt": "green"}),
        ("chroma", {**ODD, "num_images_per_prompt": 1, "negative_prompt": "green"}),
        ("pixart", {**PLAIN, **ODD}),
        pytest.param("flux", {**GIVEN, "guidance_scale": 6.0}, marks=exhaustive),
        pytest.param("flux", {**GIVEN, "prompt_2": OTHER, "sigmas": [1.0, 0.5]}, marks=exhaustive),
        pytest.param("flux-schnell", {**GIVEN, "guidance_scale": 0.0}, marks=exhaustive),
        pytest.param("flux-schnell", {**GIVEN, **TRUE}, marks=exhaustive),
        pytest.param("flux-fill", MASKED, marks=exhaustive),
        pytest.param("flux-fill", {**MASKED, "strength": 0.6, "height": 24}, marks=exhaustive),
        pytest.param("flux-kontext", {**EDITED, **TRUE}, marks=exhaustive),
        pytest.param("flux-kontext", {**EDITED, "height": 24, "width": 48}, marks=exhaustive),
        pytest.param("flux-kontext", {**EDITED, "image": None}, marks=exhaustive),
        pytest.param("sd3", {**GIVEN, "guidance_scale": 1.0}, marks=exhaustive),
        pytest.param(
            "sd3", {**GIVEN, "prompt_2": OTHER, "prompt_3": "a", "clip_skip": 1}, marks=exhaustive
        ),
        pytest.param(
            "sd3",
            {
                **GIVEN,
                "num_inference_steps": 8,
                "skip_guidance_layers": [1],
                "skip_layer_guidance_start": 0.1,
                "skip_layer_guidance_stop": 0.45,
            },
            marks=exhaustive,
        ),
        pytest.param("chroma", {**GIVEN, "guidance_scale": 1.0}, marks=exhaustive),
        pytest.param("chroma", {**GIVEN, "num_images_per_prompt": 2}, marks=exhaustive),
        pytest.param("sd3-without-t5", GIVEN, marks=exhaustive),
        pytest.param("pixart", {**PLAIN, "guidance_scale": 1.0}, marks=exhaustive),
        pytest.param("pixart-sigma", {**PLAIN, "negative_prompt": "green"}, marks=exhaustive),
    ],
)
def test_from_text(pair: Callable[[str], Pair], kind: str, call: Mapping[str, Any]) -> None:
    both = pair(kind)
    both.check(**call)
    both.check_pictures(**call)


@pytest.mark.parametrize(
    ("kind", "class_name", "call"),
    [
        ("flux", "FluxImg2ImgPipeline", {**FROM, **TRUE, "strength": 0.7}),
        ("flux", "FluxInpaintPipeline", {**MASKED, "strength": 0.7}),
        pytest.param(
            "flux",
            "FluxInpaintPipeline",
            {**MASKED, "strength": 1.0, "height": 24},
            marks=exhaustive,
        ),
        pytest.param(
            "chroma",
            "ChromaImg2ImgPipeline",
            {**FROM, "strength": 0.7, "negative_prompt": "green"},
            marks=exhaustive,
        ),
        pytest.param(
            "sd3", "StableDiffusion3Img2ImgPipeline", {**FROM, "strength": 0.7}, marks=exhaustive
        ),
        pytest.param(
            "sd3", "StableDiffusion3InpaintPipeline", {**MASKED, "strength": 0.7}, marks=exhaustive
        ),
    ],
)
def test_from_pictures(
    pair: Callable[[str], Pair], kind: str, class_name: str, call: Mapping[str, Any]
) -> None:
    # Diffusers' inpainting with SD 3 forgets the shift of its latents when it decodes them.
    pair(kind).like(class_name).check(**call)


def test_sizes_of_the_training(checkpoint: Make, tmp_path: Path) -> None:
    """A model for 256 pixels draws the nearest of its sizes, and pictures are resized to what was asked."""
    from perfuse_conformance.cases.checkpoint_parts import edit_json

    folder = Path(shutil.copytree(checkpoint("pixart-sigma"), tmp_path / "pixart"))
    edit_json(folder / "transformer" / "config.json", sample_size=32)
    edit_json(folder / "model_index.json", _class_name="PixArtAlphaPipeline")
    make_gentle(folder, part="transformer", layer="proj_out")
    both = Pair.open(folder, "PixArtAlphaPipeline")
    asked = {**PLAIN, "use_resolution_binning": True, "height": 56, "width": 40}
    assert both.check_pictures(**asked, num_inference_steps=2).shape == (1, 56, 40, 3)


def test_loras_by_a_call(pair: Callable[[str], Pair]) -> None:
    """Transformers' classes take how much adapters count in ``joint_attention_kwargs``."""
    both = pair("flux")
    generator = torch.Generator().manual_seed(1)
    name, layer = "transformer_blocks.0.attn.to_q", both.theirs.transformer
    width = layer.get_submodule(name).weight.shape[1]
    state = {
        f"transformer.{name}.lora_{factor}.weight": torch.randn(*shape, generator=generator)
        for factor, shape in {"A": (4, width), "B": (width, 4)}.items()
    }
    plain = both.check(**GIVEN, joint_attention_kwargs={})
    both.check(**GIVEN, joint_attention_kwargs={"scale": 0.3})
    for pipe in (both.ours, both.theirs):
        pipe.load_lora_weights(dict(state), adapter_name="one")
    whole = both.check(**GIVEN)
    part = both.check(**GIVEN, joint_attention_kwargs={"scale": 0.3})
    assert np.abs(whole - part).max() > 1e-3 < np.abs(plain - part).max()
    assert np.array_equal(both.check(**GIVEN), whole)
    with pytest.raises(InputError, match="was given joint_attention_kwargs; it takes prompt"):
        both.ours(**GIVEN, joint_attention_kwargs={"ip_hidden_states": 1})
    for pipe in (both.ours, both.theirs):
        pipe.unload_lora_weights()


def test_guidance_that_ends_by_a_callback(pair: Callable[[str], Pair]) -> None:
    from perfuse.callbacks import SD3CFGCutoffCallback

    both = pair("sd3")
    early = SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    ended = both.check(**GIVEN, callback_on_step_end=early)
    assert np.abs(ended - both.check(**GIVEN)).max() > 1e-3


def _drawn(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


#: A call of each transformer by hand, of its config, with the arguments of Diffusers' pipelines.
BY_HAND: dict[str, Callable[[Any], dict[str, Any]]] = {
    "flux": lambda config: {
        "hidden_states": _drawn(2, 6, config.in_channels),
        "timestep": torch.tensor([0.5, 0.25]),
        "guidance": torch.tensor([3.0, 2.0]),
        "pooled_projections": _drawn(2, config.pooled_projection_dim),
        "encoder_hidden_states": _drawn(2, 5, config.joint_attention_dim),
        "txt_ids": torch.zeros(5, 3),
        "img_ids": torch.tensor([[0.0, i, j] for i in range(3) for j in range(2)]),
        "joint_attention_kwargs": {},
    },
    "sd3": lambda config: {
        "hidden_states": _drawn(2, config.in_channels, 8, 8),
        "timestep": torch.tensor([500.0, 20.0]),
        "encoder_hidden_states": _drawn(2, 5, config.joint_attention_dim),
        "pooled_projections": _drawn(2, config.pooled_projection_dim),
        "joint_attention_kwargs": None,
    },
    "sana": lambda config: {
        "hidden_states": _drawn(2, config.in_channels, 8, 8),
        "timestep": torch.tensor([500.0, 20.0]),
        "encoder_hidden_states": _drawn(2, 5, config.caption_channels),
        "encoder_attention_mask": torch.ones(2, 5),
    },
    "lumina2": lambda config: {
        "hidden_states": _drawn(2, config.in_channels, 8, 8),
        "timestep": torch.tensor([0.5, 0.25]),
        "encoder_hidden_states": _drawn(2, 5, config.cap_feat_dim),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    },
    "z-image": lambda config: {
        "x": [_drawn(config.in_channels, 1, 8, 8), -_drawn(config.in_channels, 1, 8, 8)],
        "t": torch.tensor([0.5, 0.25]),
        "cap_feats": [_drawn(5, config.cap_feat_dim), _drawn(7, config.cap_feat_dim)],
    },
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_transformer_by_hand(checkpoint: Make, kind: str) -> None:
    """A loop of the user's own calls ``pipe.transformer`` as Diffusers' pipelines do."""
    drawn = []
    for library in (diffusers, perfuse):
        network = library.AutoModel.from_pretrained(str(checkpoint(kind)), subfolder="transformer")
        assert type(network).__module__.startswith(library.__name__)
        call = BY_HAND[kind](network.config)
        with torch.no_grad():
            (plain,) = network(**call, return_dict=False)
            named = network(**call).sample
        drawn.append((plain, named))
    for theirs, ours in zip(*drawn, strict=True):
        assert type(theirs) is type(ours)
        for one, other in zip(theirs, ours, strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert float((one - other).abs().max()) <= LATENTS
            assert float(one.std()) > 1e-3
    with pytest.raises(InputError, match="was called with hidden_states; perfuse's network takes"):
        network(hidden_states=torch.ones(1, 4, 4))


@exhaustive
@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_loras(pair: Callable[[str], Pair], kind: str) -> None:
    both = pair(kind)
    generator = torch.Generator().manual_seed(1)
    state = {
        f"transformer.{name}.lora_{factor}.weight": 0.2 * torch.randn(*shape, generator=generator)
        for name, layer in both.theirs.transformer.named_modules()
        if isinstance(layer, torch.nn.Linear) and ("attn" in name or "ff" in name)
        for factor, shape in {"A": (4, layer.in_features), "B": (layer.out_features, 4)}.items()
    }
    before, _ = both.run("latent", **GIVEN)
    for pipe in (both.ours, both.theirs):
        pipe.load_lora_weights(dict(state), adapter_name="one")
        pipe.set_adapters(["one"], [0.7])
    ours, theirs = both.run("latent", **GIVEN)
    for pipe in (both.ours, both.theirs):
        pipe.unload_lora_weights()
    assert float((ours - theirs).abs().max()) <= LATENTS
    assert float((ours - before).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["T5", "UMT5"])
@pytest.mark.parametrize("proj", ["gated-gelu", "relu"])
def test_t5(name: str, proj: str) -> None:
    import transformers

    from perfuse_conformance.cases.checkpoint_parts import randomise

    sizes = {
        "vocab_size": 50,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 3,
        "num_heads": 4,
    }
    config = getattr(transformers, f"{name}Config")(**sizes, feed_forward_proj=proj)
    theirs = randomise(getattr(transformers, f"{name}EncoderModel")(config))
    (spec,) = registry.describe(f"{name}EncoderModel", "text_encoder", "t5", config.to_dict())
    ours = network.wrap(spec, theirs)
    ids = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(0))
    seen = torch.ones_like(ids)
    seen[1, 9:] = 0
    given = registry.host_inputs(spec, {"batch": 2, "sequence": 40})
    with torch.no_grad():
        expected = theirs(ids, attention_mask=seen).last_hidden_state
        (found,) = ours(ids, seen, torch.from_numpy(given["position_buckets"]))
    assert float((found - expected).abs().max()) < 5e-6


def test_buckets_of_distances() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-300, 300)
    for count, longest in ((32, 128), (8, 20)):
        theirs = T5Attention._relative_position_bucket(
            torch.from_numpy(distances), True, count, longest
        )
        np.testing.assert_array_equal(description.buckets(distances, count, longest), theirs)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("flux", {"new_kind": 3}, "new_kind=3, which perfuse does not know"),
        ("flux", {"axes_dims_rope": [4, 4, 4]}, "three numbers that add up to attention_head_dim"),
        ("sd3", {"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'"),
        ("pixart", {"norm_type": "ada_norm_zero"}, "norm_type is 'ada_norm_zero'"),
    ],
)
def test_a_variant_that_is_not_known(
    checkpoint: Make, tmp_path: Path, kind: str, changes: Mapping[str, Any], says: str
) -> None:
    from perfuse_conformance.cases.checkpoint_parts import edit_json

    folder = Path(shutil.copytree(checkpoint(kind), tmp_path / kind))
    edit_json(folder / "transformer" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=says):
        DiffusionPipeline.from_pretrained(folder, bridged=False)


def test_what_a_family_cannot_do(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("flux-schnell"), backend="torch:cpu")
    call = {**GIVEN, "num_inference_steps": 1, "seed": 0, "output_type": "latent"}
    with pytest.raises(InputError, match="multiples of 4, for example 28 or 32"):
        pipe(**{**call, "height": 30})
    with pytest.raises(InputError, match="at most 512 tokens"):
        pipe(**{**call, "max_sequence_length": 600})
    with pytest.warns(UserWarning, match="guidance_embeds is false in its config"):
        pipe(**{**call, "guidance_scale": 5.0})
    with pytest.warns(UserWarning, match="without a negative prompt"):
        pipe(**{**call, "true_cfg_scale": 2.0})
    with pytest.warns(UserWarning, match="was cut off: 'circle"):
        pipe(**{**call, "prompt": "a red circle " * 10})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(**{**call, "guidance_scale": 0.0})
