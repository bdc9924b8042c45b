"""The config and the description of ``UNet2DConditionModel``, without torch."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.errors import CheckpointError
from perfuse.models.config import ModelConfig, held_by_skips
from perfuse.models.shapes import TIMESTEP, floating, pair
from perfuse.models.unet_2d.description import class_labels

__all__ = [
    "UNet2DConditionConfig",
    "at_level",
    "conditions",
    "describe",
    "fit",
    "inputs_of",
    "residuals",
    "with_ids",
]


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
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
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

    def normal(self) -> dict[str, Any]:
        """Without the depth of an attention that is not there."""
        if self.reverse_transformer_layers_per_block is not None:
            return super().normal()
        ways = zip(self.down_block_types, reversed(self.up_block_types), strict=True)
        read = [any("CrossAttn" in kind for kind in way) for way in ways]
        read[-1] = True  # the middle block has the last level's
        depths = self.per_block("transformer_layers_per_block")
        kept = tuple(depth if used else 1 for depth, used in zip(depths, read, strict=True))
        return ModelConfig.normal(dataclasses.replace(self, transformer_layers_per_block=kept))

    def __post_init__(self) -> None:
        if self.encoder_hid_dim is not None and self.encoder_hid_dim_type is None:
            object.__setattr__(self, "encoder_hid_dim_type", "text_proj")
        if self.has_k_blocks:
            self._check_k_blocks()
        else:
            self.check_blocks(
                ("CrossAttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"),
                ("CrossAttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"),
            )
            if self.norm_num_groups is None:
                raise self.error("norm_num_groups is None", "a number; only K blocks need none")
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

    def held(self, sizes: Mapping[str, int]) -> int:
        if self.has_k_blocks:  # which leave what lies before they are made smaller
            return sizes["latent_height"] * sizes["latent_width"] * self.block_out_channels[0]
        layers = self.per_block("layers_per_block")
        return held_by_skips(sizes, self.block_out_channels, layers)

    @property
    def time_channels(self) -> int:
        """The width of the time embedding, before a class embedding is joined to it."""
        times = 2 if self.time_embedding_type == "fourier" else 4
        return self.time_embedding_dim or self.block_out_channels[0] * times

    @property
    def has_k_blocks(self) -> bool:
        """Whether it is made of k-diffusion's blocks, as the latent upscaler is."""
        return any(block.startswith("K") for block in self.down_block_types)

    @property
    def embeds_guidance(self) -> bool:
        """Whether ``timestep_cond`` is the guidance scale, which consistency models are told.

        The latent upscaler is told a noise level and the pooled text there.
        """
        return self.time_cond_proj_dim is not None and not self.has_k_blocks

    def _check_k_blocks(self) -> None:
        """Raise ``CheckpointError`` for K blocks that do not fit together.

        Diffusers finds out by their widths which one is the lowest; where that fails, so does it.
        """
        self.check_blocks(
            ("KDownBlock2D", "KCrossAttnDownBlock2D"), ("KUpBlock2D", "KCrossAttnUpBlock2D")
        )
        self.check_choice("mid_block_type", (None,))
        self.check_choice("class_embeddings_concat", (False,))
        widths = self.block_out_channels
        if any(width % 32 for width in widths):
            raise self.error(f"block_out_channels is {widths}", "multiples of 32 with K blocks")
        for kind, width, above in zip(
            self.up_block_types, widths[::-1], (*widths[-2::-1], widths[0]), strict=True
        ):
            if kind == "KUpBlock2D" and width != above:
                raise self.error(
                    f"up_block_types has a KUpBlock2D from {width} to {above} channels",
                    "one that keeps their number",
                )
        alike = [
            width == above == self.time_channels
            for width, above in zip(widths[::-1], (*widths[-2::-1], widths[0]), strict=True)
        ]
        lowest = self.down_block_types[-1], self.up_block_types[0]
        if lowest != ("KCrossAttnDownBlock2D", "KCrossAttnUpBlock2D") or not (
            alike[0] and not any(alike[1:])
        ):
            raise self.error(
                f"block_out_channels is {widths}, with blocks {lowest} at the end and a time "
                f"embedding of {self.time_channels}",
                "K blocks with cross-attention at the lowest resolution, where alone two blocks "
                "and the time embedding have one width",
            )


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """A text-conditioned UNet: latents and text states in, a prediction out."""
    config = _with_size(config)
    unet = UNet2DConditionConfig.from_dict(config)
    # K blocks double what they halved before; the others take any size.
    each = 2 ** (len(unet.block_out_channels) - 1) if unet.has_k_blocks else 1
    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=unet.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=conditions(unet),
                outputs=(
                    floating(
                        "out_sample", "batch", unet.out_channels, "latent_height", "latent_width"
                    ),
                ),
            ),
            dims={
                "batch": Dim(example=2),
                "latent_height": Dim(multiple=each, example=96 // each, smallest=64 // each),
                "latent_width": Dim(multiple=each, example=64 // each, smallest=64 // each),
                "sequence": Dim(example=7, smallest=2),
            },
            sample_size=pair(unet.sample_size),
            guidance="embedded" if unet.embeds_guidance else "branches",
        ),
    )


