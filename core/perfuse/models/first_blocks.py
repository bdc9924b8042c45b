"""A transformer cut after its first blocks, as two descriptions, without torch."""

from dataclasses import replace
from typing import TYPE_CHECKING

from perfuse.contract.component import Component
from perfuse.contract.spec import Signature
from perfuse.errors import InputError
from perfuse.models.shapes import floating

if TYPE_CHECKING:
    from torch import nn

__all__ = ["cut"]


def cut(
    component: Component, blocks: int, *, of: int, width: int, patch: int | None = None
) -> tuple[Component, Component]:
    """A transformer that also gives what its later blocks add, and the entry of the first ones.

    Args:
        component: The transformer.
        blocks: How many are the first ones; 0 for none.
        of: How many there are.
        width: Channels of a token.
        patch: The side of a token, in latents; ``None`` where latents are packed to tokens before.

    Raises:
        InputError: there are not so many blocks.
    """
    spec = component.spec
    if not 0 <= blocks < of:
        raise InputError(
            f"blocks={blocks} was given; {spec.name} has {of}, so that up to {of - 1} can be the "
            "first ones."
        )
    sides = ("latent_height", "latent_width")
    tokens = ("image_sequence",) if patch is None else tuple(f"{side}/{patch}" for side in sides)
    sign, added = (
        floating(f"{name}_{blocks}", "batch", *tokens, width) for name in ("sign", "added")
    )
    signature = spec.signature
    full = replace(spec, signature=replace(signature, outputs=(*signature.outputs, sign, added)))
    entry = replace(
        spec,
        name=f"{spec.name}_first_{blocks}",
        signature=Signature(inputs=(*signature.inputs, added), outputs=(*signature.outputs, sign)),
        entry_of=spec.name,
    )
    return (
        replace(component, spec=full).rebuilt(
            _with_added, blocks, patch, graph=f"added after {blocks}"
        ),
        replace(component, spec=entry).rebuilt(
            _first_part, blocks, patch, graph=f"first {blocks} blocks"
        ),
    )


def _with_added(module: "nn.Module", blocks: int, patch: int | None) -> "nn.Module":
    from perfuse.models.blocks import with_added

    return with_added(module, blocks, patch)


def _first_part(module: "nn.Module", blocks: int, patch: int | None) -> "nn.Module":
    from perfuse.models.blocks import first_part

    return first_part(module, blocks, patch)
