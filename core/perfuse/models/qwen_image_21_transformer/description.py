"""The config, the latents and the positions of ``QwenImage21Transformer2DModel``, without torch.

A position has three axes. A word has its number on all of them; the picture comes after the words on the
first, and has its rows and columns on the others, both from its middle. So has a picture that is among the
words, which then go on behind its longer side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.component import Component
from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import ModelConfig, held_by_attention
from perfuse.models.first_blocks import cut
from perfuse.models.packed_latents import PackedLatents, packed
from perfuse.models.positions import HIDDEN, grid, rotary_axes, rotary_table
from perfuse.models.shapes import TIMESTEP, floating

__all__ = [
    "PictureAmongWords",
    "QwenImage21Config",
    "QwenImage21Latents",
    "describe",
    "first_blocks",
    "host_inputs",
    "latents",
    "told_of",
]


@dataclass(frozen=True, kw_only=True)
class QwenImage21Config(ModelConfig):
    """A transformer of one stream, in which words see those before them, and the picture all."""

    class_name: ClassVar[str] = "QwenImage21Transformer2DModel"
    strict: ClassVar[bool] = True

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = 64
    num_layers: int = 32
    attention_head_dim: int = 128
    num_attention_heads: int = 32
    context_in_dim: int = 4096
    mlp_ratio: int = 3
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    eps: float = 1e-6
    causal_condition: bool = True
    #: Latents of a picture's side. Of perfuse's own: in Diffusers it is always 64.
    sample_size: int = 64

    def __post_init__(self) -> None:
        self.check_choice("patch_size", (1,))
        self.check_choice("out_channels", (None, self.in_channels))
        if self.in_channels > self.context_in_dim:
            raise self.error(
                f"in_channels is {self.in_channels}",
                f"at most context_in_dim, {self.context_in_dim}",
            )
        if sum(self.axes_dims_rope) != self.attention_head_dim or len(self.axes_dims_rope) != 3:
            raise self.error(
                f"axes_dims_rope is {self.axes_dims_rope}",
                f"three numbers that add up to attention_head_dim, {self.attention_head_dim}",
            )

    @property
    def width(self) -> int:
        """Channels of a token inside."""
        return self.num_attention_heads * self.attention_head_dim

    def held(self, sizes: Mapping[str, int]) -> int:
        return held_by_attention(sizes["image_sequence"], self.width)


@dataclass(frozen=True, kw_only=True)
class QwenImage21Latents(PackedLatents):
    """Qwen-Image 2.1's latents: each of the autoencoder's is a token, and sides are even."""

    kind: ClassVar[str] = "QwenImage21Transformer2DModel"
    patch: ClassVar[int] = 1


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Latents as tokens and text states in, a velocity out.

    ``told_of`` makes what it is told of words: where ``shown`` is 1, a token of a picture is among them,
    its latents being the first numbers of its state; ``text_bias`` is added to the logits of words, and
    hides later words and what fills texts up; ``text_rotary`` is where each is, and ``picture_rotary``
    where the picture that is drawn is on the first axis.
    """
    model = QwenImage21Config.from_dict(config)
    first, *others = (width // 2 for width in model.axes_dims_rope)
    whole, rest = model.attention_head_dim // 2, sum(others)

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
                    floating("sample", "batch", "image_sequence", model.in_channels),
                    TIMESTEP,
                    floating("encoder_hidden_states", "batch", "sequence", model.context_in_dim),
                    floating("shown", "batch", "sequence"),
                    floating("text_bias", "batch", "sequence", "sequence"),
                    table("picture_rotary", "batch", 2, first),
                    table("text_rotary", "batch", 2, "sequence", whole),
                    table("grid_rotary", 2, "image_sequence", rest),
                ),
                outputs=(floating("out_sample", "batch", "image_sequence", model.in_channels),),
            ),
            dims={
                "batch": Dim(example=2),
                "image_sequence": Dim(example=12, smallest=2),
                "sequence": Dim(example=7, smallest=2),
            },
            sample_size=(model.sample_size, model.sample_size),
            guidance="branches",
            reads_layers=(-1,),
            reads_normed=False,
        ),
    )


def latents(config: Mapping[str, Any], inner: LatentSpec | None) -> LatentSpec | None:
    """The autoencoder's latents, packed."""
    return packed(QwenImage21Latents, inner)


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component]:
    """The transformer cut after its first blocks, and before its last ones."""
    model = QwenImage21Config.from_dict(component.spec.config)
    return cut(component, first, last, of=model.num_layers, width=model.width, between=0)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """The rotary table of the picture's rows and columns."""
    axes = QwenImage21Config.from_dict(spec.config).axes_dims_rope
    places = _from_middle(sizes["latent_height"], sizes["latent_width"])
    return {"grid_rotary": rotary_axes(places, axes[1:])}


