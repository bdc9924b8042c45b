"""The native models against Diffusers': same weights, same seeds, same files, one config a field.

Every parameter is drawn at random, so that no zero-initialised layer hides what it multiplies.
"""

import dataclasses
import inspect
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

import perfuse.models as ours
from perfuse.contract.frozen import freeze
from perfuse.models.clip_text.network import load_text_encoder
from perfuse.sources.weights import Weights
from perfuse_conformance.checkpoints import ddpm_config, make_checkpoint, randomise, unet_config

TOLERANCE = 1e-5

CONDITION = {
    **unet_config(),
    "block_out_channels": [16, 32],
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
}
_TWO = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
_RESNET = {
    "down_block_types": ["CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"],
    "up_block_types": ["ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"],
}
_RESNET_FIRST = {
    "down_block_types": ["ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
_XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}
_XL_INPUTS = {"text_embeds": (2, 32), "time_ids": (2, 6)}

#: The latent upscaler's, as Diffusers' own tests have it; its checkpoint has widths 384 and 768.
_UPSCALER = {
    "in_channels": 8,
    "out_channels": 5,
    "act_fn": "gelu",
    "attention_head_dim": 8,
    "norm_num_groups": None,
    "block_out_channels": [32, 32, 64, 64],
    "time_cond_proj_dim": 160,
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "cross_attention_dim": 16,
    "down_block_types": ["KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"],
    "mid_block_type": None,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
}

# Fields that differ from the base, and the further inputs that they call for.
UNET_2D_CONDITION: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "heads int": ({"attention_head_dim": 2}, {}),
    "heads list": ({"attention_head_dim": [2, 8], **_TWO}, {}),
    "linear projection": ({"use_linear_projection": True}, {}),
    "transformer layers int": ({"transformer_layers_per_block": 2}, {}),
    "transformer layers list": ({"transformer_layers_per_block": [1, 2], **_TWO}, {}),
    "transformer layers nested": (
        {
            "transformer_layers_per_block": [[1, 2], 1],
            "reverse_transformer_layers_per_block": [1, [2, 1, 3]],
            "layers_per_block": 2,
            **_TWO,
        },
        {},
    ),
    "layers list": ({"layers_per_block": [2, 1]}, {}),
    "cross attention dim list": (
        {"cross_attention_dim": [16, 24], "mid_block_type": None},
        {},
    ),
    "upcast attention": ({"upcast_attention": True}, {}),
    "addition text_time": (_XL, _XL_INPUTS),
    "addition text_time refiner": (
        {**_XL, "projection_class_embeddings_input_dim": 32 + 5 * 8},
        {"text_embeds": (2, 32), "time_ids": (2, 5)},
    ),
    "addition text": ({"addition_embed_type": "text", "addition_embed_type_num_heads": 4}, {}),
    "addition image": (
        {
            "addition_embed_type": "image",
            "encoder_hid_dim": 12,
            "encoder_hid_dim_type": "image_proj",
        },
        {"image_embeds": (2, 12)},
    ),
    "addition text_image": (
        {"addition_embed_type": "text_image"},
        {"text_embeds": (2, 16), "image_embeds": (2, 16)},
    ),
    "hidden text_proj": ({"encoder_hid_dim": 12, "encoder_hid_dim_type": "text_proj"}, {}),
    "hidden default": ({"encoder_hid_dim": 12}, {}),
    "hidden text_image_proj": (
        {"encoder_hid_dim": 16, "encoder_hid_dim_type": "text_image_proj"},
        {"image_embeds": (2, 16)},
    ),
    "hidden image_proj": (
        {"encoder_hid_dim": 12, "encoder_hid_dim_type": "image_proj"},
        {"image_embeds": (2, 12)},
    ),
    "class timestep": ({"class_embed_type": "timestep"}, {"class_labels": [3.0, 700.5]}),
    "class identity": ({"class_embed_type": "identity"}, {"class_labels": (2, 64)}),
    "class projection": (
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12},
        {"class_labels": (2, 12)},
    ),
    "class simple_projection": (
        {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 12},
        {"class_labels": (2, 12)},
    ),
    "class table": ({"num_class_embeds": 5}, {"class_labels": [4, 1]}),
    "class concatenated": (
        {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 12,
            "class_embeddings_concat": True,
        },
        {"class_labels": (2, 12)},
    ),
    "guidance condition": ({"time_cond_proj_dim": 12}, {"timestep_cond": (2, 12)}),
    "guidance condition absent": ({"time_cond_proj_dim": 12}, {}),
    "scale shift": ({"resnet_time_scale_shift": "scale_shift"}, {}),
    "only cross attention": ({"only_cross_attention": True}, {}),
    "only cross attention list": ({"only_cross_attention": [True, False], **_TWO}, {}),
    "mid only cross attention": ({"mid_block_only_cross_attention": True}, {}),
    "mid only cross attention off": (
        {"only_cross_attention": True, "mid_block_only_cross_attention": False},
        {},
    ),
    "norm groups": ({"norm_num_groups": 8, "norm_eps": 1e-4}, {}),
    "sin to cos": ({"flip_sin_to_cos": False}, {}),
    "freq shift": ({"freq_shift": 1}, {}),
    "time activation": ({"time_embedding_act_fn": "silu"}, {}),
    "timestep post activation": ({"timestep_post_act": "gelu"}, {}),
    "time dim": ({"time_embedding_dim": 40}, {}),
    "time fourier": ({"time_embedding_type": "fourier"}, {}),
    "time fourier, text_time": ({"time_embedding_type": "fourier", **_XL}, _XL_INPUTS),
    "time fourier, class timestep": (
        {"time_embedding_type": "fourier", "class_embed_type": "timestep"},
        {"class_labels": [3.0, 700.5]},
    ),
    "conv kernels 5": ({"conv_in_kernel": 5, "conv_out_kernel": 5}, {}),
    "conv kernels 1": ({"conv_in_kernel": 1, "conv_out_kernel": 1}, {}),
    "mid plain": ({"mid_block_type": "UNetMidBlock2D"}, {}),
    "mid none": ({"mid_block_type": None}, {}),
    "mid scale": ({"mid_block_scale_factor": 1.7}, {}),
    "resnet resampling": (_RESNET, {}),
    "resnet resampling first": (_RESNET_FIRST, {}),
    "resnet resampling, skip and scale": (
        {
            **_RESNET_FIRST,
            "resnet_skip_time_act": True,
            "resnet_out_scale_factor": 1.3,
            "time_embedding_act_fn": "silu",
        },
        {},
    ),
    "downsample padding": ({"downsample_padding": 0}, {}),
    "activation": ({"act_fn": "gelu"}, {}),
    "centred": ({"center_input_sample": True}, {}),
    "dropout": ({"dropout": 0.3}, {}),
    "channels": ({"in_channels": 9, "out_channels": 8}, {}),
    "k blocks": (_UPSCALER, {"timestep_cond": (2, 160)}),
    "k blocks, layers and heads": (
        {
            **_UPSCALER,
            "layers_per_block": [2, 1, 2, 1],
            "attention_head_dim": [4, 8, 16, 32],
            "cross_attention_dim": [16, 16, 16, 16],
            "norm_num_groups": 8,
            "norm_eps": 1e-4,
            "dropout": 0.1,
        },
        {},
    ),
    "three blocks": (
        {
            "block_out_channels": [16, 16, 32],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [1, 2, 4],
            "transformer_layers_per_block": [1, 2, 3],
            "layers_per_block": 2,
            "use_linear_projection": True,
            **_XL,
        },
        _XL_INPUTS,
    ),
}

