"""CLIP's text encoders with what steering a prompt needs: more inputs, and every layer's states."""

import dataclasses
from typing import TYPE_CHECKING

from perfuse.contract.component import Component
from perfuse.contract.spec import ComponentSpec
from perfuse.models.clip_text.description import PLAIN, PROJECTED
from perfuse.models.shapes import floating

if TYPE_CHECKING:
    from torch import nn

__all__ = ["steered"]


def steered(component: Component) -> Component | None:
    """A CLIP text encoder that takes learned tokens and a mask, and returns all hidden states.

    Its further inputs are ``added_embeddings`` [B, S, D], read where a token's id is beyond the
    vocabulary, and ``attention_bias`` [B, S, S], added to the attention's logits. Its further
    outputs are ``hidden_states`` [B, layers + 1, S, D] and ``normed_hidden_states``, the same after
    the last layer norm.

    Returns:
        The component itself if it is such an encoder already; ``None`` for another kind of encoder.
    """
    spec = component.spec
    if spec.class_name not in (PLAIN, PROJECTED):
        return None
    if spec.signature.input("added_embeddings") is not None:
        return component
    return dataclasses.replace(component.rebuilt(_steer, graph="steered"), spec=_described(spec))


def _described(spec: ComponentSpec) -> ComponentSpec:
    width = int(spec.config.get("hidden_size", 512))
    layers = int(spec.config.get("num_hidden_layers", 12)) + 1
    signature = dataclasses.replace(
        spec.signature,
        inputs=(
            *spec.signature.inputs,
            floating("added_embeddings", "batch", "sequence", width),
            floating("attention_bias", "batch", "sequence", "sequence"),
        ),
        outputs=(
            *spec.signature.outputs,
            floating("hidden_states", "batch", layers, "sequence", width),
            floating("normed_hidden_states", "batch", layers, "sequence", width),
        ),
    )
    return dataclasses.replace(spec, signature=signature)


def _steer(module: "nn.Module") -> "nn.Module":
    from perfuse.models.clip_text.steered_network import SteeredClipText

    return SteeredClipText(module)
