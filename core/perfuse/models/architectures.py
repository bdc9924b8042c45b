"""What a checkpoint's classes are made of: component names, signatures, constraints. No torch.

A plugin adds a class through ``perfuse_architectures``; this module's own are added the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from perfuse.contract.spec import ComponentSpec, LatentSpec, Signature, TensorSpec
from perfuse.errors import CheckpointError
from perfuse.models.configs import AutoencoderKLConfig, UNet2DConditionConfig, UNet2DConfig
from perfuse.plugins.host import resolve

__all__ = ["ARCHITECTURES", "Architecture", "describe", "find", "latents_of"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a checkpoint's class becomes components."""

    class_name: str
    #: ``"module:function"``; ``(name, folder, config) -> tuple[ComponentSpec, ...]``, torch-free.
    describe: str
    #: ``"module:function"``; ``(spec, weights, dtype) -> nn.Module`` that takes the signature's
    #: inputs in order and returns a tuple of its outputs.
    build: str


def _native(class_name: str, describe: str, build: str) -> Architecture:
    return Architecture(
        class_name=class_name,
        describe=f"perfuse.models.architectures:{describe}",
        build=f"perfuse.models.components:{build}",
    )


ARCHITECTURES: tuple[Architecture, ...] = (
    _native("UNet2DModel", "unet_2d", "build_unet_2d"),
    _native("UNet2DConditionModel", "unet_2d_condition", "build_unet_2d_condition"),
    _native("AutoencoderKL", "autoencoder_kl", "build_autoencoder_kl"),
    _native("CLIPTextModel", "clip_text", "build_clip_text"),
    _native("CLIPTextModelWithProjection", "clip_text_projection", "build_clip_text"),
)


@lru_cache(maxsize=1)
def _known() -> Mapping[str, Architecture]:
    from perfuse.plugins.host import host

    return {architecture.class_name: architecture for architecture in host().architectures()}


def find(class_name: str, *, asked: str) -> Architecture:
    """The architecture of a class.

    Raises:
        CheckpointError: neither perfuse nor a plugin knows the class.
    """
    known = _known()
    if class_name not in known:
        raise CheckpointError(
            f"{asked} is a {class_name}, which perfuse does not know; it knows "
            f"{', '.join(sorted(known))}. A plugin can add a class: hook perfuse_architectures."
        )
    return known[class_name]


def describe(
    class_name: str, name: str, folder: str, config: Mapping[str, Any]
) -> tuple[ComponentSpec, ...]:
    """The components that a checkpoint's folder holds.

    Raises:
        CheckpointError: the class is unknown, or its config is not one it can take.
    """
    specs: tuple[ComponentSpec, ...] = resolve(find(class_name, asked=name).describe)(
        name, folder, config
    )
    return specs


def _float(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float", shape=shape)


_TIMESTEP = TensorSpec(name="timestep", dtype="float32", shape=("batch",))


def unet_2d(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """An unconditional UNet: pixels in, a prediction of the same size out."""
    unet = UNet2DConfig.from_dict(config)
    inputs = [_float("sample", "batch", unet.in_channels, "height", "width"), _TIMESTEP]
    if unet.num_class_embeds is not None or unet.class_embed_type is not None:
        inputs.append(_class_labels(unet.class_embed_type, unet.block_out_channels[0] * 4))
    return (
        ComponentSpec(
            name=name,
            class_name=unet.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=tuple(inputs),
                outputs=(_float("out_sample", "batch", unet.out_channels, "height", "width"),),
            ),
            multiples={"height": unet.downscale, "width": unet.downscale},
        ),
    )


def _class_labels(kind: str | None, width: int) -> TensorSpec:
    if kind is None:
        return TensorSpec(name="class_labels", dtype="int64", shape=("batch",))
    if kind == "timestep":
        return TensorSpec(name="class_labels", dtype="float32", shape=("batch",))
    return _float("class_labels", "batch", width)


def unet_2d_condition(
    name: str, folder: str, config: Mapping[str, Any]
) -> tuple[ComponentSpec, ...]:
    """A text-conditioned UNet: latents and text states in, a prediction out."""
    unet = UNet2DConditionConfig.from_dict(config)
    text_width = unet.encoder_hid_dim or unet.per_block("cross_attention_dim")[0]
    inputs = [
        _float("sample", "batch", unet.in_channels, "latent_height", "latent_width"),
        _TIMESTEP,
        _float("encoder_hidden_states", "batch", "sequence", text_width),
    ]
    if unet.addition_embed_type == "text_time":
        sizes, width = (
            unet.addition_time_embed_dim or 0,
            (unet.projection_class_embeddings_input_dim or 0),
        )
        ids = 6 if (width - 6 * sizes) % 8 == 0 else 5  # the refiner has five
        inputs.append(_float("text_embeds", "batch", width - ids * sizes))
        inputs.append(_float("time_ids", "batch", ids))
    if unet.addition_embed_type in ("image", "text_image") or unet.encoder_hid_dim_type in (
        "image_proj",
        "text_image_proj",
    ):
        inputs.append(_float("image_embeds", "batch", "image_width"))
    if unet.time_cond_proj_dim is not None:
        inputs.append(_float("timestep_cond", "batch", unet.time_cond_proj_dim))
    if unet.num_class_embeds is not None or unet.class_embed_type is not None:
        width = unet.projection_class_embeddings_input_dim or unet.block_out_channels[0] * 4
        inputs.append(_class_labels(unet.class_embed_type, width))
    return (
        ComponentSpec(
            name=name,
            class_name=unet.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=tuple(inputs),
                outputs=(
                    _float(
                        "out_sample", "batch", unet.out_channels, "latent_height", "latent_width"
                    ),
                ),
            ),
        ),
    )


