"""compel's prompt syntax: ``word++``, ``(a few words)1.3``, ``.blend()``, ``.and()``, any length.

A weight moves states away from those of an empty prompt. Below 1, they are also mixed with those of
the prompt with the words hidden from the rest of it, the more of these the nearer the weight is to 0.
As in compel 2.5 with its defaults: long prompts are cut at sentences, else at phrases, else at words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays import to_numpy
from perfuse.tasks.prompts.compel_grammar import Blend, Fragment, Prompt, parse
from perfuse.tasks.prompts.encoder import Encoded, TextEncoder
from perfuse.tasks.prompts.syntax import Syntax, empty, lengthened, rows_of

__all__ = ["Compel"]

_SENTENCE = frozenset({".</w>"})
_PHRASE = frozenset({".</w>", ",</w>", ";</w>", ":</w>"})
#: The least weight: at 0 the share of the prompt without the words would be infinite.
_LEAST = 1e-5

States = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """The tokens of a prompt with their weights, and which of them each fragment has."""

    ids: list[int]
    weights: list[float]
    #: First and last token of each fragment; ``None`` for one without any.
    spans: list[tuple[int, int] | None]


class Compel(Syntax):
    """Plus and minus weigh words; prompts can be blended, or follow each other."""

    def read(self, encoder: TextEncoder, text: str) -> Encoded:
        filler = empty(encoder)
        parts = []
        for part, weight in parse(text):
            states = (
                _blended(encoder, part, filler)
                if isinstance(part, Blend)
                else _prompt(encoder, part, filler)
            )
            if weight != 1:
                base = lengthened(filler, states.shape[1], filler)
                states = base + (states - base) * np.float32(weight)
            parts.append(states)
        pooled = None
        if encoder.pools:  # of the text as it stands, as compel has it
            pooled = to_numpy(encoder(encoder.tokenizer(text).input_ids).pooled)
        return Encoded(states=np.concatenate(parts or [filler], axis=1), pooled=pooled)


def _blended(encoder: TextEncoder, blend: Blend, filler: States) -> States:
    each = [_prompt(encoder, prompt, filler) for prompt in blend.prompts]
    longest = max(states.shape[1] for states in each)
    whole = [lengthened(states, longest, filler) for states in each]
    return _sum(np.concatenate(whole), blend.weights, normalised=blend.normalised)


def _sum(states: States, weights: Sequence[float], *, normalised: bool) -> States:
    """The weighted sum [1, S, D] of states [n, S, D]."""
    factors = np.asarray(weights, dtype=np.float32)
    if normalised:
        factors = factors / factors.sum()
    total: States = (states * factors[:, None, None]).sum(axis=0, keepdims=True)
    return total


def _prompt(encoder: TextEncoder, prompt: Prompt, filler: States) -> States:
    """The states [1, S, D] of one prompt."""
    tokens = _tokens(encoder, prompt)
    chunks = _cut(encoder, tokens.ids)
    rows = rows_of(encoder, chunks)
    # The place of each token in the rows, one behind the other.
    sizes = [len(chunk) for chunk in chunks]
    places = [i * encoder.length + 1 + j for i, size in enumerate(sizes) for j in range(size)]
    weights = np.ones(rows.size, dtype=np.float32)
    weights[places] = tokens.weights
    hidden = [
        (fragment.weight, (places[span[0]], places[span[1]]))
        for fragment, span in zip(prompt, tokens.spans, strict=True)
        if fragment.weight < 1 and span is not None
    ]
    seen = np.stack([_seen(rows, between) for between in (None, *(pair for _, pair in hidden))])
    states = to_numpy(
        encoder(
            np.tile(rows, (len(seen), 1)), seen.reshape(-1, rows.shape[1]) if hidden else None
        ).states
    )
    factors = np.tile(weights.reshape(*rows.shape, 1), (len(seen), 1, 1))
    states = np.where(factors == 1, states, filler + (states - filler) * factors)
    mixed = [1.0, *(math.tan((1 - max(weight, _LEAST)) * math.pi / 2) for weight, _ in hidden)]
    return _sum(states.reshape(len(seen), rows.size, -1), mixed, normalised=True)


def _tokens(encoder: TextEncoder, prompt: Prompt) -> _Tokens:
    ids: list[int] = []
    weights: list[float] = []
    spans: list[tuple[int, int] | None] = []
    for fragment in prompt or (Fragment(""),):
        own = encoder.tokenizer.ids(fragment.text, special=False)
        spans.append((len(ids), len(ids) + len(own) - 1) if own else None)
        ids += own
        weights += [fragment.weight] * len(own)
    return _Tokens(ids=ids, weights=weights, spans=spans)


def _seen(rows: NDArray[np.int64], between: tuple[int, int] | None) -> NDArray[np.int64]:
    """Which tokens of the rows are attended to; the first and the last of a row always are."""
    seen = np.ones(rows.size, dtype=np.int64)
    if between is not None:
        seen[between[0] : between[1] + 1] = 0
    shaped = seen.reshape(rows.shape)
    shaped[:, 0] = shaped[:, -1] = 1
    return shaped


def _cut(encoder: TextEncoder, ids: list[int]) -> list[list[int]]:
    """Chunks of tokens, each as long as fits."""
    room, chunks = encoder.length - 2, []
    while len(ids) > room:
        end = _end(encoder.words(ids[:room]))
        chunks.append(ids[:end])
        ids = ids[end:]
    return [*chunks, ids] if ids or not chunks else chunks


def _end(words: list[str]) -> int:
    """Where to cut: after the last sentence, else phrase, else word; else after the last token."""
    for fits in (_SENTENCE.__contains__, _PHRASE.__contains__, lambda word: word.endswith("</w>")):
        ends = [i for i, word in enumerate(words) if fits(word)]
        if ends:
            return ends[-1] + 1
    return len(words)
