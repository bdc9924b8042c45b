"""A transformer whose attentions may give what they gave at another step, as descriptions, without torch.

Pyramid Attention Broadcast (Zhao et al. 2024, arXiv:2408.12588).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from perfuse.contract.architecture import Attended, Attentions
from perfuse.contract.component import Component
from perfuse.contract.spec import Signature, TensorSpec
from perfuse.errors import InputError
from perfuse.models.shapes import floating

if TYPE_CHECKING:
    from torch import nn

__all__ = ["giving", "joint_attentions", "recalling"]


def joint_attentions(
    width: int, joint: tuple[str, int], single: tuple[str, int] = ("", 0), patch: int | None = None
) -> Attentions:
    """Those of a transformer in whose blocks picture and text attend together.

    Args:
        width: Channels of a token.
        joint: The list of blocks with a stream of each, and how many there are.
        single: That of the later blocks with one sequence of both, text first.
        patch: The side of a token, in latents; ``None`` where latents are packed before.
    """
    both = [
        Attended(module=f"{joint[0]}.{i}.attn", kind="spatial", joint=True) for i in range(joint[1])
    ]
    one = [
        Attended(module=f"{single[0]}.{i}.attn", kind="spatial", text="before")
        for i in range(single[1])
    ]
    return Attentions(each=(*both, *one), width=width, patch=patch)


def giving(component: Component, attentions: Attentions, kinds: Sequence[str]) -> Component:
    """The transformer that also gives what its attentions of some kinds give, ``attention_N``."""
    return _with(component, attentions, tuple(kinds), ())


def recalling(
    component: Component, attentions: Attentions, kinds: Sequence[str], kept: Sequence[str]
) -> Component:
    """An entry of the transformer whose attentions of some kinds are not computed, but taken.

    Args:
        component: The transformer.
        attentions: Its attentions.
        kinds: Those that are kept for other steps; what is computed of them is given.
        kept: Those of them that are taken: the last inputs, ``attention_N``.
    """
    return _with(component, attentions, tuple(kinds), tuple(kept))


def _with(
    component: Component, attentions: Attentions, kinds: tuple[str, ...], kept: tuple[str, ...]
) -> Component:
    spec, signature = component.spec, component.spec.signature
    if any(one.startswith("ip_") for one in signature.input_names):
        raise InputError(
            f"Attentions of {spec.name} were to be kept, which also look at the images of an IP-Adapter. "
            "Use another transform, or take the adapter out: pipe.unload_ip_adapter()."
        )
    name = "_".join((spec.name, "without", *kept)) if kept else spec.name
    taken = _tensors(attentions, kept)
    given = _tensors(attentions, tuple(kind for kind in kinds if kind not in kept))
    own = replace(
        spec,
        name=name,
        signature=Signature(
            inputs=(*signature.inputs, *taken), outputs=(*signature.outputs, *given)
        ),
        entry_of=spec.name if kept else spec.entry_of,
    )
    return replace(component, spec=own).rebuilt(
        _rewritten, attentions, kinds, kept, graph=f"attentions {kinds} {kept}"
    )


def _tensors(attentions: Attentions, kinds: tuple[str, ...]) -> list[TensorSpec]:
    """What the attentions of some kinds give."""
    tokens = ["image_sequence"]
    if attentions.patch is not None:
        tokens = [f"{side}/{attentions.patch}" for side in ("latent_height", "latent_width")]
    return [
        floating(f"attention_{number}", "batch", *tokens, attentions.width)
        for number, one in enumerate(attentions.each)
        if one.kind in kinds
    ]


def _rewritten(
    module: "nn.Module", attentions: Attentions, kinds: tuple[str, ...], kept: tuple[str, ...]
) -> "nn.Module":
    from perfuse.models.broadcast_network import Broadcast

    return Broadcast.of(module, attentions, kinds, kept)