UNET_2D_BASE = {**ddpm_config(), "norm_num_groups": 4}
UNET_2D: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "head dim": ({"attention_head_dim": 4}, {}),
    "head dim none": ({"attention_head_dim": None}, {}),
    "attention groups": ({"attn_norm_num_groups": 8}, {}),
    "attention groups, scale shift": (
        {"attn_norm_num_groups": 8, "resnet_time_scale_shift": "scale_shift"},
        {},
    ),
    "no attention": ({"add_attention": False}, {}),
    "scale shift": ({"resnet_time_scale_shift": "scale_shift"}, {}),
    "mid scale": ({"mid_block_scale_factor": 1.7}, {}),
    "mid none": ({"mid_block_type": None}, {}),
    "time fourier": ({"time_embedding_type": "fourier"}, {}),
    "time fourier, class timestep": (
        {"time_embedding_type": "fourier", "class_embed_type": "timestep"},
        {"class_labels": [3.0, 700.5]},
    ),
    "time learned": ({"time_embedding_type": "learned", "num_train_timesteps": 1000}, {}),
    "time dim": ({"time_embedding_dim": 40}, {}),
    "class timestep": ({"class_embed_type": "timestep"}, {"class_labels": [3.0, 700.5]}),
    "class identity": ({"class_embed_type": "identity"}, {"class_labels": (2, 64)}),
    "class table": ({"num_class_embeds": 5}, {"class_labels": [4, 1]}),
    "sin to cos": ({"flip_sin_to_cos": False, "freq_shift": 1}, {}),
    "downsample padding": ({"downsample_padding": 0}, {}),
    "resnet resampling by type": (
        {
            "block_out_channels": [16, 32, 32],
            "down_block_types": ["AttnDownBlock2D"] * 3,
            "up_block_types": ["AttnUpBlock2D"] * 3,
            "downsample_type": "resnet",
            "upsample_type": "resnet",
        },
        {},
    ),
    "resnet resampling by block": (
        {
            "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        },
        {},
    ),
    "activation": ({"act_fn": "mish"}, {}),
    "centred": ({"center_input_sample": True}, {}),
    "layers, groups, eps": ({"layers_per_block": 2, "norm_num_groups": 8, "norm_eps": 1e-4}, {}),
    "channels": ({"in_channels": 6, "out_channels": 2, "dropout": 0.3}, {}),
}

