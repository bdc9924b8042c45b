"""A tokenizer that is called as Transformers' are, and Transformers' own as perfuse calls one.

>>> from perfuse import DiffusionPipeline
>>> tokenizer = DiffusionPipeline.from_pretrained(backend="torch:cpu").tokenizer
>>> found = tokenizer("a red circle", padding="max_length", return_tensors="np")
>>> found.input_ids.shape == (1, tokenizer.model_max_length)
True
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from perfuse.errors import InputError
from perfuse.sources.tokenizer import TokenBatch, Tokenizer

__all__ = ["Encoding", "PromptTokenizer", "as_ours"]


class Encoding(dict[str, Any]):
    """``input_ids`` and ``attention_mask``, as entries and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"This encoding has no {name!r}; it has {', '.join(self)}."
            ) from None

    def to(self, device: Any) -> "Encoding":
        """The encoding with its torch tensors on a device."""
        return Encoding(
            {n: one.to(device) if hasattr(one, "to") else one for n, one in self.items()}
        )


class PromptTokenizer:
    """A tokenizer with the methods of Transformers' that pipelines are written with."""

    def __init__(self, ours: Tokenizer) -> None:
        self.ours = ours
        self.model_max_length = ours.model_max_length
        self.vocab_size = ours.vocab_size
        self.bos_token_id = ours.bos_token_id
        self.eos_token_id = ours.eos_token_id
        self.pad_token_id = ours.pad_token_id

    def __len__(self) -> int:
        return len(self.ours)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str | None = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> Encoding:
        """Token ids and their mask, as Transformers' tokenizers give them.

        Args:
            text: A text, or several.
            padding: ``"max_length"``, or ``True`` or ``"longest"`` for that of the longest text.
            truncation: Whether to cut texts that are longer than ``max_length``.
            max_length: ``model_max_length`` by default.
            add_special_tokens: Whether to begin and end each text with its token.
            return_tensors: ``"pt"``, ``"np"``, or lists.
            return_attention_mask: ``False`` leaves the mask out.

        Raises:
            InputError: an argument has another value, or texts differ in length and were to be one
                tensor.
        """
        if return_tensors not in (None, "pt", "np"):
            raise InputError(
                f"return_tensors={return_tensors!r} was given; use 'pt', 'np' or None."
            )
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise InputError(
                f"padding={padding!r} was given; use 'max_length', 'longest', True or False."
            )
        limit = self.model_max_length if max_length is None else max_length
        cut = limit if truncation not in (None, False, "do_not_truncate") else None
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.ours.ids(one, max_length=cut, special=add_special_tokens) for one in texts]
        masks = [[1] * len(row) for row in rows]
        if padding not in (False, "do_not_pad"):
            length = limit if padding == "max_length" else max(map(len, rows))
            rows, masks = self._padded(rows, length)
        found = Encoding(input_ids=rows, attention_mask=masks)
        if return_attention_mask is False:
            del found["attention_mask"]
        if return_tensors is not None:
            return Encoding({name: _tensor(one, return_tensors) for name, one in found.items()})
        # One text alone gives flat lists.
        return Encoding({n: one[0] for n, one in found.items()}) if isinstance(text, str) else found

    def _padded(
        self, rows: list[list[int]], length: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        filler = self.pad_token_id if self.pad_token_id is not None else 0
        left = self.ours.pads_left
        filled, masks = [], []
        for row in rows:
            more = max(length - len(row), 0)
            ids, ones = [filler] * more, [0] * more
            filled.append(ids + row if left else row + ids)
            masks.append(ones + [1] * len(row) if left else [1] * len(row) + ones)
        return filled, masks

    def encode(self, text: str, *, return_tensors: str | None = None, **how: Any) -> Any:
        """The token ids of one text."""
        return self(text, return_tensors=return_tensors, **how).input_ids

    def tokenize(self, text: str) -> list[str]:
        """The tokens of one text, without special ones."""
        return [self.ours.token_of(one) for one in self.ours.ids(text, special=False)]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **how: Any) -> str:
        """The text of token ids, given as a list, an array or a tensor."""
        return self.ours.decode(_listed(token_ids), skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, **how: Any
    ) -> list[str]:
        """The text of each row of token ids."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or of each of several; an unknown one has that of ``unk_token``."""
        if isinstance(tokens, str):
            return self.ours.id_of(tokens)
        return [self.ours.id_of(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The token of an id, or of each of several."""
        if isinstance(ids, int):
            return self.ours.token_of(ids)
        return [self.ours.token_of(one) for one in _listed(ids)]

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return self.ours.vocabulary()

    @property
    def bos_token(self) -> str | None:
        return self._named(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        return self._named(self.eos_token_id)

    @property
    def pad_token(self) -> str | None:
        return self._named(self.pad_token_id)

    def _named(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.ours.token_of(token_id)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Copy the tokenizer's files into a folder."""
        self.ours.save(os.fspath(save_directory))


def as_ours(tokenizer: Any) -> Tokenizer:
    """A tokenizer as perfuse's steps call it, also where it is of Transformers."""
    if isinstance(tokenizer, PromptTokenizer):
        return tokenizer.ours
    if isinstance(tokenizer, Tokenizer) or not hasattr(tokenizer, "batch_decode"):
        return tokenizer  # type: ignore[no-any-return]
    return _Foreign(tokenizer)  # type: ignore[return-value]


class _Foreign:
    """A tokenizer of Transformers, called as perfuse's."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self.model_max_length = theirs.model_max_length

    def __call__(
        self, texts: str | Sequence[str], max_length: int | None = None, padding: bool = True
    ) -> TokenBatch:
        texts = [texts] if isinstance(texts, str) else list(texts)
        limit = self.model_max_length if max_length is None else max_length
        found = self._theirs(
            texts,
            padding="max_length" if padding else "longest",
            max_length=limit,
            truncation=True,
            return_tensors="np",
        )
        whole = self._theirs(texts, padding="do_not_pad", truncation=False).input_ids
        return TokenBatch(
            input_ids=found.input_ids.astype(np.int64),
            attention_mask=found.attention_mask.astype(np.int64),
            truncated=tuple(
                self._theirs.decode(ids[limit - 1 : -1]) if len(ids) > limit else None
                for ids in whole
            ),
        )


def _listed(ids: Any) -> list[int]:
    return [int(one) for one in (ids.tolist() if hasattr(ids, "tolist") else ids)]


def _tensor(rows: list[list[int]], kind: str) -> Any:
    if len({len(row) for row in rows}) > 1:
        raise InputError(
            f"Texts of {', '.join(str(len(row)) for row in rows)} tokens were to be one tensor. Give "
            "padding=True, and truncation=True for long ones."
        )
    array = np.asarray(rows, dtype=np.int64)
    if kind == "np":
        return array
    import torch

    return torch.from_numpy(array)
