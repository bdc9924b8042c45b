"""What layers are called in files of other layouts, as data: for single files and LoRAs alike.

A table says for each layer of the original model which layer of Diffusers' it is; ``{}`` stands for
the number of a block, the same on both sides::

    {"double_blocks.{}.img_attn.proj": "transformer_blocks.{}.attn.to_out.0"}

A layer that is several of Diffusers', or has its halves the other way round, is a ``Stacked``.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from perfuse.contract.original import Shapes, Stacked, View

__all__ = ["Table", "aliases_of", "blocks", "first_axis", "stacked", "swapped", "views_of"]

Table = Mapping[str, str | Stacked]

#: The number of a block in a name: the first one in it.
_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")
#: What the weight of a norm is called.
_WEIGHT = {"scale": "weight"}


def stacked(place: str, *layers: str, shares: tuple[int, ...] = ()) -> Stacked:
    """Several layers of one place, one above the other."""
    return Stacked(layers=tuple(f"{place}.{layer}" for layer in layers), shares=shares)


def swapped(layer: str) -> Stacked:
    """A layer with its halves the other way round: of a norm, shift and scale."""
    return Stacked(layers=(layer,), swapped=True)


def aliases_of(table: Table, layers: Iterable[str]) -> dict[str, str | Stacked]:
    """The names of a table for the layers that a model has, and what they mean in it."""
    known = tuple(layers)
    found: dict[str, str | Stacked] = {}
    for other, place in table.items():
        first = place.layers[0] if isinstance(place, Stacked) else place
        pattern = re.compile(re.escape(first).replace(r"\{\}", r"(\d+)"))
        for match in filter(None, map(pattern.fullmatch, known)):
            number = match[1] if match.groups() else ""
            found[other.replace("{}", number)] = _numbered(place, number)
    return found


def views_of(table: Table, shapes: Shapes) -> dict[str, View]:
    """The tensors of a file in the original layout by Diffusers' names; others keep theirs."""
    found: dict[str, View] = {}
    for key, (_, shape) in shapes.items():
        layer, _, last = key.rpartition(".")
        end, place = f".{_WEIGHT.get(last, last)}", _found(table, layer)
        if place is None:  # a tensor that is no layer's, or one that has the same name
            end, place = "", _found(table, key) or key
        found |= _views(place, end, key, shape)
    return found


def first_axis(shapes: Shapes, ranks: Mapping[str, int]) -> Shapes:
    """The shapes of a file, some with the first axis of length one that GGUF's tools leave out.

    ggml counts axes from the innermost, and ends a shape where only ones are left: what llama.cpp's
    ``quantize`` has written of a table [1, P, C] is [P, C].

    Args:
        shapes: The shapes of a file.
        ranks: Names of tensors, and how many axes these have in other files.
    """
    return {
        name: (dtype, (1, *shape) if len(shape) + 1 == ranks.get(name) else shape)
        for name, (dtype, shape) in shapes.items()
    }


def blocks(shapes: Shapes, name: str) -> int:
    """How many blocks of a name a file has: ``name.0.…``, ``name.1.…``."""
    numbers = (key.removeprefix(f"{name}.").split(".")[0] for key in shapes if f"{name}." in key)
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)


def _found(table: Table, layer: str) -> str | Stacked | None:
    """What a table says of a layer, with its block's number in it."""
    if layer in table:
        return table[layer]
    match = _NUMBER.search(layer)
    place = table.get(_NUMBER.sub(".{}", layer, count=1)) if match is not None else None
    return None if place is None or match is None else _numbered(place, match[1])


def _numbered(place: str | Stacked, number: str) -> str | Stacked:
    if isinstance(place, str):
        return place.replace("{}", number)
    return replace(place, layers=tuple(layer.replace("{}", number) for layer in place.layers))


def _views(place: str | Stacked, end: str, stored: str, shape: tuple[int, ...]) -> dict[str, View]:
    """The tensors of Diffusers' model that a stored one is."""
    if isinstance(place, str):
        return {place + end: View(stored=stored, shape=shape)}
    if place.swapped:
        return {place.layers[0] + end: View(stored=stored, shape=shape, swapped=True)}
    shares = place.shares or (1,) * len(place.layers)
    ends = list(itertools.accumulate(shape[0] * share // sum(shares) for share in shares))
    return {
        layer + end: View(stored=stored, shape=(last - first, *shape[1:]), rows=(first, last))
        for layer, first, last in zip(place.layers, [0, *ends], ends, strict=False)
    }