def conditions(unet: UNet2DConditionConfig) -> tuple[TensorSpec, ...]:
    """The sample, the timestep and all that the model is conditioned on."""
    text_width = unet.encoder_hid_dim or unet.per_block("cross_attention_dim")[0]
    inputs = [
        floating("sample", "batch", unet.in_channels, "latent_height", "latent_width"),
        TIMESTEP,
        floating("encoder_hidden_states", "batch", "sequence", text_width),
    ]
    if unet.addition_embed_type == "text_time":
        inputs += _pooled_and_ids(unet, pooled=())
    if unet.addition_embed_type in ("image", "text_image") or unet.encoder_hid_dim_type in (
        "image_proj",
        "text_image_proj",
    ):
        inputs.append(floating("image_embeds", "batch", "image_width"))
    if unet.time_cond_proj_dim is not None:
        inputs.append(floating("timestep_cond", "batch", unet.time_cond_proj_dim))
    if unet.num_class_embeds is not None or unet.class_embed_type is not None:
        width = unet.projection_class_embeddings_input_dim or unet.block_out_channels[0] * 4
        inputs.append(class_labels(unet.class_embed_type, width))
    return tuple(inputs)


def _pooled_and_ids(unet: UNet2DConditionConfig, pooled: Iterable[int]) -> list[TensorSpec]:
    """SDXL's pooled text and time ids, whose widths the config gives only as a sum.

    The base model has six ids, the refiner five; the config does not say which. The right number is
    the one that leaves a width for the pooled text that one of the pipeline's encoders has.
    """
    each = unet.addition_time_embed_dim or 0
    width = unet.projection_class_embeddings_input_dim or 0
    known = set(pooled)
    ids = next((n for n in (6, 5) if width - n * each in known), 6)
    return [
        floating("text_embeds", "batch", width - ids * each),
        floating("time_ids", "batch", ids),
    ]


def residuals(unet: UNet2DConditionConfig) -> tuple[TensorSpec, ...]:
    """What a ControlNet adds to a UNet: one for each skip connection, and one for its middle."""
    last = len(unet.block_out_channels) - 1
    levels = [(unet.block_out_channels[0], 0)]
    for i, width in enumerate(unet.block_out_channels):
        levels += [(width, i)] * unet.per_block("layers_per_block")[i]
        levels += [(width, i + 1)] if i < last else []
    down = [at_level(f"down_residual_{k}", *level) for k, level in enumerate(levels)]
    return (*down, at_level("mid_residual", unet.block_out_channels[-1], last))


def _features(unet: UNet2DConditionConfig) -> tuple[TensorSpec, ...]:
    """What a T2I-Adapter adds: one for each block of the first half, and one for the middle."""
    last = len(unet.block_out_channels) - 1
    levels = [
        (width, i if kind == "CrossAttnDownBlock2D" else min(i + 1, last))
        for i, (kind, width) in enumerate(
            zip(unet.down_block_types, unet.block_out_channels, strict=True)
        )
    ]
    levels.append((unet.block_out_channels[-1], last))
    return tuple(at_level(f"adapter_feature_{k}", *level) for k, level in enumerate(levels))


