"""The config, the description and the positions of Lumina 2's transformer, without torch.

A caption's tokens have the first of three axes of positions for themselves; the picture comes one after
them there, and has its rows and columns on the other two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.architecture import Attended, Attentions, Called
from perfuse.contract.component import Component
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.positions import HIDDEN, rotary_table
from perfuse.models.shapes import TIMESTEP, floating

__all__ = [
    "Lumina2Config",
    "attentions",
    "called",
    "captions",
    "describe",
    "first_blocks",
    "host_inputs",
]


@dataclass(frozen=True, kw_only=True)
class Lumina2Config(ModelConfig):
    """A transformer over a picture's patches and the tokens of a caption (arXiv:2503.21758)."""

    class_name: ClassVar[str] = "Lumina2Transformer2DModel"
    strict: ClassVar[bool] = True

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
    hidden_size: int = 2304
    num_layers: int = 26
    num_refiner_layers: int = 2
    num_attention_heads: int = 24
    num_kv_heads: int = 8
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    scaling_factor: float = 1.0
    axes_dim_rope: tuple[int, ...] = (32, 32, 32)
    axes_lens: tuple[int, ...] = (300, 512, 512)
    cap_feat_dim: int = 1024

    def __post_init__(self) -> None:
        if len(self.axes_dim_rope) != 3 or len(self.axes_lens) != 3:
            found = f"axes_dim_rope has {len(self.axes_dim_rope)} entries"
            raise self.error(found, "three, and axes_lens")
        heads, width = self.num_attention_heads, self.hidden_size
        if width % heads or width // heads != sum(self.axes_dim_rope):
            raise self.error(
                f"axes_dim_rope is {self.axes_dim_rope}, with {heads} heads of {width} channels",
                "axes that make up a head together",
            )
        if heads % self.num_kv_heads:
            raise self.error(f"num_kv_heads is {self.num_kv_heads}", f"a divisor of {heads}")
        self.check_choice("out_channels", (None, self.in_channels))

    def held(self, sizes: Mapping[str, int]) -> int:
        tokens = sizes["latent_height"] * sizes["latent_width"] // self.patch_size**2
        keys = self.hidden_size // self.num_attention_heads * self.num_kv_heads
        return held_by_attention(tokens, self.hidden_size, keys)

    @property
    def inner(self) -> int:
        """Channels inside of a feed-forward network."""
        wanted = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            wanted = int(self.ffn_dim_multiplier * wanted)
        return -(-wanted // self.multiple_of) * self.multiple_of

    @property
    def longest(self) -> int:
        """The most tokens of a caption: the picture has the place after them."""
        return self.axes_lens[0] - 1


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents and captions in, a velocity out.

    It is told what to add to the logits of a caption's keys (``caption_bias``), and where the picture is
    on the first axis (``picture_rotary``): ``captions`` says both.
    """
    lumina = Lumina2Config.from_dict(config)
    patch = lumina.patch_size
    picture = ("batch", lumina.in_channels, "latent_height", "latent_width")
    first, second, third = (width // 2 for width in lumina.axes_dim_rope)
    rows, columns = (patch * length for length in lumina.axes_lens[1:])

    def table(label: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=label, dtype="float32", shape=shape)

    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=lumina.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    floating("sample", *picture),
                    TIMESTEP,
                    floating("encoder_hidden_states", "batch", "sequence", lumina.cap_feat_dim),
                    floating("caption_bias", "batch", "sequence"),
                    table("picture_rotary", "batch", 2, first),
                    table("caption_rotary", 2, "sequence", first),
                    table("row_rotary", 2, f"latent_height/{patch}", second),
                    table("column_rotary", 2, f"latent_width/{patch}", third),
                ),
                outputs=(floating("out_sample", *picture),),
            ),
            dims={
                "batch": Dim(example=2),
                "sequence": Dim(maximum=lumina.longest, example=7, smallest=2),
                "latent_height": Dim(multiple=patch, maximum=rows, example=6, smallest=2),
                "latent_width": Dim(multiple=patch, maximum=columns, example=5, smallest=2),
            },
            sample_size=(lumina.sample_size, lumina.sample_size),
            guidance="branches",
            reads_layers=(-2,),
        ),
    )


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    lumina = Lumina2Config.from_dict(component.spec.config)
    width, patch = lumina.hidden_size, lumina.patch_size
    return cut(component, first, last, of=lumina.num_layers, width=width, patch=patch, between=0)


def attentions(spec: ComponentSpec) -> Attentions:
    """One of picture and text together in each block; those that refine either come before."""
    lumina = Lumina2Config.from_dict(spec.config)
    each = tuple(
        Attended(module=f"layers.{i}.attn", kind="spatial", text="before")
        for i in range(lumina.num_layers)
    )
    return Attentions(each=each, width=lumina.hidden_size, patch=lumina.patch_size)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Any]:
    """Rotary tables of the places on each axis."""
    lumina = Lumina2Config.from_dict(spec.config)
    patch = lumina.patch_size
    lengths = sizes["sequence"], sizes["latent_height"] // patch, sizes["latent_width"] // patch
    names = ("caption_rotary", "row_rotary", "column_rotary")
    return {
        name: rotary_table(np.arange(length), channels)
        for name, length, channels in zip(names, lengths, lumina.axes_dim_rope, strict=True)
    }


def captions(
    spec: ComponentSpec, states: Sequence[Array], *, tokens: int | None = None
) -> dict[str, Array]:
    """The conditions of a batch of captions, each of its own length.

    Args:
        spec: The transformer.
        states: The text states of each caption, [S, D].
        tokens: The length to fill all up to; that of the longest by default.
    """
    lumina = Lumina2Config.from_dict(spec.config)
    lengths = np.asarray([len(one) for one in states])
    most = int(lengths.max()) if tokens is None else tokens
    filled = [np.pad(one, ((0, most - len(one)), (0, 0))) for one in states]
    hidden = np.arange(most) >= lengths[:, None]
    return {
        "encoder_hidden_states": np.stack(filled),
        "caption_bias": np.where(hidden, HIDDEN, np.float32(0)),
        "picture_rotary": rotary_table(lengths, lumina.axes_dim_rope[0]).transpose(1, 0, 2),
    }


def called(spec: ComponentSpec, arguments: Mapping[str, Any]) -> Called | None:
    """Diffusers' call: the time is the share of the picture that is there, and the velocity leads to it."""
    names = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    if arguments.keys() != set(names):
        return None
    sample, share, states, mask = (arguments[name] for name in names)
    lengths = np.asarray(mask).sum(axis=1)
    texts = [one[:length] for one, length in zip(states, lengths, strict=True)]
    inputs = {"sample": sample, "timestep": (1 - share) * 1000}
    return inputs | captions(spec, texts), lambda outputs: [-outputs["out_sample"]]
