"""What files of adapters call the layers of a UNet: as CompVis' files number its blocks, for one."""

import re
from collections.abc import Iterable

from perfuse.models.unet_2d_condition.original import PLAIN, RESNET

__all__ = ["aliases"]

_RESNETS = re.compile(r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.conv1")


def aliases(layers: Iterable[str]) -> dict[str, str]:
    """Other names of layers, and the layers."""
    known = tuple(layers)
    places = _places(known)
    found: dict[str, str] = {}
    for layer in known:
        found |= {name: layer for name in _names(layer, places)}
        if layer.endswith(".to_out.0"):  # as Diffusers' processors named it
            found[layer.removesuffix(".0")] = layer
    return found


def _names(layer: str, places: dict[str, str]) -> Iterable[str]:
    """The name of a layer in a file in the original layout, if it has one."""
    inner = {ours: theirs for theirs, ours in RESNET.items()}
    for length in range(layer.count(".") + 1, 0, -1):
        parts = layer.split(".")
        place, rest = places.get(".".join(parts[:length])), ".".join(parts[length:])
        if place is not None:
            yield f"{place}.{inner.get(rest, rest)}" if rest else place
            return


def _places(layers: tuple[str, ...]) -> dict[str, str]:
    """The blocks of the model, and those of the original's flat lists down and up."""
    places = {ours: theirs for theirs, ours in PLAIN.items()}
    there = frozenset(layers)
    found = sorted((m[1], int(m[2]), int(m[3])) for one in there if (m := _RESNETS.fullmatch(one)))
    for way, old, first in (("down", "input_blocks", 1), ("up", "output_blocks", 0)):
        count = first
        for block in sorted({b for w, b, _ in found if w == way}):
            ours = f"{way}_blocks.{block}"
            resnets = [resnet for w, b, resnet in found if (w, b) == (way, block)]
            for resnet in resnets:
                places[f"{ours}.resnets.{resnet}"] = f"{old}.{count}.0"
                places[f"{ours}.attentions.{resnet}"] = f"{old}.{count}.1"
                count += 1
            if f"{ours}.downsamplers.0.conv" in there:
                places[f"{ours}.downsamplers.0.conv"] = f"{old}.{count}.0.op"
                count += 1
            if f"{ours}.upsamplers.0.conv" in there:
                last = 2 if any(one.startswith(f"{ours}.attentions.") for one in there) else 1
                places[f"{ours}.upsamplers.0.conv"] = f"{old}.{count - 1}.{last}.conv"
    return places
