"""What an adapter's file holds, and the descriptions of what it adds, without torch."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature
from perfuse.errors import InputError, WeightsError
from perfuse.models.shapes import floating

__all__ = ["CrossAttention", "ImageAdapter", "cross_attentions", "projection", "prompted"]

#: Sizes to capture a graph with, which no other dimension of a denoiser has.
_GROUPS, _LENGTHS = (3, 5, 9, 15, 21), (11, 13, 17, 19, 23)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class ImageAdapter:
    """An adapter's file, by what its tensors are called and how large they are."""

    file: Path
    #: ``"plain"`` projects an image's embedding, ``"full"`` and ``"plus"`` its states (``"plus"``
    #: with a resampler), ``"face"`` the embedding that a face recogniser made.
    kind: str
    #: How many tokens it makes of an image; 0 for as many as the image has states.
    tokens: int
    #: The width of what it projects, and of the tokens.
    inputs: int
    width: int
    #: The cross-attentions that it has keys and values for.
    layers: int

    @classmethod
    def read(cls, file: Path) -> "ImageAdapter":
        """Read the header of a file in the layout of the adapters' authors.

        Raises:
            WeightsError: the file is a pickle, is damaged, or is no IP-Adapter of a known kind.
        """
        shapes = _shapes(file)
        image = {n.removeprefix("image_proj."): s for n, s in shapes.items() if "image_proj." in n}
        keys = [n for n in shapes if re.fullmatch(r"ip_adapter\.\d+\.to_k_ip\.weight", n)]
        if not image or not keys:
            raise WeightsError(
                f"{file} was to be an IP-Adapter; it has no tensors image_proj.… and "
                "ip_adapter.N.to_k_ip.weight. Name the adapter's file."
            )
        if any("_lora." in name for name in shapes) or any("perceiver_" in n for n in image):
            raise WeightsError(
                f"{file} is an IP-Adapter with LoRA weights or with two kinds of embeddings (FaceID "
                "Plus), which perfuse does not load. Use a plain, Plus, Full or FaceID projection."
            )
        try:
            kind, tokens, inputs, width = _kind(image)
        except KeyError as exc:
            raise WeightsError(
                f"{file} was to be an IP-Adapter; its projection has {', '.join(list(image)[:5])}, "
                "which is of no known kind: plain, Plus, Full, FaceID."
            ) from exc
        return cls(
            file=file, kind=kind, tokens=tokens, inputs=inputs, width=width, layers=len(keys)
        )

    @property
    def takes(self) -> str:
        """The input of its projection: the image encoder's output of that name, or the caller's."""
        return "image_embeds" if self.kind in ("plain", "face") else "penultimate_hidden_state"