VAE_BASE = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
}
VAE: dict[str, dict[str, Any]] = {
    "base": {},
    "no quant conv": {"use_quant_conv": False},
    "no post quant conv": {"use_post_quant_conv": False},
    "neither": {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16},
    "no attention": {"mid_block_add_attention": False},
    "layers": {"layers_per_block": 2, "norm_num_groups": 8},
    "activation": {"act_fn": "gelu"},
    "channels": {"in_channels": 1, "out_channels": 2, "latent_channels": 3},
    "three blocks": {
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [8, 8, 16],
    },
    "one block": {
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [8],
    },
}

SIZES = [(8, 8), (8, 12), (9, 7)]


def pair(name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """Diffusers' model and ours from one seed; then with the same parameters, all random."""
    torch.manual_seed(0)
    theirs = getattr(diffusers, name)(**config)
    torch.manual_seed(0)
    mine = getattr(ours, name)(**config)
    assert_same_state(mine, theirs)
    randomise(theirs, seed=1)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine.eval()


def assert_same_state(mine: Any, theirs: Any) -> None:
    a, b = mine.state_dict(), theirs.state_dict()
    assert sorted(a) == sorted(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def inputs_of(further: dict[str, Any], generator: Any) -> dict[str, Any]:
    made = {
        name: torch.randn(value, generator=generator)
        if isinstance(value, tuple)
        else torch.tensor(value)
        for name, value in further.items()
    }
    if "time_ids" in made:
        made["time_ids"] = (made["time_ids"] * 100).round()
    return made


def call_condition(
    model: Any, config: dict[str, Any], further: dict[str, Any], size: tuple[int, int], **kw: Any
) -> Any:
    generator = torch.Generator("cpu").manual_seed(2)
    sample = torch.randn(2, config["in_channels"], *size, generator=generator)
    cross = config["cross_attention_dim"]
    width = config.get("encoder_hid_dim") or (cross[0] if isinstance(cross, list) else cross)
    if config.get("addition_embed_type") == "text" or "encoder_hid_dim_type" not in config:
        width = config.get("encoder_hid_dim") or width
    text = torch.randn(2, 7, width, generator=generator)
    made = inputs_of(further, generator)
    added = {n: made.pop(n) for n in ("text_embeds", "time_ids", "image_embeds") if n in made}
    timestep = kw.pop("timestep", torch.tensor([7.0, 801.25]))
    with torch.no_grad():
        return model(sample, timestep, text, added_cond_kwargs=added, **made, **kw).sample


def call_2d(
    model: Any, config: dict[str, Any], further: dict[str, Any], size: tuple[int, int], **kw: Any
) -> Any:
    generator = torch.Generator("cpu").manual_seed(2)
    sample = torch.randn(2, config.get("in_channels", 3), *size, generator=generator)
    timestep = kw.pop("timestep", torch.tensor([7, 801]))
    if config.get("time_embedding_type") == "fourier":
        timestep = torch.as_tensor(timestep).float()
    with torch.no_grad():
        return model(sample, timestep, **inputs_of(further, generator), **kw).sample


def difference(a: Any, b: Any) -> float:
    assert a.shape == b.shape
    assert torch.isfinite(b).all()
    assert b.std() > 1e-3  # a constant would hide everything
    return float((a - b).abs().max())


@pytest.mark.parametrize("case", UNET_2D_CONDITION)
def test_unet_2d_condition(case: str, record_property: Any) -> None:
    fields, further = UNET_2D_CONDITION[case]
    config = {"in_channels": 4, **CONDITION, **fields}
    theirs, mine = pair("UNet2DConditionModel", config)
    sizes = SIZES
    if any(block.startswith("Resnet") for block in config["up_block_types"]):
        sizes = SIZES[:2]  # Diffusers' own fail where the size on the way down was odd
    if any(block.startswith("K") for block in config["up_block_types"]):
        sizes = [(16, 16), (16, 24)]
    for size in sizes:
        found = call_condition(mine, config, further, size)
        worst = difference(found, call_condition(theirs, config, further, size))
        record_property("difference", worst)
        assert worst <= TOLERANCE


@pytest.mark.parametrize("case", UNET_2D)
def test_unet_2d(case: str, record_property: Any) -> None:
    fields, further = UNET_2D[case]
    config = {**UNET_2D_BASE, **fields}
    theirs, mine = pair("UNet2DModel", config)
    for size in [(8, 8), (8, 12)]:
        found = call_2d(mine, config, further, size)
        worst = difference(found, call_2d(theirs, config, further, size))
        record_property("difference", worst)
        assert worst <= TOLERANCE


@pytest.mark.parametrize("case", VAE)
def test_autoencoder_kl(case: str, record_property: Any) -> None:
    config = {**VAE_BASE, **VAE[case]}
    theirs, mine = pair("AutoencoderKL", config)
    for size in [(16, 16), (16, 24), (17, 13)]:
        generator = torch.Generator("cpu").manual_seed(2)
        picture = torch.randn(2, config.get("in_channels", 3), *size, generator=generator)
        latents = torch.randn(2, config.get("latent_channels", 4), *size, generator=generator)
        with torch.no_grad():
            moments = difference(
                mine.encode_moments(picture), theirs.encode(picture).latent_dist.parameters
            )
            decoded = difference(mine.decode(latents).sample, theirs.decode(latents).sample)
            whole = difference(mine(picture).sample, theirs(picture).sample)
        record_property("difference", max(moments, decoded, whole))
        assert max(moments, decoded, whole) <= TOLERANCE


@pytest.mark.parametrize(
    "timestep", [0, 999, 10.5, torch.tensor(17), torch.tensor([3]), torch.tensor([1.5, 998.75])]
)
def test_timestep_forms(timestep: Any) -> None:
    config = {"in_channels": 4, **CONDITION}
    theirs, mine = pair("UNet2DConditionModel", config)
    found = call_condition(mine, config, {}, (8, 8), timestep=timestep)
    wanted = call_condition(theirs, config, {}, (8, 8), timestep=timestep)
    assert difference(found, wanted) <= TOLERANCE
    if not isinstance(timestep, float):
        theirs, mine = pair("UNet2DModel", UNET_2D_BASE)
        found = call_2d(mine, UNET_2D_BASE, {}, (8, 8), timestep=timestep)
        assert (
            difference(found, call_2d(theirs, UNET_2D_BASE, {}, (8, 8), timestep=timestep))
            <= TOLERANCE
        )


@pytest.mark.parametrize(
    "fields", [{}, _TWO, {"only_cross_attention": True}, {"upcast_attention": True}]
)
def test_encoder_attention_mask(fields: dict[str, Any]) -> None:
    config = {"in_channels": 4, **CONDITION, **fields}
    theirs, mine = pair("UNet2DConditionModel", config)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
    found = call_condition(mine, config, {}, (8, 8), encoder_attention_mask=mask)
    wanted = call_condition(theirs, config, {}, (8, 8), encoder_attention_mask=mask)
    assert difference(found, wanted) <= TOLERANCE
    assert difference(found, call_condition(mine, config, {}, (8, 8))) > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_controlnet_residuals(size: tuple[int, int]) -> None:
    config = {"in_channels": 4, **CONDITION}
    theirs, mine = pair("UNet2DConditionModel", config)
    shapes: list[Any] = []
    handle = theirs.mid_block.register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape))
    for block in theirs.down_blocks:
        block.register_forward_hook(lambda _m, _x, out: shapes.extend(s.shape for s in out[1]))
    call_condition(theirs, config, {}, size)
    handle.remove()
    generator = torch.Generator("cpu").manual_seed(3)
    first = (2, config["block_out_channels"][0], *size)
    *skips, middle = (torch.randn(s, generator=generator) for s in [first, *shapes])
    kw = {
        "down_block_additional_residuals": tuple(skips),
        "mid_block_additional_residual": middle,
    }
    found = call_condition(mine, config, {}, size, **kw)
    assert difference(found, call_condition(theirs, config, {}, size, **kw)) <= TOLERANCE
    assert difference(found, call_condition(mine, config, {}, size)) > 1e-3


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("upcast", [False, True])
def test_half_precision(precision: str, upcast: bool) -> None:
    dtype = getattr(torch, precision)
    config = {"in_channels": 4, **CONDITION, "upcast_attention": upcast}
    theirs, mine = (model.to(dtype) for model in pair("UNet2DConditionModel", config))
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    text = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.no_grad():
        found, wanted = (m(sample, 801, text, return_dict=False)[0] for m in (mine, theirs))
    assert found.dtype == dtype
    # A few units in the last place: Diffusers scales and masks in another order when it upcasts.
    assert difference(found.float(), wanted.float()) <= 8 * torch.finfo(dtype).eps


