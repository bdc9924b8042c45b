"""The prompt syntax of AUTOMATIC1111's web UI: brackets, ``BREAK``, prompts of any length.

``(word)`` weighs a word 1.1, ``[word]`` 1 / 1.1, ``(word:1.3)`` 1.3; brackets multiply. A backslash
makes the next bracket a character. ``BREAK`` begins a new chunk of 75 tokens. Where a chunk is full,
what follows its last comma goes to the next one. States are multiplied by the weights, and a chunk
keeps its mean ("emphasis: original" of that program's settings, version 1.10).
"""

import re
from dataclasses import dataclass, field

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.errors import InputError
from perfuse.tasks.prompts.encoder import Encoded, TextEncoder
from perfuse.tasks.prompts.syntax import Syntax, rows_of

__all__ = ["A1111", "parsed"]

_MARK = re.compile(
    r"\\(?P<escaped>[()\[\]\\])?"  # a backslash at the end of the text stands for nothing
    r"|(?P<opening>[(\[])"
    r"|:\s*(?P<weight>[+-]?[.\d]+)\s*\)"
    r"|(?P<closing>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_FACTOR = {"(": 1.1, "[": 1 / 1.1}
_PAIRS = {")": "(", "]": "["}
_COMMA = ",</w>"
#: A comma this many tokens before the end of a full chunk, or later, ends the chunk.
_BACK = 20


@dataclass
class _Piece:
    """Text with its weight, or a mark that begins a new chunk."""

    text: str
    weight: float = 1.0
    breaks: bool = False


def parsed(prompt: str) -> list[tuple[str | None, float]]:
    """A prompt's pieces of text with their weights; ``None`` for the text of a ``BREAK``."""
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece.weight *= factor

    for mark in _MARK.finditer(prompt):
        kind, value = mark.lastgroup, mark[mark.lastgroup or 0]
        if kind == "escaped":
            pieces.append(_Piece(value))
        elif kind == "opening":
            opened[value].append(len(pieces))
        elif kind == "weight" and opened["("]:
            multiply(opened["("].pop(), _number(value, prompt))
        elif kind == "closing" and opened[_PAIRS[value]]:
            multiply(opened[_PAIRS[value]].pop(), _FACTOR[_PAIRS[value]])
        else:
            for i, text in enumerate(_BREAK.split(mark[0] if kind else "")):
                pieces += [_Piece("", breaks=True)] if i else []
                pieces.append(_Piece(text))
    for bracket, starts in opened.items():  # what was not closed goes to the end
        for start in starts:
            multiply(start, _FACTOR[bracket])
    return _merged(pieces)


def _number(text: str, prompt: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"The weight {text} was given in {prompt!r}; a weight is one number: (word:1.3)."
        ) from None


def _merged(pieces: list[_Piece]) -> list[tuple[str | None, float]]:
    """The pieces, neighbours of the same weight as one: words are not cut by an escaped bracket."""
    merged: list[tuple[str | None, float]] = []
    for piece in pieces or [_Piece("")]:
        before = merged[-1] if merged else (None, 0.0)
        if piece.breaks:
            merged.append((None, 1.0))
        elif before[0] is not None and before[1] == piece.weight:
            merged[-1] = (before[0] + piece.text, piece.weight)
        else:
            merged.append((piece.text, piece.weight))
    return merged


@dataclass
class _Chunk:
    """The tokens of a chunk with their weights."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def cut(self, end: int) -> "_Chunk":
        """Take out and return what lies behind ``end``."""
        rest = _Chunk(self.tokens[end:], self.weights[end:])
        del self.tokens[end:], self.weights[end:]
        return rest


def _chunks(encoder: TextEncoder, prompt: str) -> list[_Chunk]:
    room = encoder.length - 2
    chunks, comma = [_Chunk()], -1  # the place of the last comma in the last chunk

    for text, weight in parsed(prompt):
        if text is None:
            chunks.append(_Chunk())
            comma = -1
            continue
        ids = encoder.tokenizer.ids(text, special=False)
        for token, word in zip(ids, encoder.words(ids), strict=True):
            last = chunks[-1]
            size = len(last.tokens)
            if word == _COMMA:
                comma = size
            elif size == room and comma != -1 and size - comma <= _BACK:
                chunks.append(last.cut(comma + 1))
                comma = -1
            if len(chunks[-1].tokens) == room:
                chunks.append(_Chunk())
                comma = -1
            chunks[-1].tokens.append(token)
            chunks[-1].weights.append(weight)
    # A BREAK at the end begins nothing.
    return chunks[:-1] if len(chunks) > 1 and not chunks[-1].tokens else chunks


class A1111(Syntax):
    """Brackets weigh words; each chunk keeps the mean of its states."""

    def read(self, encoder: TextEncoder, text: str) -> Encoded:
        chunks = _chunks(encoder, text)
        found = encoder(rows_of(encoder, [chunk.tokens for chunk in chunks]))
        states = to_numpy(found.states)
        weights = np.ones(states.shape[:2], dtype=np.float32)
        for row, chunk in zip(weights, chunks, strict=True):
            row[1 : 1 + len(chunk.weights)] = chunk.weights
        weighed = states * weights[..., None]
        means = states.mean(axis=(1, 2), keepdims=True), weighed.mean(axis=(1, 2), keepdims=True)
        plain = (weights == 1).all(axis=1)[:, None, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = np.where(plain, states, weighed * (means[0] / means[1]))
        return Encoded(
            states=whole.astype(np.float32).reshape(1, -1, states.shape[-1]),
            pooled=None if found.pooled is None else to_numpy(found.pooled)[:1],
        )
