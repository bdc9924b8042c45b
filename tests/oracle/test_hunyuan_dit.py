"""Hunyuan-DiT's pictures against Diffusers': same weights, same seed."""

import itertools
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit import pipeline_hunyuandit
from tests.oracle.pairs import LATENTS, Pair, make_gentle, stack

from perfuse import DiffusionPipeline
from perfuse.errors import CheckpointError, InputError
from perfuse.models.bert import network as bert_network
from perfuse.models.hunyuan_transformer import network
from perfuse.models.registry import describe, host_inputs
from perfuse.run.tools import PipelineTools
from perfuse.tasks.hunyuan_dit import trained_size
from perfuse_conformance.cases.checkpoint_parts import (
    edit_json,
    randomise,
    write_bert,
    write_checker,
    write_model,
)
from perfuse_conformance.cases.checkpoints import STRICT

SHORT, LONG = "a red circle", "a blue square on the white background " * 9
ASKED: dict[str, Any] = {"height": 32, "width": 48, "use_resolution_binning": False}
SMALL: dict[str, Any] = {"prompt": SHORT, **ASKED}
#: What a small transformer has, and others of its fields that change what it computes.
SIZES = {
    "in_channels": 4,
    "patch_size": 2,
    "num_layers": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "cross_attention_dim": 24,
    "cross_attention_dim_t5": 16,
    "pooled_projection_dim": 12,
    "text_len": 7,
    "text_len_t5": 9,
}


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("hunyuan") / "hunyuan"
    made = Path(shutil.copytree(checkpoint("hunyuan-dit"), copy))
    return make_gentle(made, part="transformer", layer="proj_out")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return Pair.open(folder, "HunyuanDiTPipeline")


# Whole pictures


@pytest.mark.parametrize(
    "inputs",
    [
        {"prompt": [SHORT, LONG], "negative_prompt": ["green", LONG]},
        {"num_images_per_prompt": 2, "height": 64, "width": 32},
        {"prompt": LONG, "guidance_scale": 1.0, "height": 48},
        {"guidance_scale": 7.0, "guidance_rescale": 0.7},
        {"original_size": (64, 48), "target_size": (80, 16), "crops_coords_top_left": (2, 3)},
    ],
    ids=lambda inputs: "-".join(inputs),
)
def test_from_text(pair: Pair, inputs: Mapping[str, Any]) -> None:
    pair.check(**{**SMALL, **inputs})
    pair.check_pictures(**{**SMALL, **inputs})


def states_of(pair: Pair, texts: list[str], others: list[str]) -> dict[str, Any]:
    """The states of prompts and of negative ones, by the names of a call, from Diffusers'."""
    given: dict[str, Any] = {}
    for index, end in enumerate(("", "_2")):
        found = pair.theirs.encode_prompt(
            texts, negative_prompt=others, text_encoder_index=index, num_images_per_prompt=1
        )
        names = ("prompt_embeds", "negative_prompt_embeds")
        masks = ("prompt_attention_mask", "negative_prompt_attention_mask")
        given |= {
            f"{name}{end}": one.detach() for name, one in zip(names + masks, found, strict=True)
        }
    return given


def test_states_in_place_of_prompts(pair: Pair) -> None:
    given = states_of(pair, [SHORT, LONG], ["green", "a"])
    drawn = pair.check(**ASKED, **given)
    pair.check(**ASKED, **{name: one for name, one in given.items() if "negative" not in name})
    words = pair.ours(
        [SHORT, LONG],
        negative_prompt=["green", "a"],
        **ASKED,
        num_inference_steps=4,
        seed=0,
        output_type="latent",
    ).images
    assert np.abs(words.numpy() - drawn).max() <= LATENTS