def _from_middle(height: int, width: int) -> Array:
    """Rows and columns of a picture's tokens, [H · W, 2]."""
    return grid(height, width) - np.array([height - height // 2, width - width // 2])


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureAmongWords:
    """A picture that the denoiser reads where the language model saw it."""

    #: Its latents as tokens, [H · W, C].
    tokens: Array
    height: int
    width: int
    #: The word that its first one takes the place of, and how many it takes.
    start: int
    words: int


def told_of(
    spec: ComponentSpec,
    texts: Sequence[Array],
    pictures: Sequence[PictureAmongWords] = (),
    *,
    length: int | None = None,
) -> dict[str, Array]:
    """What the denoiser is told of texts: the picture comes after the longest of them, as in Diffusers.

    Args:
        spec: The denoiser.
        texts: The states of each, [S, D].
        pictures: Those among the words of all of them, in order.
        length: To how many tokens they are filled up; by default to the longest.
    """
    axes = QwenImage21Config.from_dict(spec.config).axes_dims_rope
    lengths = np.asarray([len(one) for one in texts])
    longest = int(lengths.max())
    words = np.stack([np.pad(one, ((0, longest - len(one)), (0, 0))) for one in texts])
    seen = np.arange(longest) < lengths[:, None]
    sequence = _Sequence(words=words, seen=seen)
    for i, picture in enumerate(pictures):
        sequence.read_until(picture.start)
        sequence.see(i, picture)
    sequence.read_until(longest)
    states, seen, block, places = sequence.whole(length)
    order = np.tril(np.ones((len(block), len(block)), dtype=bool))
    allowed = order | ((block[:, None] == block) & (block >= 0))
    count = len(texts)
    return {
        "encoder_hidden_states": states,
        "shown": np.broadcast_to(np.where(block >= 0, np.float32(1), np.float32(0)), seen.shape),
        "text_bias": np.where(allowed[None] & seen[:, None], np.float32(0), HIDDEN),
        "picture_rotary": rotary_table(np.full(count, sequence.place), axes[0]).transpose(1, 0, 2),
        "text_rotary": np.repeat(rotary_axes(places, axes)[None], count, axis=0),
    }


class _Sequence:
    """Words and pictures, one after the other."""

    def __init__(self, *, words: Array, seen: Array) -> None:
        self._words, self._seen, self._at = words, seen, 0
        #: Where the next token is on the first axis.
        self.place = 0
        self._states: list[Array] = []
        self._counts: list[Array] = []
        self._blocks: list[Array] = []
        self._places: list[Array] = []

    def read_until(self, word: int) -> None:
        """Take the words up to this one."""
        count = word - self._at
        places = self.place + np.repeat(np.arange(count)[:, None], 3, axis=1)
        self._add(self._words[:, self._at : word], self._seen[:, self._at : word], -1, places)
        self._at, self.place = word, self.place + count

    def see(self, number: int, picture: PictureAmongWords) -> None:
        """Take a picture in the place of its words."""
        tokens = picture.tokens
        room = ((0, 0), (0, self._words.shape[2] - tokens.shape[1]))
        states = np.repeat(np.pad(tokens, room)[None], len(self._words), axis=0)
        rows_columns = _from_middle(picture.height, picture.width)
        places = np.insert(rows_columns, 0, self.place, axis=1)
        self._add(states, np.ones(states.shape[:2], dtype=bool), number, places)
        self._at += picture.words
        self.place += max(picture.height, picture.width)

    def whole(self, length: int | None) -> tuple[Array, Array, Array, Array]:
        """States [B, S, D], which count [B, S], the picture of each or -1 [S], places [S, 3]."""
        states, counts = (np.concatenate(one, axis=1) for one in (self._states, self._counts))
        blocks, places = np.concatenate(self._blocks), np.concatenate(self._places)
        more = 0 if length is None else length - len(blocks)
        return (
            np.pad(states, ((0, 0), (0, more), (0, 0))),
            np.pad(counts, ((0, 0), (0, more))),
            np.pad(blocks, (0, more), constant_values=-1),
            np.pad(places, ((0, more), (0, 0))),
        )

    def _add(self, states: Array, counts: Array, block: int, places: Array) -> None:
        self._states.append(states)
        self._counts.append(counts)
        self._blocks.append(np.full(states.shape[1], block))
        self._places.append(places)
