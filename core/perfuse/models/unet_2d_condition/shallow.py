"""The UNet cut before its last layers (Ma et al. 2023, DeepCache, arXiv:2312.00858), without torch."""

from dataclasses import replace
from typing import TYPE_CHECKING

from perfuse.contract.component import Component
from perfuse.contract.spec import ComponentSpec, Signature
from perfuse.errors import InputError
from perfuse.models.shapes import floating
from perfuse.models.unet_2d_condition.description import (
    UNet2DConditionConfig,
    conditions,
    residuals,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["shallow"]


def shallow(component: Component, layers: int) -> tuple[Component, Component]:
    """The UNet with its deep state as one more output, and the entry of its last layers.

    Args:
        component: The UNet.
        layers: How many layers of the last block run in the entry; 0 for all but its first.

    Raises:
        InputError: the UNet is of K blocks, its last block has not so many, or IP-Adapters are in it.
    """
    spec = component.spec
    unet = UNet2DConditionConfig.from_dict(spec.config)
    most = unet.per_block("layers_per_block")[0]
    if unet.has_k_blocks:
        raise InputError(f"{spec.name} was to be cut before its last layers; it is of K blocks.")
    if not 0 <= layers <= most:
        raise InputError(
            f"layers={layers} was given; the last block of {spec.name} has {most + 1}, so that it "
            f"can be cut before the last 1 to {most}."
        )
    count = layers if layers else most
    kept = _inputs(spec, unet, count)
    state = floating(
        f"deep_state_{count}", "batch", unet.block_out_channels[0], "latent_height", "latent_width"
    )
    signature = spec.signature
    outputs = (*signature.outputs, state)
    full = replace(spec, signature=replace(signature, outputs=outputs))
    inputs = (*(one for one in signature.inputs if one.name in kept), state)
    entry = replace(
        spec,
        name=f"{spec.name}_shallow_{count}",
        signature=Signature(inputs=inputs, outputs=signature.outputs),
        entry_of=spec.name,
    )
    names = entry.signature.input_names
    return (
        replace(component, spec=full).rebuilt(_with_state, count, graph=f"deep state {count}"),
        replace(component, spec=entry).rebuilt(_cut, names, count, graph=f"last layers {count}"),
    )


def _inputs(spec: ComponentSpec, unet: UNet2DConditionConfig, layers: int) -> set[str]:
    """The inputs that the last layers read, and what feeds their skip connections.

    Raises:
        InputError: the UNet has inputs that are not its own.
    """
    own = {one.name for one in conditions(unet)}
    given = {one.name for one in residuals(unet)}
    for name in spec.signature.input_names:
        if name not in own | given and not name.startswith("adapter_feature"):
            raise InputError(
                f"{spec.name} was to be cut before its last layers; it takes {name}, which that does "
                "not fit. Leave out what gave it that, such as an IP-Adapter or another transform, or the cut."
            )
    if not _attends(unet, layers):
        own -= {"encoder_hidden_states"} if unet.addition_embed_type != "text" else set()
        own -= (
            {"image_embeds"} if unet.addition_embed_type not in ("image", "text_image") else set()
        )
    return own | {f"down_residual_{i}" for i in range(layers)}


def _attends(unet: UNet2DConditionConfig, layers: int) -> bool:
    """Whether the last layers, or those before their skip connections, look at the text."""
    kinds = (unet.up_block_types[-1], *unet.down_block_types[: 1 if layers > 1 else 0])
    return any("CrossAttn" in kind for kind in kinds)


def _with_state(module: "nn.Module", layers: int) -> "nn.Module":
    from perfuse.models.unet_2d_condition.shallow_network import WithDeepState

    return WithDeepState.of(module, layers)


def _cut(module: "nn.Module", names: tuple[str, ...], layers: int) -> "nn.Module":
    from perfuse.models.unet_2d_condition.shallow_network import Shallow

    return Shallow.of(module, names, layers)