def _kind(image: Shapes) -> tuple[str, int, int, int]:
    """The kind, the number of tokens, the width of the input and of the tokens."""
    if "proj.weight" in image:
        out, inputs = image["proj.weight"]
        width = image["norm.weight"][0]
        return "plain", out // width, inputs, width
    if "proj.3.weight" in image:
        return "full", 0, image["proj.0.weight"][1], image["proj.2.weight"][0]
    if "latents" in image:
        tokens = image["latents"][1]
        return "plus", tokens, image["proj_in.weight"][1], image["proj_out.weight"][0]
    width = image["norm.weight"][0]
    return "face", image["proj.2.weight"][0] // width, image["proj.0.weight"][1], width


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix in _PICKLES:
        raise WeightsError(
            f"{file} is a pickle, which can run any code when it is read. Take the adapter's "
            ".safetensors file; most repositories have both."
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as exc:
        raise WeightsError(
            f"{file} cannot be read as an IP-Adapter's safetensors file: {exc}. Download it again."
        ) from exc


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """One cross-attention of a denoiser, in the order in which adapters number them."""

    #: ``"down"``, ``"up"`` or ``"mid"``; the block in it; the attention in that; the layer in that.
    part: str
    block: int
    attention: int
    layer: int
    #: How often the latents were halved on the way there.
    level: int

    def blocks_of(self, unet: Any) -> Any:
        """The list of transformer blocks that it is in; ``layer`` is its place there."""
        blocks = {"down": unet.down_blocks, "up": unet.up_blocks, "mid": [unet.mid_block]}
        return blocks[self.part][self.block].attentions[self.attention].transformer_blocks


def cross_attentions(config: Mapping[str, Any]) -> tuple[CrossAttention, ...]:
    """The cross-attentions of a UNet by its config: those of the way down, up, and the middle."""
    downs, ups = tuple(config["down_block_types"]), tuple(config["up_block_types"])
    count = len(downs)

    def each(name: str, default: Any) -> list[Any]:
        value = config.get(name, default)
        return list(value) if isinstance(value, list | tuple) else [value] * count

    depths, resnets = each("transformer_layers_per_block", 1), each("layers_per_block", 2)
    reverse = config.get("reverse_transformer_layers_per_block") or depths[::-1]
    found: list[CrossAttention] = []

    def add(part: str, block: int, attentions: int, depth: Any, level: int) -> None:
        for attention in range(attentions):
            layers = depth[attention] if isinstance(depth, list | tuple) else depth
            found.extend(
                CrossAttention(
                    part=part, block=block, attention=attention, layer=layer, level=level
                )
                for layer in range(layers)
            )

    for i, kind in enumerate(downs):
        if kind.startswith("CrossAttn"):
            add("down", i, resnets[i], depths[i], i)
    for i, kind in enumerate(ups):
        if kind.startswith("CrossAttn"):
            add("up", i, resnets[count - 1 - i] + 1, reverse[i], count - 1 - i)
    if str(config.get("mid_block_type", "UNetMidBlock2DCrossAttn")).endswith("CrossAttn"):
        add("mid", 0, 1, depths[-1], count - 1)
    return tuple(found)


def projection(adapter: ImageAdapter, index: int) -> ComponentSpec:
    """The component that makes tokens of images: [B, …] to [B, T, C]."""
    states = adapter.takes != "image_embeds"
    shape = ("batch", "states", adapter.inputs) if states else ("batch", adapter.inputs)
    name = f"image_projection_{index}"
    return ComponentSpec(
        name=name,
        role=Role.IMAGE_PROJECTION,
        class_name="ImageProjection",
        folder=name,
        config={"kind": adapter.kind},
        signature=Signature(
            inputs=(floating(adapter.takes, *shape),),
            outputs=(floating("image_tokens", "batch", adapter.tokens or "states", adapter.width),),
        ),
        dims={"batch": Dim(example=2), **({"states": Dim(example=9)} if states else {})},
    )


def prompted(spec: ComponentSpec, adapters: Sequence[ImageAdapter]) -> ComponentSpec:
    """The denoiser with inputs for each adapter's tokens, masks and scales.

    An adapter's images form one group of tokens, or a group each where each has a mask of its own.
    The mask of a group is given for each level of the UNet, in the first numbers of as many as there
    are latents.

    Raises:
        InputError: an adapter was made for another denoiser.
    """
    text = spec.signature.input("encoder_hidden_states")
    layers = cross_attentions(spec.config) if text is not None else ()
    levels, inputs, dims = len(spec.config.get("down_block_types", ())), [], dict(spec.dims)
    for i, adapter in enumerate(adapters):
        wanted = text.shape[-1] if text is not None else None
        if adapter.width != wanted or adapter.layers != len(layers):
            raise InputError(
                f"{adapter.file} was to be loaded; it has {adapter.layers} attentions over states "
                f"of width {adapter.width}, and {spec.name} has {len(layers)} of width {wanted}. Use "
                "an adapter that was made for this family of checkpoints."
            )
        groups, length = f"ip_groups_{i}", f"ip_length_{i}"
        inputs += [
            floating(f"ip_tokens_{i}", "batch", groups, length, adapter.width),
            floating(f"ip_masks_{i}", groups, levels, "latent_height", "latent_width"),
            floating(f"ip_scales_{i}", groups, len(layers)),
        ]
        dims |= {groups: Dim(example=_GROUPS[i]), length: Dim(example=_LENGTHS[i])}
    signature = dataclasses.replace(spec.signature, inputs=(*spec.signature.inputs, *inputs))
    return dataclasses.replace(spec, signature=signature, dims=dims)