def test_tensors_of_a_callback(pair: Pair) -> None:
    """The same tensors are shown, and what is returned is drawn with."""
    names = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "prompt_embeds_2",
        "negative_prompt_embeds_2",
    ]

    def run(pipe: Any, **more: Any) -> tuple[Any, list[dict[str, Any]]]:
        shown = []

        def call_back(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            shown.append({"timestep": int(timestep), **{n: t.clone() for n, t in tensors.items()}})
            if index:
                return {}
            return {
                "latents": 0.9 * tensors["latents"],
                "prompt_embeds_2": 0.5 * tensors["prompt_embeds_2"],
            }

        call = {**SMALL, "num_inference_steps": 3, "output_type": "latent", **more}
        call |= {"callback_on_step_end": call_back, "callback_on_step_end_tensor_inputs": names}
        return pipe(**call).images, shown

    ours, seen = run(pair.ours, seed=0)
    theirs, expected = run(pair.theirs, generator=torch.Generator().manual_seed(0))
    assert len(seen) == len(expected) == 3
    for one, other in zip(seen, expected, strict=True):
        assert one["timestep"] == other["timestep"]
        # What was returned is of both conditions here; there the negative one is kept apart, unused.
        for name in names if one is seen[0] else ["latents", "prompt_embeds_2"]:
            assert one[name].shape == other[name].shape
            assert float((one[name] - other[name]).abs().max()) <= LATENTS
    assert float((ours - theirs).abs().max()) <= LATENTS


def test_loras(pair: Pair) -> None:
    """Diffusers' pipeline loads none, so that its weights are changed by hand."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    for part in ("transformer", "text_encoder"):
        for name, layer in getattr(pair.theirs, part).named_modules():
            own = ("attn", "ff", "skip") if part == "transformer" else ("attention",)
            if not isinstance(layer, torch.nn.Linear) or not any(one in name for one in own):
                continue
            down = 0.2 * torch.randn(4, layer.in_features, generator=generator)
            up = 0.2 * torch.randn(layer.out_features, 4, generator=generator)
            state[f"{part}.{name}.lora_A.weight"] = down
            state[f"{part}.{name}.lora_B.weight"] = up
            changed[f"{part}.{name}"] = (layer, up @ down)
    check_lora(pair, state, changed)


def test_loras_of_tencent_s_script(pair: Pair) -> None:
    """Theirs have one layer for queries, keys and values, and others' names."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    for i, block in enumerate(pair.theirs.transformer.blocks):
        own, text = block.attn1, block.attn2
        for name, layers in {
            "attn1.Wqkv": [own.to_q, own.to_k, own.to_v],
            "attn1.out_proj": [own.to_out[0]],
            "attn2.q_proj": [text.to_q],
            "attn2.kv_proj": [text.to_k, text.to_v],
            "attn2.out_proj": [text.to_out[0]],
            "mlp.fc1": [block.ff.net[0].proj],
            "mlp.fc2": [block.ff.net[2]],
            "default_modulation.1": [block.norm1.linear],
        }.items():
            down = 0.2 * torch.randn(4, layers[0].in_features, generator=generator)
            rows = sum(layer.out_features for layer in layers)
            up = 0.2 * torch.randn(rows, 4, generator=generator)
            place = f"base_model.model.blocks.{i}.{name}"
            state |= {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up}
            parts = (up @ down).split([layer.out_features for layer in layers])
            pairs = enumerate(zip(layers, parts, strict=True))
            changed |= {f"{place}.{n}": one for n, one in pairs}
    check_lora(pair, state, changed)


def check_lora(pair: Pair, state: dict[str, Any], changed: dict[str, Any]) -> None:
    """A LoRA draws what Diffusers' layers do with what it adds to each of them."""
    before, _ = pair.run("latent", **SMALL)
    pair.ours.load_lora_weights(dict(state), adapter_name="one")
    pair.ours.set_adapters(["one"], [0.7])
    with torch.no_grad():
        for layer, delta in changed.values():
            layer.weight += 0.7 * delta
    ours, theirs = pair.run("latent", **SMALL)
    pair.ours.unload_lora_weights()
    with torch.no_grad():
        for layer, delta in changed.values():
            layer.weight -= 0.7 * delta
    assert float((ours - theirs).abs().max()) <= LATENTS
    assert float((ours - before).abs().max()) > 0.1


def test_later_versions_are_told_no_sizes(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "later"))
    fields = {"use_style_cond_and_image_meta_size": False, "sample_size": 8, "text_len_t5": 256}
    write_model(
        copy / "transformer",
        "HunyuanDiT2DModel",
        {**SIZES, "cross_attention_dim_t5": 32, "text_len": 77, **fields},
        5,
    )
    make_gentle(copy, part="transformer", layer="proj_out")
    later = Pair.open(copy, "HunyuanDiTPipeline")
    drawn = later.check(**SMALL)
    assert np.array_equal(drawn, later.check(**SMALL, original_size=(64, 48)))


