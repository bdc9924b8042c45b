"""Prompts as a language model reads them: wrapped in its chat template, one state a token."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays import join_features
from perfuse.contract.spec import Array, ComponentSpec
from perfuse.contract.steps import Tools
from perfuse.errors import InputError
from perfuse.models.language_model.vision import DETAILS, PICTURES, picture_token
from perfuse.models.positions import HIDDEN
from perfuse.models.registry import host_inputs
from perfuse.sources.tokenizer import TokenBatch, Tokenizer
from perfuse.tasks.choosing import pipeline_manifest
from perfuse.tasks.prompts.seeing import SeenPicture

__all__ = ["LanguageReader", "causal_bias", "fixed_length"]


@dataclass(frozen=True, kw_only=True)
class LanguageReader:
    """A language model of the pipeline, with its tokenizer."""

    tools: Tools
    name: str = "text_encoder"
    tokenizer_name: str = "tokenizer"

    @property
    def tokenizer(self) -> Tokenizer:
        return self.tools.tokenizer(self.tokenizer_name)

    @property
    def template(self) -> tuple[str, str]:
        """The text before and after a prompt; nothing for a pipeline that wraps prompts in none.

        Raises:
            InputError: the pipeline wraps them, and was not opened with a chat template.
        """
        spec = self.tools.spec
        found = spec.templates.get(self.tokenizer_name)
        if found is None and pipeline_manifest(spec.class_name).chat:
            raise InputError(
                f"{spec.class_name} wraps prompts in the chat template of its {self.tokenizer_name}, "
                "which was not read with it. Open the checkpoint's folder or Hub id, or an export."
            )
        return ("", "") if found is None else found

    def tokens(
        self,
        texts: list[str],
        longest: int,
        *,
        template: tuple[str, str] | None = None,
        filled: bool = False,
    ) -> TokenBatch:
        """The tokens of prompts in their template, at most ``longest``; warns of what is cut off.

        Args:
            texts: The prompts.
            longest: The most tokens of each.
            template: The text before and after each, if not the tokenizer's.
            filled: Whether all are filled up to ``longest`` tokens.
        """
        fixed = fixed_length(self.tools, self.name, "input_ids")
        longest = longest if fixed is None else min(longest, fixed)
        before, after = self.template if template is None else template
        wrapped = [f"{before}{text}{after}" for text in texts]
        tokens = self.tokenizer(wrapped, max_length=longest, padding=filled)
        for cut in tokens.truncated:
            if cut is not None:
                warnings.warn(
                    f"The prompt is longer than the {longest} tokens that are read of it with its "
                    f"template; this was cut off: {cut!r}. Write less, or raise max_sequence_length.",
                    stacklevel=2,
                )
        return tokens

    def __call__(
        self,
        ids: NDArray[np.int64],
        seen: NDArray[np.int64],
        pictures: Sequence[SeenPicture] = (),
    ) -> Array:
        """The hidden states that the denoiser reads, joined: [B, L, D].

        Args:
            ids: int64 [B, L].
            seen: int64 [B, L], 0 where a token must not be attended to.
            pictures: Those whose places are among the tokens of every row, in order.
        """
        program = self.tools.program(self.name)
        length, fixed = ids.shape[1], fixed_length(self.tools, self.name, "input_ids")
        if fixed is not None and fixed > length:
            room = ((0, 0), (0, fixed - length))
            ids, seen = np.pad(ids, room), np.pad(seen, room)
        spec = self.tools.spec.components[self.name]
        sizes, more = {"batch": len(ids), "sequence": ids.shape[1]}, {}
        if spec.signature.input(PICTURES) is not None:
            places = np.nonzero(ids[0] == picture_token(spec.config))[0]
            more = _placed(spec, ids, places, pictures)
            sizes |= _sizes_of(places, pictures)
        outputs = program(
            input_ids=ids, attention_bias=causal_bias(seen), **more, **host_inputs(spec, sizes)
        )
        states = [outputs[tensor.name] for tensor in spec.signature.outputs]
        return join_features(states)[:, :length]

    def of_prompts(
        self,
        texts: list[str],
        longest: int,
        *,
        template: tuple[str, str] | None = None,
        left_out: int = 0,
    ) -> list[Array]:
        """The states of each prompt alone, [S, D], template included but for its first tokens.

        Args:
            texts: The prompts.
            longest: The most tokens of each, those that are left out included.
            template: The text before and after each, if not the tokenizer's.
            left_out: The tokens at the beginning whose states are left out.
        """
        tokens = self.tokens(texts, longest, template=template)
        states = self(tokens.input_ids, tokens.attention_mask)
        pairs = zip(states, tokens.attention_mask, strict=True)
        return [one[mask != 0][left_out:] for one, mask in pairs]


def _placed(
    spec: ComponentSpec,
    ids: NDArray[np.int64],
    places: NDArray[np.int64],
    pictures: Sequence[SeenPicture],
) -> dict[str, NDArray[np.float32]]:
    """What a model with eyes is told of pictures, at their places, and zeros elsewhere.

    Their states [B, L, D], and their details [B, K, L, D] where the model takes any.

    Raises:
        InputError: there are other places than states.
    """
    length = sum(one.rows * one.columns for one in pictures)
    if len(places) != length:
        raise InputError(
            f"The prompt has {len(places)} tokens that stand for pictures, whose places are {length}. "
            "Write the prompt without '<|image_pad|>'."
        )
    sizes = {"batch": ids.shape[0], "sequence": ids.shape[1]}
    taken = {name: spec.signature.input(name) for name in (PICTURES, DETAILS)}
    found = {
        name: np.zeros([int(size) for size in tensor.resolve(sizes)], dtype=np.float32)
        for name, tensor in taken.items()
        if tensor is not None
    }
    if pictures:
        found[PICTURES][:, places] = np.concatenate([one.states for one in pictures])
    details = [one.details for one in pictures if one.details is not None]
    if details:
        found[DETAILS][:, :, places] = np.concatenate(details, axis=1)
    return found


def _sizes_of(places: NDArray[np.int64], pictures: Sequence[SeenPicture]) -> dict[str, int]:
    """Where pictures are among the tokens, and how large they are."""
    sizes: dict[str, int] = {}
    before = 0
    for i, one in enumerate(pictures):
        start = {"start": int(places[before]), "rows": one.rows, "columns": one.columns}
        sizes |= {f"picture_{i}_{name}": size for name, size in start.items()}
        before += one.rows * one.columns
    return sizes


def fixed_length(tools: Tools, component: str, name: str) -> int | None:
    """The length of an input [B, L, …] that a component was exported for; ``None`` for any."""
    if component not in tools.spec.components:
        return None  # the pipeline encodes prompts alone
    taken = tools.program(component).signature.input(name)
    length = taken.shape[1] if taken is not None else None
    return length if isinstance(length, int) else None


def causal_bias(seen: NDArray[np.int64]) -> NDArray[np.float32]:
    """What is added to logits so that no token sees a later one, or a hidden one: [B, L, L]."""
    length = seen.shape[1]
    allowed = np.tril(np.ones((length, length), dtype=bool))[None] & (seen != 0)[:, None, :]
    return np.where(allowed, np.float32(0), HIDDEN)
