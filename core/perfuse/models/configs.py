"""The configuration of each native model: what its ``config.json`` says, checked, without torch.

Field names and defaults are those of Diffusers, whose checkpoints these classes read.
"""

import dataclasses
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from perfuse.errors import CheckpointError

__all__ = [
    "AutoencoderKLConfig",
    "ModelConfig",
    "UNet2DConditionConfig",
    "UNet2DConfig",
    "check_types",
]


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What all model configurations share: reading and writing ``config.json``."""

    class_name: ClassVar[str] = ""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed ``config.json``; unknown fields are named in a warning and left out.

        Raises:
            CheckpointError: a value that this model cannot take.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
        if unknown:
            warnings.warn(
                f"{cls.class_name}: config.json has {', '.join(unknown)}, which this class does "
                "not have; they are ignored, as Diffusers does.",
                stacklevel=2,
            )
        return cls(**{key: _frozen(value) for key, value in config.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, with the class name under ``_class_name``."""
        fields = {f.name: _thawed(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"_class_name": self.class_name, **fields}

    def per_block(self, name: str) -> tuple[Any, ...]:
        """A field that is one value for all blocks or one a block, as one a block."""
        value = getattr(self, name)
        count = len(self.block_out_channels)  # type: ignore[attr-defined]
        if not isinstance(value, tuple):
            return (value,) * count
        if len(value) != count:
            raise self.error(f"{name} has {len(value)} entries", f"one a block, {count}")
        return value

    def error(self, found: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.class_name}: {found}; this model takes {wanted}.")

    def check_choice(self, name: str, choices: tuple[Any, ...]) -> None:
        if (value := getattr(self, name)) not in choices:
            known = ", ".join(str(choice) for choice in choices)
            raise self.error(f"{name} is {value!r}", known)

    def check_blocks(self, down: tuple[str, ...], up: tuple[str, ...]) -> None:
        count = len(self.block_out_channels)  # type: ignore[attr-defined]
        for name, known in (("down_block_types", down), ("up_block_types", up)):
            blocks = getattr(self, name)
            if len(blocks) != count:
                raise self.error(f"{name} has {len(blocks)} entries", f"one a block, {count}")
            for block in blocks:
                if block not in known:
                    raise self.error(f"{name} has {block!r}", ", ".join(known))


@dataclass(frozen=True, kw_only=True)
class UNet2DConfig(ModelConfig):
    """An unconditional (or class-conditional) UNet. Here ``attention_head_dim`` is a head's size."""

    class_name: ClassVar[str] = "UNet2DModel"

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self) -> None:
        self.check_blocks(
            ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
            ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        )
        self.check_choice("mid_block_type", ("UNetMidBlock2D", None))
        self.check_choice("time_embedding_type", ("positional", "fourier", "learned"))
        self.check_choice("class_embed_type", (None, "timestep", "identity"))
        self.check_choice("resnet_time_scale_shift", ("default", "scale_shift"))
        self.check_choice("downsample_type", ("conv", "resnet"))
        self.check_choice("upsample_type", ("conv", "resnet"))
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise self.error(
                "time_embedding_type is 'learned' and num_train_timesteps is missing",
                "the number of timesteps it learned",
            )

    @property
    def downscale(self) -> int:
        """How many times smaller the innermost block is; sizes must be multiples of it."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True, kw_only=True)
class UNet2DConditionConfig(ModelConfig):
    """A UNet conditioned on text. ``attention_head_dim`` is the *number* of heads, as in Diffusers.

    (The misnaming is older than most checkpoints: diffusers issue 2011.)
    """

    class_name: ClassVar[str] = "UNet2DConditionModel"

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[Any, ...] = 1
    reverse_transformer_layers_per_block: tuple[Any, ...] | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: str | None = None
    timestep_post_act: str | None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: str | None = None
    addition_embed_type_num_heads: int = 64

    def __post_init__(self) -> None:
        if self.encoder_hid_dim is not None and self.encoder_hid_dim_type is None:
            object.__setattr__(self, "encoder_hid_dim_type", "text_proj")
        self.check_blocks(
            ("CrossAttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"),
            ("CrossAttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"),
        )
        self.check_choice("mid_block_type", ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None))
        self.check_choice("time_embedding_type", ("positional", "fourier"))
        self.check_choice("resnet_time_scale_shift", ("default", "scale_shift"))
        self.check_choice(
            "class_embed_type", (None, "timestep", "identity", "projection", "simple_projection")
        )
        self.check_choice("addition_embed_type", (None, "text", "text_image", "text_time", "image"))
        self.check_choice(
            "encoder_hid_dim_type", (None, "text_proj", "text_image_proj", "image_proj")
        )
        self.check_choice("dual_cross_attention", (False,))
        self.check_choice("attention_type", ("default",))
        # Diffusers refuses it too: the heads are given by attention_head_dim.
        self.check_choice("num_attention_heads", (None,))
        for name in (
            "layers_per_block",
            "cross_attention_dim",
            "attention_head_dim",
            "only_cross_attention",
        ):
            self.per_block(name)
        if self.encoder_hid_dim_type is not None and self.encoder_hid_dim is None:
            raise self.error(
                f"encoder_hid_dim_type is {self.encoder_hid_dim_type!r} and encoder_hid_dim is "
                "missing",
                "both or neither",
            )
        projected = self.addition_embed_type == "text_time" or self.class_embed_type in (
            "projection",
            "simple_projection",
        )
        if projected and self.projection_class_embeddings_input_dim is None:
            raise self.error(
                "projection_class_embeddings_input_dim is missing",
                "it with text_time additions and projected class embeddings",
            )
        if self.addition_embed_type == "text_time" and self.addition_time_embed_dim is None:
            raise self.error("addition_time_embed_dim is missing", "it with text_time additions")
        layers = self.transformer_layers_per_block
        if (
            isinstance(layers, tuple)
            and any(isinstance(entry, tuple) for entry in layers)
            and self.reverse_transformer_layers_per_block is None
        ):
            raise self.error(
                "transformer_layers_per_block is nested and "
                "reverse_transformer_layers_per_block is missing",
                "both for an asymmetric UNet",
            )


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(ModelConfig):
    """A variational autoencoder between pictures and latents (Rombach et al. 2022)."""

    class_name: ClassVar[str] = "AutoencoderKL"

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        self.check_blocks(("DownEncoderBlock2D",), ("UpDecoderBlock2D",))

    @property
    def downscale(self) -> int:
        """How many pixels a latent spans in height and in width."""
        return int(2 ** (len(self.block_out_channels) - 1))


def check_types(config_class: type[Any], config: Mapping[str, Any], *, where: Path) -> None:
    """Compare the values of a parsed ``config.json`` with the fields of a dataclass.

    Raises:
        CheckpointError: a value is of another type than its field.
    """
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        if item.name in config and not _accepts(hints[item.name], config[item.name]):
            wanted = item.type.__name__ if isinstance(item.type, type) else str(item.type)
            raise CheckpointError(
                f"{where}: {item.name} is {config[item.name]!r}; {wanted} was expected"
                f"{', no int below 0' if 'int' in wanted else ''}. Download or save the checkpoint again."
            )


def _accepts(hint: Any, value: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(choice, value) for choice in args)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_accepts(args[0], item) for item in value)
        return len(args) == len(value) and all(map(_accepts, args, value))
    if isinstance(value, bool):
        return hint is bool
    if hint is int:
        return isinstance(value, int) and value >= 0
    return isinstance(value, int | float if hint is float else hint)
