"""The models' configurations: fields of ``config.json``, checked before anything is built."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from perfuse.errors import CheckpointError
from perfuse.models.autoencoder_kl.description import AutoencoderKLConfig
from perfuse.models.config import ModelConfig, check_types
from perfuse.models.unet_2d.description import UNet2DConfig
from perfuse.models.unet_2d_condition.description import UNet2DConditionConfig

CLASSES = (UNet2DConfig, UNet2DConditionConfig, AutoencoderKLConfig)


@pytest.mark.parametrize("config_class", CLASSES)
def test_round_trip(config_class: type[ModelConfig]) -> None:
    config = config_class()
    data = config.to_dict()
    assert data["_class_name"] == config_class.class_name
    assert not any(isinstance(value, tuple) for value in data.values())
    assert config_class.from_dict(data) == config
    check_types(config_class, data, where=Path("config.json"))


@pytest.mark.parametrize("config_class", CLASSES)
def test_frozen(config_class: type[ModelConfig]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_class().act_fn = "gelu"  # type: ignore[attr-defined]


def test_lists_become_tuples_all_the_way_down() -> None:
    nested = {"transformer_layers_per_block": [[1, 2], 1, 1, 1], "layers_per_block": [2, 1, 1, 1]}
    config = UNet2DConditionConfig.from_dict(
        {**nested, "reverse_transformer_layers_per_block": [1, 1, 1, [1, 2, 1]]}
    )
    assert config.transformer_layers_per_block == ((1, 2), 1, 1, 1)
    assert config.to_dict()["transformer_layers_per_block"] == [[1, 2], 1, 1, 1]
    assert hash(config) == hash(UNet2DConditionConfig.from_dict(config.to_dict()))


def test_unknown_fields_are_named() -> None:
    with pytest.warns(UserWarning, match="AutoencoderKL: config.json has colour, shape, which"):
        AutoencoderKLConfig.from_dict({"shape": 1, "colour": 2, "_private": 3})


def test_one_value_stands_for_every_block() -> None:
    config = UNet2DConditionConfig(attention_head_dim=8, cross_attention_dim=(1, 2, 3, 4))
    assert config.per_block("attention_head_dim") == (8, 8, 8, 8)
    assert config.per_block("cross_attention_dim") == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("config_class", "fields", "said"),
    [
        (UNet2DConditionConfig, {"attention_head_dim": [8, 8]}, "has 2 entries.*one a block, 4"),
        (UNet2DConditionConfig, {"only_cross_attention": [True]}, "has 1 entries"),
        (UNet2DConditionConfig, {"layers_per_block": [2]}, "has 1 entries"),
        (UNet2DConditionConfig, {"block_out_channels": [320]}, "down_block_types has 4 entries"),
        (UNet2DConditionConfig, {"mid_block_type": "What"}, "mid_block_type is 'What'"),
        (UNet2DConditionConfig, {"class_embed_type": "what"}, "None, timestep, identity"),
        (UNet2DConditionConfig, {"addition_embed_type": "what"}, "text_time"),
        (UNet2DConditionConfig, {"addition_embed_type": "text_time"}, "is missing"),
        (UNet2DConditionConfig, {"class_embed_type": "projection"}, "input_dim is missing"),
        (UNet2DConditionConfig, {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim is"),
        (UNet2DConditionConfig, {"num_attention_heads": 8}, "num_attention_heads is 8"),
        (UNet2DConditionConfig, {"dual_cross_attention": True}, "dual_cross_attention is True"),
        (UNet2DConditionConfig, {"attention_type": "gated"}, "attention_type is 'gated'"),
        (UNet2DConditionConfig, {"time_embedding_type": "learned"}, "'learned'"),
        (
            UNet2DConditionConfig,
            {"transformer_layers_per_block": [[1, 1], 1, 1, 1]},
            "reverse_transformer_layers_per_block is missing",
        ),
        (UNet2DConfig, {"time_embedding_type": "learned"}, "num_train_timesteps is missing"),
        (UNet2DConfig, {"up_block_types": ["UpBlock2D"] * 3}, "up_block_types has 3 entries"),
        (UNet2DConfig, {"up_block_types": ["What2D"] * 4}, "has 'What2D'; .*AttnUpBlock2D"),
        (UNet2DConfig, {"downsample_type": "fir"}, "downsample_type is 'fir'; .*conv, resnet"),
        (UNet2DConfig, {"resnet_time_scale_shift": "ada_group"}, "default, scale_shift"),
        (AutoencoderKLConfig, {"down_block_types": ["What"]}, "DownEncoderBlock2D"),
        (AutoencoderKLConfig, {"block_out_channels": [1, 2]}, "has 1 entries"),
    ],
)
def test_refused(config_class: type[ModelConfig], fields: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as error:
        config_class.from_dict(fields)
    assert config_class.class_name in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "fits"),
    [
        ("sample_size", 64, True),
        ("sample_size", [64, 96], True),
        ("sample_size", None, True),
        ("sample_size", [64, 96, 3], False),
        ("sample_size", "64", False),
        ("norm_eps", 1, True),
        ("norm_eps", 1e-5, True),
        ("norm_eps", "1e-5", False),
        ("in_channels", 4.0, False),
        ("in_channels", -4, False),
        ("in_channels", True, False),
        ("in_channels", [4], False),
        ("in_channels", None, False),
        ("center_input_sample", True, True),
        ("center_input_sample", 1, False),
        ("only_cross_attention", [True, False], True),
        ("only_cross_attention", [True, 0], False),
        ("act_fn", "silu", True),
        ("act_fn", 3, False),
        ("mid_block_type", None, True),
        ("transformer_layers_per_block", [1, [1, 2]], True),
        ("down_block_types", "DownBlock2D", False),
        ("down_block_types", {}, False),
    ],
)
def test_types(field: str, value: Any, fits: bool) -> None:
    def check() -> None:
        check_types(UNet2DConditionConfig, {field: value}, where=Path("unet/config.json"))

    if fits:
        check()
    else:
        with pytest.raises(CheckpointError, match=rf"unet/config\.json: {field} is .* expected"):
            check()
