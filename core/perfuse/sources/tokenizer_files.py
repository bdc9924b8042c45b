"""The settings in a tokenizer's files, read before a tokenizer is built.

Newer checkpoints list added tokens in ``tokenizer_config.json`` (``added_tokens_decoder``), which
then overrides the other files; older ones spread them over ``special_tokens_map.json``,
``added_tokens.json`` and ``tokenizer.json``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfuse.errors import CheckpointError
from perfuse.sources import files

__all__ = ["FILES", "TokenizerFiles", "apart", "read_tables"]

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
WHOLE, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
PIECES, WORDS = "spiece.model", "vocab.txt"
TEMPLATE = "chat_template.jinja"
FILES = (CONFIG, SPECIAL, ADDED, WHOLE, VOCAB, MERGES, PIECES, WORDS, TEMPLATE)
"""Every file that a tokenizer may be made of."""

AGAIN = "Download or export the checkpoint again."
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_UNSTATED = 10**9  # a model_max_length above this is the field's way of writing "no limit" (1e30)
MATCHING = ("single_word", "lstrip", "rstrip", "normalized", "special")
_END = "<|endoftext|>"
_DEFAULTS = {
    "CLIPTokenizer": {
        "bos_token": "<|startoftext|>",
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
    },
    "BertTokenizer": {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    "T5Tokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "Qwen2Tokenizer": {"eos_token": _END, "pad_token": _END},
}

Token = Mapping[str, Any]
"""A special or added token: its ``content`` and how it is matched in text."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The settings in a tokenizer's files."""

    folder: Path
    present: tuple[str, ...]
    """The names in `FILES` that the folder holds."""
    kind: str
    """The tokenizer's class, without "Fast" at its end; empty if nothing names it."""
    config: Mapping[str, Any]
    whole: Mapping[str, Any] | None
    """``tokenizer.json``, if it is there."""
    named: Mapping[str, Token]
    """Special tokens by role: ``bos_token``, ``pad_token`` …"""
    added: tuple[Token, ...]
    """Every token to be matched whole in the text, in the order of their ids."""

    @classmethod
    def read(
        cls, folder: Path, tokenizer_class: str | None, *, pad_token: str | None = None
    ) -> "TokenizerFiles":
        if not folder.is_dir():
            raise CheckpointError(f"The tokenizer's folder {folder} does not exist. {AGAIN}")
        present = tuple(name for name in FILES if (folder / name).is_file())

        def read(name: str) -> dict[str, Any]:
            return read_json(folder / name) if name in present else {}

        config, whole = read(CONFIG), read(WHOLE) if WHOLE in present else None
        kind = config.get("tokenizer_class") or tokenizer_class
        if kind is None and whole is None and {VOCAB, MERGES} <= set(present):
            kind = "CLIPTokenizer"  # only CLIP's has these files alone; _clip_tables checks
        kind = str(kind or "").removesuffix("Fast")
        defaults = _DEFAULTS.get(kind, {})
        if pad_token is not None:
            defaults = {**defaults, "pad_token": pad_token}
        try:
            if "added_tokens_decoder" in config:
                stated = {**defaults, **_without_null(config)}
                added = _by_id(config["added_tokens_decoder"].items())
            else:
                roles = _special(_without_null(read(SPECIAL)))
                stated = {**defaults, **_without_null(config), **roles}
                added = _by_id(_older_added(read(ADDED), whole or {}, stated))
            named, extra = _named_tokens(stated, added), _extra_tokens(stated)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise CheckpointError(
                f"The special tokens of {folder} ({', '.join(present)}) are not in a form that "
                f"tokenizers use: {exc!r}. {AGAIN}"
            ) from exc
        return cls(
            folder=folder,
            present=present,
            kind=kind,
            config=config,
            whole=whole,
            named=named,
            added=_to_add(added, (*named.values(), *extra)),
        )

    def max_length(self) -> int | None:
        stated = self.config.get("model_max_length", self.config.get("max_len"))
        if isinstance(stated, (int, float)) and 0 < stated < _UNSTATED:
            return int(stated)
        return None


def _token(stated: Any) -> Token:
    """Read a token as the files write it: a string, or a dict with its content and flags."""
    if isinstance(stated, str):
        return {"content": stated, "special": True}
    if not isinstance(stated["content"], str):
        raise TypeError(f"token content {stated['content']!r}")
    flags = {key: bool(stated.get(key, False)) for key in MATCHING}
    flags["normalized"] = bool(stated.get("normalized", not flags["special"]))
    return {"content": stated["content"], **flags}


def _special(roles: Mapping[str, Any]) -> dict[str, Any]:
    """Mark the tokens of ``special_tokens_map.json`` as special; its entries lack the flag."""
    return {
        role: {**token, "special": True} if isinstance(token, dict) else token
        for role, token in roles.items()
    }


