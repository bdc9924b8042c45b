"""Which class of today a ``Transformer2DModel`` is: its norms tell."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from perfuse.contract.spec import ComponentSpec
from perfuse.errors import CheckpointError
from perfuse.models.config import ModelConfig
from perfuse.models.dit_transformer import description as dit
from perfuse.models.pixart_transformer import description as pixart

__all__ = ["describe"]

_Describe = Callable[[str, str, Mapping[str, Any]], tuple[ComponentSpec, ...]]
#: The kind of norms to the config of today's class, and its description.
_KINDS: Mapping[str, tuple[type[ModelConfig], _Describe]] = {
    "ada_norm_zero": (dit.DiTConfig, dit.describe),
    "ada_norm_single": (pixart.PixArtConfig, pixart.describe),
}
#: Fields that today's classes lack, by the value that changes nothing.
_INERT = {
    "attention_type": "default",
    "caption_channels": None,
    "cross_attention_dim": None,
    "double_self_attention": False,
    "interpolation_scale": None,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_additional_conditions": None,
    "use_linear_projection": False,
}


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """The component as today's class describes it.

    Raises:
        CheckpointError: it is of neither, or a field is unknown there and changes something.
    """
    found = _KINDS.get(str(config.get("norm_type")))
    if found is None:
        raise CheckpointError(
            f"{name} is a Transformer2DModel whose norm_type is {config.get('norm_type')!r}; perfuse "
            f"takes {', '.join(_KINDS)}, which DiT and PixArt have. Run it through Diffusers."
        )
    kind, described = found
    known = {one.name for one in dataclasses.fields(kind)}
    kept = {
        key: value
        for key, value in config.items()
        if key in known or key.startswith("_") or key not in _INERT or value != _INERT[key]
    }
    return described(name, folder, {**kept, "_class_name": kind.class_name})