def test_a_safety_checker(folder: Path, tmp_path: Path) -> None:
    copy = write_checker(Path(shutil.copytree(folder, tmp_path / "checked")), threshold=STRICT)
    checked = Pair.open(copy, "HunyuanDiTPipeline")
    call = {**SMALL, "prompt": [SHORT, LONG], "num_inference_steps": 2, "return_dict": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, found = checked.ours(**call, seed=0)
        theirs, expected = checked.theirs(**call, generator=torch.Generator().manual_seed(0))
    assert found == expected
    assert np.abs(stack(ours) - stack(theirs)).max() <= 1


# Parts


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_style_cond_and_image_meta_size": False, "learn_sigma": False, "num_layers": 6},
        {"activation_fn": "geglu", "mlp_ratio": 1.5, "patch_size": 4, "num_layers": 2},
    ],
    ids=str,
)
def test_transformer(fields: Mapping[str, Any]) -> None:
    config = {**SIZES, **fields}
    theirs = randomise(diffusers.HunyuanDiT2DModel(**config))
    (spec,) = describe("HunyuanDiT2DModel", "transformer", "transformer", config)
    ours = network.wrap(spec, theirs)
    generator = torch.Generator().manual_seed(0)
    height, width, patch = 8, 24, config["patch_size"]
    sizes = {"batch": 2, "latent_height": height, "latent_width": width}
    states, states_t5 = (
        torch.randn(2, length, channels, generator=generator)
        for length, channels in ((7, 24), (9, 16))
    )
    masks = [torch.ones(2, length, dtype=torch.int64) for length in (7, 9)]
    masks[0][1, 3:] = masks[1][0, 5:] = 0
    told = torch.tensor([[512.0, 384, 64, 192, 3, 5], [1024, 1024, 64, 192, 0, 0]])
    sample = torch.randn(2, 4, height, width, generator=generator)
    timestep = torch.tensor([999.0, 13.0])
    grid = height // patch, width // patch
    corners = pipeline_hunyuandit.get_resize_crop_region_for_grid(grid, 64 // patch)
    rotary = get_2d_rotary_pos_embed(8, corners, grid)
    tables = {n: torch.from_numpy(one) for n, one in host_inputs(spec, sizes).items()}
    given = (sample, timestep, states, masks[0], states_t5, masks[1], *tables.values())
    if config.get("use_style_cond_and_image_meta_size", True):
        given = (*given, told)
    with torch.no_grad():
        expected = theirs(
            sample,
            timestep,
            encoder_hidden_states=states,
            text_embedding_mask=masks[0],
            encoder_hidden_states_t5=states_t5,
            text_embedding_mask_t5=masks[1],
            image_meta_size=told,
            style=torch.zeros(2, dtype=torch.int64),
            image_rotary_emb=rotary,
        ).sample[:, :4]
        (found,) = ours(*given)
    assert found.shape == expected.shape == sample.shape
    assert float((found - expected).abs().max()) < 1e-5
    with torch.no_grad():  # what is masked is not read
        (again,) = ours(*given[:2], states.masked_fill(masks[0][..., None] == 0, 9.0), *given[3:])
    assert torch.equal(again, found)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (130, 96), (2, 2), (128, 160)])
def test_places(height: int, width: int) -> None:
    (spec,) = describe("HunyuanDiT2DModel", "transformer", "transformer", SIZES)
    grid = height // 2, width // 2
    corners = pipeline_hunyuandit.get_resize_crop_region_for_grid(grid, 32)
    expected = get_2d_rotary_pos_embed(8, corners, grid)
    rows, columns = host_inputs(spec, {"latent_height": height, "latent_width": width}).values()
    for i in range(2):  # cosines, sines: each twice, for both channels of a pair
        sides = (columns[i][None].repeat(grid[0], 0), rows[i][:, None].repeat(grid[1], 1))
        found = np.concatenate(sides, axis=-1).reshape(-1, 4).repeat(2, axis=1)
        np.testing.assert_allclose(found, expected[i].numpy(), atol=1e-5)


def test_sizes_of_the_training() -> None:
    sides = range(256, 2049, 16)
    for height, width in itertools.product(sides, sides[::5]):
        wide, high = pipeline_hunyuandit.map_to_standard_shapes(width, height)
        if (height, width) in pipeline_hunyuandit.SUPPORTED_SHAPE:
            wide, high = width, height
        assert trained_size(height, width) == (high, wide), (height, width)


