"""The config, the description and the positions of Z-Image's transformer, without torch.

Captions are filled up to a multiple of 32 tokens with a learned token, and so are pictures. The
caption's tokens have the first of three axes of positions for themselves, from 1 on; the picture
comes one after them there, and has its rows and columns on the other two.
"""

import math
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
    "ZImageTransformerConfig",
    "attentions",
    "called",
    "captions",
    "describe",
    "first_blocks",
    "host_inputs",
]

#: Captions and pictures are filled up to a multiple of this many tokens.
_MULTIPLE = 32


@dataclass(frozen=True, kw_only=True)
class ZImageTransformerConfig(ModelConfig):
    """A transformer over a picture's patches and the tokens of a caption (arXiv:2511.22699)."""

    class_name: ClassVar[str] = "ZImageTransformer2DModel"
    strict: ClassVar[bool] = True

    all_patch_size: tuple[int, ...] = (2,)
    all_f_patch_size: tuple[int, ...] = (1,)
    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True
    cap_feat_dim: int = 2560
    siglip_feat_dim: int | None = None
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)
    #: Latents of a picture's side. Of perfuse's own: in Diffusers it is always 128.
    sample_size: int = 128

    def __post_init__(self) -> None:
        self.check_choice("siglip_feat_dim", (None,))
        if (2, 1) not in zip(self.all_patch_size, self.all_f_patch_size, strict=False):
            found = f"patches of {self.all_patch_size} by {self.all_f_patch_size} frames"
            raise self.error(found, "2 by 1 among them, which its pipelines draw with")
        if len(self.axes_dims) != 3 or len(self.axes_lens) != 3:
            raise self.error(f"axes_dims has {len(self.axes_dims)} entries", "three, and axes_lens")
        if self.dim % self.n_heads or self.dim // self.n_heads != sum(self.axes_dims):
            raise self.error(
                f"axes_dims is {self.axes_dims}, with {self.n_heads} heads of {self.dim} channels",
                "axes that make up a head together",
            )

    def held(self, sizes: Mapping[str, int]) -> int:
        tokens = sizes["latent_height"] * sizes["latent_width"] // 4
        return held_by_attention(tokens, self.dim, self.dim // self.n_heads * self.n_kv_heads)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents and captions in, a velocity out.

    Beside what every denoiser takes it is told which tokens of a caption are the learned one
    (``caption_padding``), what to add to the logits of its keys (``caption_bias``), and where the
    picture is on the first axis (``picture_rotary``): ``captions`` says all three.
    """
    model = ZImageTransformerConfig.from_dict(config)
    picture = ("batch", model.in_channels, "latent_height", "latent_width")
    first, second, third = (width // 2 for width in model.axes_dims)
    tokens, rows, columns = model.axes_lens
    caption = (tokens - 2) // _MULTIPLE  # the picture's place is after the caption's last

    def table(label: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=label, dtype="float32", shape=shape)

    return (
        ComponentSpec(
            name=name,
            role=Role.DENOISER,
            class_name=model.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    floating("sample", *picture),
                    TIMESTEP,
                    floating("encoder_hidden_states", "batch", "sequence", model.cap_feat_dim),
                    floating("caption_padding", "batch", "sequence"),
                    floating("caption_bias", "batch", "sequence"),
                    table("picture_rotary", "batch", 2, first),
                    table("caption_rotary", 2, "sequence", first),
                    table("row_rotary", 2, "latent_height/2", second),
                    table("column_rotary", 2, "latent_width/2", third),
                    floating("padding_bias", 1),
                ),
                outputs=(floating("out_sample", *picture),),
            ),
            dims={
                "batch": Dim(example=2),
                "sequence": Dim(multiple=_MULTIPLE, maximum=caption * _MULTIPLE, example=2),
                "latent_height": Dim(multiple=2, maximum=2 * rows, example=6, smallest=2),
                "latent_width": Dim(multiple=2, maximum=2 * columns, example=5, smallest=2),
            },
            sample_size=(model.sample_size, model.sample_size),
            guidance="branches",
            reads_layers=(-2,),
        ),
    )


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    model = ZImageTransformerConfig.from_dict(component.spec.config)
    return cut(component, first, last, of=model.n_layers, width=model.dim, patch=2, between=1)


def attentions(spec: ComponentSpec) -> Attentions:
    """One of picture and text together in each block; those that refine either come before."""
    model = ZImageTransformerConfig.from_dict(spec.config)
    each = tuple(
        Attended(module=f"layers.{i}.attention", kind="spatial", text="after")
        for i in range(model.n_layers)
    )
    return Attentions(each=each, width=model.dim, patch=2)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Any]:
    """Rotary tables of the places on each axis, and how much the picture's padding counts.

    A picture's padding is so many equal tokens at one place. One of them stands for all: with the
    logarithm of their number added to its logits it weighs as much as they do.
    """
    model = ZImageTransformerConfig.from_dict(spec.config)
    height, width = sizes["latent_height"] // 2, sizes["latent_width"] // 2
    lengths = (np.arange(sizes["sequence"]) + 1, np.arange(height), np.arange(width))
    names = ("caption_rotary", "row_rotary", "column_rotary")
    tables = {
        name: rotary_table(places, channels, model.rope_theta)
        for name, places, channels in zip(names, lengths, model.axes_dims, strict=True)
    }
    padding = -(height * width) % _MULTIPLE
    bias = math.log(padding) if padding else float(HIDDEN)
    return {**tables, "padding_bias": np.asarray([bias], dtype=np.float32)}


def captions(
    spec: ComponentSpec, states: Sequence[Array], *, tokens: int | None = None
) -> dict[str, Array]:
    """The conditions of a batch of captions, each of its own length.

    Args:
        spec: The transformer.
        states: The text states of each caption, [S, D].
        tokens: The length to fill all up to; that of the longest by default.
    """
    model = ZImageTransformerConfig.from_dict(spec.config)
    lengths = [len(one) for one in states]
    filled = [-(-length // _MULTIPLE) * _MULTIPLE for length in lengths]
    most = max(filled) if tokens is None else tokens
    places = np.arange(most)
    rotary = rotary_table(np.asarray(filled) + 1, model.axes_dims[0], model.rope_theta)
    return {
        "encoder_hidden_states": np.stack(
            [np.pad(one, ((0, most - len(one)), (0, 0))) for one in states]
        ),
        "caption_padding": (places >= np.asarray(lengths)[:, None]).astype(np.float32),
        "caption_bias": np.where(places < np.asarray(filled)[:, None], 0, HIDDEN).astype(
            np.float32
        ),
        "picture_rotary": rotary.transpose(1, 0, 2),
    }


def called(spec: ComponentSpec, arguments: Mapping[str, Any]) -> Called | None:
    """Diffusers' call: lists of pictures, each of one frame, and of captions.

    The time is the share of the picture that is there, and the velocity leads to it.
    """
    if arguments.keys() != {"x", "t", "cap_feats"}:
        return None
    pictures, share, states = arguments["x"], arguments["t"], arguments["cap_feats"]
    plain = [getattr(one, "ndim", 0) for one in (*pictures, *states)]
    if plain != [4] * len(pictures) + [2] * len(states):
        return None
    if len({one.shape for one in pictures}) > 1 or pictures[0].shape[1] != 1:
        return None
    inputs = {"sample": np.concatenate([one.swapaxes(0, 1) for one in pictures])}
    inputs["timestep"] = (1 - share) * 1000
    return inputs | captions(spec, states), lambda outputs: [
        -one[:, None] for one in outputs["out_sample"]
    ]
