"""perfuse's own models. Importing this loads no torch; each class does, on first use.

Parameter names, creation order and initialisers are those of Diffusers, so that its checkpoints
load as they are and a model built from a seed equals the one that Diffusers builds from it.

Each folder here owns an architecture: ``ARCHITECTURES`` in its ``__init__`` says where its
description is, which needs no torch, and where its network.
"""

from typing import TYPE_CHECKING, Any

from perfuse import _diffusers
from perfuse._lazy import lazy

if TYPE_CHECKING:
    from perfuse.models.attention import GEGLU as GEGLU
    from perfuse.models.attention import Attention as Attention
    from perfuse.models.attention import BasicTransformerBlock as BasicTransformerBlock
    from perfuse.models.attention import FeedForward as FeedForward
    from perfuse.models.attention import Transformer2DModel as Transformer2DModel
    from perfuse.models.auto import AutoModel as AutoModel
    from perfuse.models.autoencoder_kl.latents import ScaledLatents as ScaledLatents
    from perfuse.models.building import wrap as wrap
    from perfuse.models.changing import with_changes as with_changes
    from perfuse.models.loading import load_state as load_state
    from perfuse.models.registry import describe as describe
    from perfuse.models.registry import fitted as fitted
    from perfuse.models.registry import host_inputs as host_inputs
    from perfuse.models.registry import latents_of as latents_of

_get, __dir__ = lazy(
    __name__,
    {
        "registry": (
            "describe",
            "fitted",
            "host_inputs",
            "latents_of",
        ),
        "auto": ("AutoModel",),
        "autoencoder_kl.latents": ("ScaledLatents",),
        "attention": (
            "GEGLU",
            "Attention",
            "BasicTransformerBlock",
            "FeedForward",
            "Transformer2DModel",
        ),
        "loading": ("load_state",),
        "building": ("wrap",),
        "changing": ("with_changes",),
    },
)


def __getattr__(name: str) -> Any:
    """A part that models share, a model by the name of its class, or what Diffusers' room has."""
    try:
        return _get(name)
    except AttributeError:
        from perfuse.models.registry import model_class

        found = None if name.startswith("_") else model_class(name)
        return _diffusers.borrowed(__name__, name) if found is None else found
