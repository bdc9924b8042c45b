"""SentencePiece models (Kudo and Richardson 2018, arXiv:1808.06226), read without that package.

The file is a protocol buffer, https://github.com/google/sentencepiece, sentencepiece_model.proto; of
it the pieces with their scores, the normalisation table and the number of the unknown piece are used.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse.errors import CheckpointError
from perfuse.sources.files import read_bytes

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Pieces", "build_unigram"]

_AGAIN = "Download or save the checkpoint again."
_UNIGRAM = 1
_CONTROL, _USER = 3, 4
#: What SentencePiece writes for a space.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

Field = tuple[int, int | bytes]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What a SentencePiece model holds."""

    #: Pieces with the logarithms of their probabilities, by number.
    scored: tuple[tuple[str, float], ...]
    #: Pieces that are matched whole, and whether each is a control one, such as ``</s>``.
    whole: tuple[tuple[str, bool], ...]
    unknown: int
    #: The compiled table of normalisation; empty for none.
    normalisation: bytes

    @classmethod
    def read(cls, path: Path) -> "Pieces":
        """Read a file.

        Raises:
            CheckpointError: it is damaged, or no unigram model.
        """
        try:
            return _read(read_bytes(path, remedy=_AGAIN))
        except (IndexError, UnicodeDecodeError, ValueError, struct.error) as exc:
            raise CheckpointError(f"{path} is no SentencePiece model: {exc}. {_AGAIN}") from exc


def build_unigram(pieces: Pieces, extra: tuple[str, ...], end: str) -> "tokenizers.Tokenizer":
    """A tokenizer of these pieces and of ``extra`` ones after them, which puts ``end`` at the end."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    vocab = [*pieces.scored, *((token, 0.0) for token in extra)]
    made = Tokenizer(models.Unigram(vocab, unk_id=pieces.unknown, byte_fallback=False))
    table = pieces.normalisation
    made.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(table)] if table else []),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), _SPACE),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    made.add_tokens(
        [AddedToken(token, normalized=False, special=control) for token, control in pieces.whole]
    )
    number = made.token_to_id(end)
    if number is None:
        raise CheckpointError(f"The SentencePiece model has no piece {end!r}. {_AGAIN}")
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, number)]
    )
    return made


def _read(content: bytes) -> Pieces:
    scored: list[tuple[str, float]] = []
    whole: list[tuple[str, bool]] = []
    unknown, kind, table = 0, _UNIGRAM, b""
    for number, value in _fields(content):
        if not isinstance(value, bytes):
            continue
        found = dict(_fields(value)) if number in (1, 2, 3) else {}
        if number == 1:
            text, role = _bytes(found.get(1, b"")).decode("utf-8"), found.get(3, 1)
            scored.append((text, struct.unpack("<f", _bytes(found.get(2, bytes(4))))[0]))
            if role in (_CONTROL, _USER):
                whole.append((text, role == _CONTROL))
        elif number == 2:
            unknown, kind = int(found.get(40, 0)), int(found.get(3, _UNIGRAM))
        elif number == 3:
            table = _bytes(found.get(2, b""))
    if kind != _UNIGRAM or not scored:
        raise ValueError("it holds no unigram model")
    return Pieces(scored=tuple(scored), whole=tuple(whole), unknown=unknown, normalisation=table)


def _fields(content: bytes) -> Iterator[Field]:
    """The numbered fields of a message: whole numbers, and bytes for everything else."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(content, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of kind {wire}")
        if at + size > len(content):
            raise ValueError("it ends too early")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number is too long")


def _bytes(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else b""