def autoencoder_kl(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """The two halves of an autoencoder. The encoder gives moments; the host draws the sample."""
    vae = AutoencoderKLConfig.from_dict(config)
    latents = vae.latent_channels
    encoder = Signature(
        inputs=(_float("sample", "batch", vae.in_channels, "height", "width"),),
        outputs=(
            _float("latent_parameters", "batch", 2 * latents, "latent_height", "latent_width"),
        ),
    )
    decoder = Signature(
        inputs=(_float("latent_sample", "batch", latents, "latent_height", "latent_width"),),
        outputs=(_float("sample", "batch", vae.out_channels, "height", "width"),),
    )
    multiples = {"height": vae.downscale, "width": vae.downscale}
    return tuple(
        ComponentSpec(
            name=f"{name}_{half}",
            class_name=vae.class_name,
            folder=folder,
            config=config,
            signature=signature,
            multiples=multiples if half == "encoder" else {},
        )
        for half, signature in (("encoder", encoder), ("decoder", decoder))
    )


def clip_text(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """A CLIP text encoder: the last states, the states before the last layer, and the pooled one.

    Stable Diffusion XL takes the states before the last layer; a graph cannot choose at run time,
    so it gives both.
    """
    return _clip("CLIPTextModel", "pooler_output", "hidden_size", name, folder, config)


def clip_text_projection(
    name: str, folder: str, config: Mapping[str, Any]
) -> tuple[ComponentSpec, ...]:
    """The same with the pooled state projected into the space that CLIP shares with pictures."""
    return _clip(
        "CLIPTextModelWithProjection", "text_embeds", "projection_dim", name, folder, config
    )


def latents_of(config: Mapping[str, Any]) -> LatentSpec:
    """How a pipeline's latents relate to those of an ``AutoencoderKL`` of this configuration.

    Raises:
        CheckpointError: means or deviations that are not one a latent channel.
    """
    vae = AutoencoderKLConfig.from_dict(config)
    for name, values in (("latents_mean", vae.latents_mean), ("latents_std", vae.latents_std)):
        if values is not None and len(values) != vae.latent_channels:
            raise vae.error(
                f"{name} has {len(values)} entries", f"one a latent channel, {vae.latent_channels}"
            )
    return LatentSpec(
        channels=vae.latent_channels,
        downscale=vae.downscale,
        scaling_factor=vae.scaling_factor,
        shift_factor=vae.shift_factor if vae.shift_factor is not None else 0.0,
        mean=vae.latents_mean,
        std=vae.latents_std,
    )


def _clip(
    class_name: str,
    pooled: str,
    pooled_width: str,
    name: str,
    folder: str,
    config: Mapping[str, Any],
) -> tuple[ComponentSpec, ...]:
    try:
        # transformers leaves values at their default out of the file
        width = int(config.get("hidden_size", 512))
        pooled_size = int(config.get(pooled_width, 512))
        longest = int(config.get("max_position_embeddings", 77))
    except (TypeError, ValueError) as exc:
        raise CheckpointError(
            f"{folder}/config.json was read as a CLIP text encoder's; {exc} is "
            "malformed in it. Take the file from the checkpoint again."
        ) from exc
    return (
        ComponentSpec(
            name=name,
            class_name=class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),),
                outputs=(
                    _float("last_hidden_state", "batch", "sequence", width),
                    _float("penultimate_hidden_state", "batch", "sequence", width),
                    _float(pooled, "batch", pooled_size),
                ),
            ),
            maximums={"sequence": longest},
        ),
    )