CLASSES = {
    "UNet2DConditionModel": {"in_channels": 4, **CONDITION},
    "UNet2DModel": UNET_2D_BASE,
    "AutoencoderKL": VAE_BASE,
}


@pytest.mark.parametrize("name", CLASSES)
def test_files_go_both_ways(name: str, tmp_path: Path) -> None:
    theirs, mine = pair(name, CLASSES[name])
    mine.save_pretrained(tmp_path / "mine")
    theirs.save_pretrained(tmp_path / "theirs")
    read = getattr(diffusers, name).from_pretrained(tmp_path / "mine", low_cpu_mem_usage=True)
    assert_same_state(mine, read)
    assert {k: v for k, v in read.config.items() if k in theirs.config and k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    read = getattr(ours, name).from_pretrained(tmp_path / "theirs")
    assert_same_state(read, theirs)
    assert read.config == mine.config
    assert not read.training


@pytest.mark.parametrize("name", CLASSES)
def test_variants_and_shards_of_diffusers(name: str, tmp_path: Path) -> None:
    theirs, _ = pair(name, CLASSES[name])
    theirs.half().save_pretrained(tmp_path / "whole", variant="fp16")
    theirs.save_pretrained(tmp_path / "shards", variant="fp16", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.fp16-0*.safetensors"))) > 1
    for folder in ("whole", "shards"):
        read = getattr(ours, name).from_pretrained(
            tmp_path / folder, variant="fp16", torch_dtype=torch.float16
        )
        assert_same_state(read, theirs)
        read = getattr(ours, name).from_pretrained(tmp_path / folder, variant="fp16")
        assert_same_state(read, theirs.float())
        theirs.half()


@pytest.mark.parametrize("name", ["AutoencoderKL", "UNet2DModel"])
@pytest.mark.parametrize("convolutions", [False, True])
def test_old_attention_names(name: str, convolutions: bool, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs, _ = pair(name, CLASSES[name])
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, tensor in load_file(file).items():
        for new, before in old.items():
            if f"attentions.0.{new}." in key:
                key = key.replace(new, before)
                if convolutions and key.endswith("weight"):
                    tensor = tensor[:, :, None, None]
        state[key] = tensor
    assert sum(".proj_attn." in key for key in state) >= 2
    save_file(state, file, metadata={"format": "pt"})
    assert_same_state(getattr(ours, name).from_pretrained(tmp_path), theirs)
    if not convolutions:
        assert_same_state(getattr(diffusers, name).from_pretrained(tmp_path), theirs)


TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "projection_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "bos_token_id": 0,
    "pad_token_id": 1,
}


@pytest.mark.parametrize(
    ("name", "prefix", "positions", "eos", "act"),
    itertools.product(
        ["CLIPTextModel", "CLIPTextModelWithProjection"],
        [True, False],
        [True, False],
        [2, 98],
        ["quick_gelu"],
    ),
)
def test_text_encoder(
    name: str, prefix: bool, positions: bool, eos: int, act: str, tmp_path: Path
) -> None:
    """Both prefixes of the keys, the ``position_ids`` of old files, both ways to find the end."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    settings = transformers.CLIPTextConfig(**TEXT, eos_token_id=eos, hidden_act=act)
    randomise(getattr(transformers, name)(settings)).save_pretrained(tmp_path)
    theirs = getattr(transformers, name).from_pretrained(tmp_path).eval()
    file = tmp_path / "model.safetensors"
    bare = {key.removeprefix("text_model."): value for key, value in load_file(file).items()}
    if positions:
        bare["embeddings.position_ids"] = torch.arange(20)[None]
    head = {key: bare.pop(key) for key in list(bare) if key.startswith("text_projection")}
    state = {("text_model." if prefix else "") + key: value for key, value in bare.items()}
    save_file({**state, **head}, file, metadata={"format": "pt"})

    config = json.loads((tmp_path / "config.json").read_text())
    mine = load_text_encoder(name, config, Weights.open(tmp_path), torch.float32)
    assert_same_state(mine, theirs)
    assert not any(t.is_meta for t in (*mine.parameters(), *mine.buffers()))
    assert not mine.training
    ids = torch.randint(3, 98, (2, 11), generator=torch.Generator().manual_seed(1))
    ids[0, 5] = ids[1, 9] = 98
    with torch.no_grad():
        a, b = (m(input_ids=ids, output_hidden_states=True) for m in (mine, theirs))
    assert len(a.hidden_states) == len(b.hidden_states) == 4
    pairs = list(zip(a.hidden_states, b.hidden_states, strict=True))
    pairs.append((a.last_hidden_state, b.last_hidden_state))
    pooled = "text_embeds" if name.endswith("Projection") else "pooler_output"
    pairs.append((a[pooled], b[pooled]))
    assert all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_text_encoder_in_half_precision(precision: str, tmp_path: Path) -> None:
    """Also as other versions of Transformers write its config: with dicts in it."""
    dtype = getattr(torch, precision)
    settings = transformers.CLIPTextConfig(**TEXT, eos_token_id=98)
    randomise(transformers.CLIPTextModel(settings)).to(dtype).save_pretrained(tmp_path)
    theirs = transformers.CLIPTextModel.from_pretrained(tmp_path, dtype=dtype).eval()
    config = freeze(json.loads((tmp_path / "config.json").read_text()) | {"id2label": {"0": "one"}})
    mine = load_text_encoder("CLIPTextModel", config, Weights.open(tmp_path), dtype)
    assert_same_state(mine, theirs)
    whole = load_text_encoder("CLIPTextModel", config, Weights.open(tmp_path), torch.float32)
    assert_same_state(whole, theirs.float())


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "ddpm"])
def test_diffusers_reads_the_test_checkpoints(kind: str, tmp_path: Path) -> None:
    """What the other tests run on is a checkpoint in Diffusers' own eyes."""
    from perfuse.sources.checkpoint import Checkpoint

    folder = make_checkpoint(tmp_path / kind, kind)
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.spec.class_name == type(theirs).__name__
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        part = getattr(theirs, name, None)
        if part is not None:
            assert checkpoint.weights(name).parameters == part.num_parameters()
    if kind != "ddpm":
        assert checkpoint.spec.latents is not None
        assert checkpoint.spec.latents.downscale == theirs.vae_scale_factor
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("class_name", "changes"),
    [
        ("StableDiffusionPipeline", {"steps_offset": 0, "clip_sample": True}),
        ("StableDiffusionPipeline", {"steps_offset": ..., "clip_sample": ...}),
        ("StableDiffusionPipeline", {"steps_offset": 1, "clip_sample": False}),
        ("StableDiffusionImg2ImgPipeline", {"steps_offset": ..., "clip_sample": ...}),
        ("StableDiffusionInpaintPipeline", {"steps_offset": 0, "clip_sample": True}),
        ("LatentConsistencyModelPipeline", {"steps_offset": 0, "clip_sample": True}),
    ],
)
def test_scheduler_is_corrected_as_diffusers_does(
    class_name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    from perfuse.schedulers import scheduler_from_config
    from perfuse.sources.checkpoint import Checkpoint
    from perfuse_conformance.checkpoints import edit_json

    folder = make_checkpoint(tmp_path / "sd", "sd1")
    edit_json(folder / "model_index.json", _class_name=class_name)
    edit_json(folder / "scheduler" / "scheduler_config.json", **changes)
    if class_name.startswith("LatentConsistency"):
        edit_json(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    theirs = getattr(diffusers, class_name).from_pretrained(folder).scheduler.config
    mine = scheduler_from_config(Checkpoint.open(folder).spec.scheduler).config
    for name in ("steps_offset", "clip_sample"):
        assert mine[name] == theirs[name]


def test_scheduler_of_ddim_pipeline(tmp_path: Path) -> None:
    from perfuse.sources.checkpoint import Checkpoint
    from perfuse_conformance.checkpoints import edit_json

    folder = make_checkpoint(tmp_path / "ddpm", "ddpm")
    edit_json(folder / "model_index.json", _class_name="DDIMPipeline")
    theirs = diffusers.DDIMPipeline.from_pretrained(folder).scheduler
    mine = Checkpoint.open(folder).spec.scheduler
    assert mine["_class_name"] == type(theirs).__name__ == "DDIMScheduler"
    assert mine["clip_sample"] is theirs.config.clip_sample is True


@pytest.mark.parametrize(
    ("version", "size"),
    [("0.8.1", 32), ("0.9.0", 32), ("0.6.0.dev0", 63), (..., 32), ("0.8.0", 96)],
)
def test_size_is_corrected_as_diffusers_does(version: Any, size: int, tmp_path: Path) -> None:
    from perfuse.sources.checkpoint import Checkpoint
    from perfuse_conformance.checkpoints import edit_json

    folder = make_checkpoint(tmp_path / "sd", "sd1")
    edit_json(folder / "unet" / "config.json", _diffusers_version=version, sample_size=size)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    wanted = theirs.unet.config.sample_size
    assert Checkpoint.open(folder).spec.denoiser.config["sample_size"] == wanted


@pytest.mark.parametrize("name", CLASSES)
def test_fields_and_defaults_of_configs(name: str) -> None:
    """A field that a config.json leaves out means the same in both."""
    signature = inspect.signature(getattr(diffusers, name).__init__).parameters
    theirs = {n: p.default for n, p in signature.items() if n != "self"}
    mine = {f.name: f.default for f in dataclasses.fields(getattr(ours, name).config_class)}
    assert mine == theirs