def test_the_nearest_size_is_drawn(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "large"))
    edit_json(copy / "transformer" / "config.json", sample_size=128)
    pipe = DiffusionPipeline.from_pretrained(copy, backend="torch:cpu")

    def size_of(**call: Any) -> tuple[int, int]:
        for event in pipe.task.run(PipelineTools(pipe), {"prompt": SHORT, **call}):
            if event.step == "check_size":
                return event.state["height"], event.state["width"]
        raise AssertionError("there is no step check_size")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert size_of() == (1024, 1024)
        assert size_of(height=768, width=1280) == (768, 1280)
        assert size_of(height=512, width=768, use_resolution_binning=False) == (512, 768)
    with pytest.warns(
        UserWarning, match=r"512 x 768 .* nearest size of the training is 768 x 1024"
    ):
        assert size_of(height=512, width=768) == (768, 1024)


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_bert(act: str, tmp_path: Path) -> None:
    write_bert(tmp_path, 50, 0, hidden_act=act, num_hidden_layers=3, type_vocab_size=3)
    theirs = transformers.BertModel.from_pretrained(tmp_path)
    config = theirs.config.to_dict()
    (spec,) = describe("BertModel", "text_encoder", "text_encoder", config)
    ours = bert_network.wrap(spec, theirs)
    ids = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(0))
    seen = torch.ones_like(ids)
    seen[1, 9:] = 0
    places = torch.from_numpy(host_inputs(spec, {"batch": 2, "sequence": 40})["position_ids"])
    with torch.no_grad():
        expected = theirs(ids, attention_mask=seen).last_hidden_state
        (found,) = ours(ids, seen, places)
    assert float((found - expected).abs().max()) < 5e-6


# What is refused


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"original_size": 64}, "original_size must be two whole numbers"),
        ({"height": 40}, "multiples of 16, for example 32 or 48"),
        ({"prompt": None, "prompt_embeds": np.zeros((1, 77, 24))}, "without prompt_embeds_2"),
        ({"prompt_embeds_2": np.zeros((1, 256, 32))}, "Only one of prompt_embeds_2 and its mask"),
        (
            {
                "prompt_embeds_2": np.zeros((1, 20, 32), np.float32),
                "prompt_attention_mask_2": np.ones((1, 20)),
            },
            r"encoder_hidden_states_t5 of shape \(batch=1, 256, 32\)",
        ),
    ],
)
def test_what_it_does_not_take(pair: Pair, call: Mapping[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        pair.ours(**{**SMALL, "num_inference_steps": 1, **call}, output_type="latent")


def test_a_prompt_that_is_too_long(pair: Pair) -> None:
    long = f"{'a red circle ' * 30}on white"
    with pytest.warns(UserWarning) as said:
        pair.ours(**{**SMALL, "prompt": long}, num_inference_steps=1, output_type="latent")
    (text,) = [str(one.message) for one in said]
    assert "longer than the 77 tokens that text_encoder reads; this was cut off" in text
    assert "circle on white" in text


def test_a_text_encoder_of_another_width(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "wider"))
    write_bert(copy / "text_encoder", 203, 0, hidden_size=32)
    with pytest.raises(CheckpointError, match="states that are 32 wide; transformer reads 24"):
        DiffusionPipeline.from_pretrained(copy, backend="torch:cpu")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("HunyuanDiT2DModel", {"new": 1}, "new=1"),
        ("HunyuanDiT2DModel", {"norm_type": "rms_norm"}, "norm_type is 'rms_norm'"),
        ("HunyuanDiT2DModel", {"num_layers": 5}, "num_layers is 5"),
        ("HunyuanDiT2DModel", {"hidden_size": 48}, "hidden_size is 48"),
        ("HunyuanDiT2DModel", {"cross_attention_dim_t5": 20}, "a multiple of 8"),
        ("BertModel", {"position_embedding_type": "relative_key"}, "is 'relative_key'"),
        ("BertModel", {"is_decoder": True}, "is_decoder is True"),
        ("BertModel", {"hidden_size": 50}, "a multiple of 12 heads"),
    ],
)
def test_other_variants_are_refused(name: str, change: dict[str, Any], said: str) -> None:
    config = {**(SIZES if name == "HunyuanDiT2DModel" else {}), **change}
    with pytest.raises(CheckpointError, match=said):
        describe(name, "part", "part", config)