def _by_id(entries: Any) -> list[Token]:
    return [_token(token) for _, token in sorted((int(i), token) for i, token in entries)]


def _older_added(
    added: Mapping[str, Any], whole: Mapping[str, Any], stated: Mapping[str, Any]
) -> Iterator[tuple[int, Token]]:
    """Collect added tokens from where they were kept before ``added_tokens_decoder``."""
    tokens: dict[int, Token] = {}
    special = {_token(stated[role])["content"] for role in _NAMED if role in stated}
    special |= {token["content"] for token in _extra_tokens(stated)}
    for content, i in added.items():
        is_special = content in special
        tokens[i] = {"content": content, "normalized": not is_special, "special": is_special}
    for entry in whole.get("added_tokens", ()):
        tokens[entry["id"]] = entry
    yield from tokens.items()


def _named_tokens(stated: Mapping[str, Any], added: Sequence[Token]) -> dict[str, Token]:
    """Find the token of each role; matching flags come from its entry among the added tokens."""
    how = {token["content"]: token for token in added}
    others = [
        key
        for key, value in stated.items()
        if key.endswith("_token") and key not in _NAMED and isinstance(value, (str, dict))
    ]
    named = {role: _token(stated[role]) for role in (*_NAMED, *others) if role in stated}
    return {role: how.get(token["content"], token) for role, token in named.items()}


def _extra_tokens(stated: Mapping[str, Any]) -> list[Token]:
    extra = stated.get("extra_special_tokens") or stated.get("additional_special_tokens") or ()
    return [_token(token) for token in (extra.values() if isinstance(extra, dict) else extra)]


def _to_add(added: Sequence[Token], special: Sequence[Token]) -> tuple[Token, ...]:
    """The tokens to add, one for each content.

    An added token overrides a special one. Of special tokens with equal content but different flags
    (SD 1's end and padding tokens) the last one wins, as in transformers.
    """
    said = {token["content"]: token for token in added}
    seen: list[Token] = []
    for token in special:
        if token["content"] not in {t["content"] for t in added} and token not in seen:
            seen.append(token)
            said[token["content"]] = token
    return tuple(said.values())


def _without_null(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if value is not None}


def read_json(path: Path) -> dict[str, Any]:
    return files.read_json(path, remedy=AGAIN)


def read_merges(path: Path) -> list[str]:
    # Not splitlines(): a merge may hold a character that Unicode counts as the end of a line.
    lines = files.read_text(path, remedy=AGAIN).split("\n")
    return [line for line in lines if line and not line.startswith("#version")]


def read_words(path: Path) -> dict[str, int]:
    """The tokens of a list, one a line, by their numbers."""
    words = files.read_text(path, remedy=AGAIN).replace("\r\n", "\n").split("\n")
    return {word: i for i, word in enumerate(words[:-1] if words[-1] == "" else words)}


def read_tables(files: "TokenizerFiles") -> tuple[dict[str, int], list[tuple[str, str]], str]:
    """The vocabulary of a byte-level BPE, its merges, and the files that they were read from."""
    if files.whole is not None:
        source = str(files.folder / WHOLE)
        model = files.whole.get("model")
        model = model if isinstance(model, dict) else {}
        vocab, lines = model.get("vocab"), model.get("merges")
    else:
        missing = [name for name in (VOCAB, MERGES) if name not in files.present]
        if missing:
            raise CheckpointError(
                f"The tokenizer in {files.folder} lacks {' and '.join(missing)}, and there is no "
                f"{WHOLE} instead. It holds: {', '.join(files.present) or 'nothing'}. {AGAIN}"
            )
        source = f"{files.folder / VOCAB} and {MERGES}"
        vocab, lines = read_json(files.folder / VOCAB), read_merges(files.folder / MERGES)
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in lines or ()]
    if not isinstance(vocab, dict) or any(type(i) is not int or i < 0 for i in vocab.values()):
        raise CheckpointError(f"The vocabulary in {source} does not map tokens to ids. {AGAIN}")
    bad = next((n for n, merge in enumerate(merges, 1) if len(merge) != 2), None)
    if bad is not None:
        raise CheckpointError(
            f"Merge {bad} in {source} is not a pair of tokens: {merges[bad - 1]!r}. {AGAIN}"
        )
    return vocab, merges, source  # type: ignore[return-value]  # pairs, as checked above


def apart(source: str, exc: Exception) -> CheckpointError:
    """The error for a vocabulary and merges of two tokenizers."""
    return CheckpointError(
        f"The vocabulary and the merges in {source} do not belong together: {exc}. {AGAIN}"
    )