def inputs_of(unet: UNet2DConditionConfig) -> frozenset[str]:
    """The names of all inputs that a UNet has of its own, or for what controls add."""
    return frozenset(one.name for one in (*conditions(unet), *residuals(unet), *_features(unet)))


def at_level(name: str, channels: int, halvings: int) -> TensorSpec:
    """A picture of states [B, C, h, w] where the latents were halved so often."""
    sizes = (f"latent_{axis}/{2**halvings}" if halvings else f"latent_{axis}" for axis in _AXES)
    return floating(name, "batch", channels, *sizes)


_AXES = ("height", "width")


def fit(spec: ComponentSpec, others: Mapping[str, ComponentSpec]) -> ComponentSpec:
    """Complete the inputs: time ids by the text encoders' widths, residuals by the controls."""
    unet = UNet2DConditionConfig.from_dict(spec.config)
    spec = with_ids(spec, unet, others)
    taken = {tensor.name: tensor for tensor in (*residuals(unet), *_features(unet))}
    given: dict[str, TensorSpec] = {}
    for control in others.values():
        if control.role == Role.CONTROL:
            _check_control(spec, control, taken)
            given |= {one.name: taken[one.name] for one in control.signature.outputs}
    own = (tensor for tensor in spec.signature.inputs if tensor.name not in taken)
    signature = dataclasses.replace(spec.signature, inputs=(*own, *given.values()))
    return dataclasses.replace(spec, signature=signature)


def _check_control(
    spec: ComponentSpec, control: ComponentSpec, taken: Mapping[str, TensorSpec]
) -> None:
    """Raise ``CheckpointError`` for a control that was made for another kind of denoiser."""
    wrong = ""
    texts = [one.signature.input("encoder_hidden_states") for one in (control, spec)]
    widths = [tensor.shape[-1] for tensor in texts if tensor is not None]
    if len(set(widths)) > 1:
        wrong = f"reads text states of width {widths[0]}, and {spec.name} of width {widths[1]}"
    gives = {tensor.name: tensor.shape[1] for tensor in control.signature.outputs}
    for name, channels in gives.items():
        there = taken[name].shape[1] if name in taken else "no"
        if not wrong and there != channels:
            wrong = f"gives {name} with {channels} channels, and {spec.name} takes {there} there"
    missing = [name for name in taken if "residual" in name and name not in gives]
    if not wrong and "mid_residual" in gives and missing:
        wrong = f"gives no {missing[0]}, which {spec.name} takes"
    if wrong:
        raise CheckpointError(
            f"{control.name} {wrong}: it was made for another model. Use one that was made for "
            "this family of checkpoints."
        )


def with_ids(
    spec: ComponentSpec, unet: UNet2DConditionConfig, others: Mapping[str, ComponentSpec]
) -> ComponentSpec:
    """Choose the number of time ids by the widths of the pipeline's text encoders."""
    if unet.addition_embed_type != "text_time":
        return spec
    encoders = [c.signature for c in others.values() if c.role == Role.TEXT_ENCODER]
    widths = [
        size
        for signature in encoders
        for tensor in signature.outputs
        if tensor.name == "text_embeds" and isinstance(size := tensor.shape[-1], int)
    ]
    right = {tensor.name: tensor for tensor in _pooled_and_ids(unet, widths)}
    inputs = tuple(right.get(tensor.name, tensor) for tensor in spec.signature.inputs)
    signature = dataclasses.replace(spec.signature, inputs=inputs)
    return dataclasses.replace(spec, signature=signature)


def _with_size(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Correct ``sample_size``: before diffusers 0.9, configs said 32 for models trained at 64."""
    version = re.match(r"0\.(\d+)", str(config.get("_diffusers_version", "")))
    size = config.get("sample_size")
    if version is None or int(version[1]) >= 9 or not isinstance(size, int) or size >= 64:
        return config
    return {**config, "sample_size": 64}
