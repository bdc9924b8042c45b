"""A transformer cut after its first blocks and before its last ones, as two descriptions, without torch."""

from dataclasses import replace
from typing import TYPE_CHECKING

from perfuse.contract.component import Component
from perfuse.contract.spec import Signature
from perfuse.errors import InputError
from perfuse.models.block_cut import Cut
from perfuse.models.shapes import floating

if TYPE_CHECKING:
    from torch import nn

__all__ = ["cut"]


def cut(
    component: Component,
    first: int,
    last: int,
    *,
    of: int,
    width: int,
    patch: int | None = None,
    between: int | None = None,
) -> tuple[Component, Component]:
    """A transformer that also gives what its middle blocks add, and the entry of the other ones.

    Args:
        component: The transformer.
        first: As in ``Cut``, and so the others.
        last: …
        of: …
        width: Channels of a token.
        patch: …
        between: …

    Raises:
        InputError: there are not so many blocks.
    """
    spec = component.spec
    if first < 0 or last < 0 or first + last >= of:
        given = f"blocks={first}" + (f",last={last}" if last else "")
        room = f"{of - 1} can be the first" + (" and last" if last else "")
        raise InputError(f"{given} was given; {spec.name} has {of}, so that up to {room} ones.")
    here = Cut(first=first, last=last, of=of, patch=patch, between=between)
    sides = ("latent_height", "latent_width")
    tokens = ("image_sequence",) if patch is None else tuple(f"{side}/{patch}" for side in sides)
    name = f"{first}_last_{last}" if last else f"{first}"
    sign = floating(f"sign_{name}", "batch", *tokens, width)
    added = (
        floating(f"added_{name}", "batch", *tokens, width),
        floating(f"added_text_{name}", "batch", "sequence", width),
        floating(f"added_between_{name}", "batch", between or 1, width),
    )[: here.kept]
    signature = spec.signature
    full = replace(spec, signature=replace(signature, outputs=(*signature.outputs, sign, *added)))
    entry = replace(
        spec,
        name=f"{spec.name}_first_{name}",
        signature=Signature(inputs=(*signature.inputs, *added), outputs=(*signature.outputs, sign)),
        entry_of=spec.name,
    )
    return (
        replace(component, spec=full).rebuilt(_with_added, here, graph=f"added, {here}"),
        replace(component, spec=entry).rebuilt(_outer_part, here, graph=f"outer blocks, {here}"),
    )


def _with_added(module: "nn.Module", here: Cut) -> "nn.Module":
    from perfuse.models.blocks import with_added

    return with_added(module, here)


def _outer_part(module: "nn.Module", here: Cut) -> "nn.Module":
    from perfuse.models.blocks import outer_part

    return outer_part(module, here)
