"""IP-Adapters of UNets: a second cross-attention beside each (Ye et al. 2023, arXiv:2308.06721)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim
from perfuse.errors import InputError
from perfuse.models.ip_adapter.cross_attentions import cross_attentions
from perfuse.models.ip_adapter.description import (
    LENGTHS,
    ImageAdapter,
    check_made_for,
)
from perfuse.models.ip_adapter.prompting import (
    Attach,
    Prompting,
    counts_of,
    finite_scale,
    with_inputs,
)
from perfuse.models.shapes import floating

if TYPE_CHECKING:
    from torch import nn

__all__ = ["UNET"]

#: Sizes to capture a graph with, which no other dimension of a denoiser has.
_GROUPS = (3, 5, 9, 15, 21)
_KINDS = ("plain", "full", "plus", "face")
_PARTS = ("down", "mid", "up")


class _UNet(Prompting):
    """Adapters of UNets with text: also several images of one, each with a mask."""

    order: ClassVar[tuple[str, ...]] = ("subfolder", "weight_name", "image_encoder_folder")

    def described(self, spec: ComponentSpec, adapters: Sequence[ImageAdapter]) -> ComponentSpec:
        """The denoiser with inputs for each adapter's tokens, masks and scales.

        An adapter's images form one group of tokens, or a group each where each has a mask of its own.
        The mask of a group is given for each level of the UNet, in the first numbers of as many as there
        are latents.
        """
        text = spec.signature.input("encoder_hidden_states")
        layers = cross_attentions(spec.config) if text is not None else ()
        width = int(text.shape[-1]) if text is not None else 0
        levels, inputs, dims = len(spec.config.get("down_block_types", ())), [], dict[str, Dim]()
        for i, adapter in enumerate(adapters):
            check_made_for(adapter, spec, _KINDS, len(layers), width)
            groups, length = f"ip_groups_{i}", f"ip_length_{i}"
            inputs += [
                floating(f"ip_tokens_{i}", "batch", groups, length, adapter.width),
                floating(f"ip_masks_{i}", groups, levels, "latent_height", "latent_width"),
                floating(f"ip_scales_{i}", groups, len(layers)),
            ]
            dims |= {groups: Dim(example=_GROUPS[i]), length: Dim(example=LENGTHS[i])}
        return with_inputs(spec, inputs, dims)

    @property
    def attach(self) -> Attach:
        from perfuse.models.ip_adapter.unet_network import attached

        return attached

    def scales(self, scale: Any, spec: ComponentSpec, count: int) -> tuple[Any, ...]:
        """A number, numbers for images with masks, or a dict of blocks, for each adapter."""
        each = list(scale) if isinstance(scale, list | tuple) else [scale]
        counts_of(each, count)
        return tuple(_read_scale(one, spec.config) for one in each)

    def image_encoder(self, folder: Path) -> "nn.Module":
        from perfuse.models.clip_vision.network import load

        return load(folder)


UNET = _UNet()


def _read_scale(scale: Any, config: Mapping[str, Any]) -> Any:
    """A number, numbers for images, or ``{"layers": (…)}``: one for each attention."""
    if isinstance(scale, Mapping):
        return {"layers": _by_layer(scale, config)}
    numbers = scale if isinstance(scale, list | tuple) else [scale]
    if not numbers:
        raise InputError(
            "An IP-Adapter's scale is an empty list. Give a number, or one for each image."
        )
    return tuple(finite_scale(one) for one in numbers)


def _by_layer(scale: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[float, ...]:
    """A scale for each attention, of one that names parts, blocks and attentions."""
    layers = cross_attentions(config)
    counts: dict[tuple[str, int], int] = {}
    for one in layers:
        counts[one.part, one.block] = max(counts.get((one.part, one.block), 0), one.attention + 1)
    known = {part: {f"block_{b}" for p, b in counts if p == part} for part in _PARTS}
    for part, inner in scale.items():
        unknown = (
            set(inner) - known[part] if part in known and isinstance(inner, Mapping) else set()
        )
        if part not in known or (part == "mid" and isinstance(inner, Mapping)) or unknown:
            there = "; ".join(f"{p}: {', '.join(sorted(b))}" for p, b in known.items() if b)
            raise InputError(f"The scale names {part}: {inner!r}; the denoiser has {there}.")
    found = []
    for one in layers:
        value = scale.get(one.part, 0.0)
        if isinstance(value, Mapping):
            value = value.get(f"block_{one.block}", 0.0)
        if isinstance(value, list | tuple):
            count = counts[one.part, one.block]
            if len(value) != count:
                raise InputError(
                    f"The scale of {one.part} block_{one.block} has {len(value)} numbers; the block "
                    f"has {count} attentions."
                )
            value = value[one.attention]
        found.append(finite_scale(value))
    return tuple(found)
