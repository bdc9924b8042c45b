"""The UNet whose cross-attentions may take what they gave before (Zhang et al. 2024, T-GATE, arXiv:2404.02747).

One graph, not two: an entry without cross-attention would hold nearly all weights again to leave out a
few percent of the operations.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse.contract.component import Component
from perfuse.contract.spec import ComponentSpec, TensorSpec
from perfuse.errors import InputError
from perfuse.models.ip_adapter.cross_attentions import cross_attentions
from perfuse.models.shapes import floating
from perfuse.models.unet_2d_condition.description import (
    UNet2DConditionConfig,
    at_level,
    inputs_of,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["gated", "open_gate"]

_GATE = "gate"
_KEPT = "kept_attention_"


def gated(component: Component) -> Component:
    """The UNet that also gives what its cross-attentions give, and takes that where a gate is closed.

    Raises:
        InputError: the UNet's cross-attentions are not those of Stable Diffusion 1, 2 and XL.
    """
    spec = component.spec
    if spec.signature.input(_GATE) is not None:  # an export that was made with it
        return component
    unet = UNet2DConditionConfig.from_dict(spec.config)
    _check(spec, unet)
    places = cross_attentions(spec.config)
    widths = [(unet.block_out_channels[place.level], place.level) for place in places]
    kept = tuple(at_level(f"{_KEPT}{i}", *one) for i, one in enumerate(widths))
    attention = tuple(at_level(f"attention_{i}", *one) for i, one in enumerate(widths))
    signature = replace(
        spec.signature,
        inputs=(*spec.signature.inputs, floating(_GATE, "batch"), *kept),
        outputs=(*spec.signature.outputs, *attention),
    )
    own = replace(component, spec=replace(spec, signature=signature))
    return own.rebuilt(_gated, spec.config, graph="gated cross-attention")


def open_gate(spec: ComponentSpec, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The inputs of a gated UNet with which it computes everything: zeros, float32."""
    if spec.signature.input(_GATE) is None:
        return {}
    mine = (one for one in spec.signature.inputs if one.name.startswith((_GATE, _KEPT)))
    return {one.name: np.zeros(_shape(one, sizes), dtype=np.float32) for one in mine}


def _shape(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.resolve(sizes))


def _check(spec: ComponentSpec, unet: UNet2DConditionConfig) -> None:
    """Raise ``InputError`` for a UNet that it does not fit."""
    wrong = ""
    if unet.has_k_blocks:
        wrong = "it is of K blocks"
    elif any(unet.per_block("only_cross_attention")):
        wrong = "some of its blocks have cross-attention alone"
    elif unet.encoder_hid_dim_type is not None or unet.addition_embed_type in (
        "text",
        "text_image",
    ):
        wrong = "it projects its text states"
    elif unknown := [n for n in spec.signature.input_names if n not in inputs_of(unet)]:
        wrong = f"it takes {unknown[0]}, which an IP-Adapter or another transform gave it"
    if wrong:
        raise InputError(f"A gate was asked for the cross-attentions of {spec.name}; {wrong}.")


def _gated(module: "nn.Module", config: Mapping[str, Any]) -> "nn.Module":
    from perfuse.models.unet_2d_condition.gate_network import Gated

    return Gated.of(module, config)
