"""Tokenizers, from the checkpoint's own files and without torch or transformers.

CLIP's is built here from its vocabulary and merges (Radford et al. 2021; the byte-level BPE of
GPT-2 with an end-of-word mark), because many checkpoints hold nothing else. Any other class is read
from its ``tokenizer.json``, which describes itself; a class that comes without one gets a builder
in `_BUILDERS`.

Which file says what has a history. Newer checkpoints state their added tokens in
``tokenizer_config.json`` (``added_tokens_decoder``), which then has the last word; older ones
spread them over ``special_tokens_map.json``, ``added_tokens.json`` and ``tokenizer.json``.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perfuse.errors import CheckpointError, InputError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["TokenBatch", "Tokenizer"]

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
WHOLE, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
FILES = (CONFIG, SPECIAL, ADDED, WHOLE, VOCAB, MERGES)
"""Every file that a tokenizer may be made of."""

_AGAIN = "Download or export the checkpoint again."
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


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """A batch of B prompts as tokens, each L long."""

    input_ids: NDArray[np.int64]
    """Token ids, int64 [B, L]."""
    attention_mask: NDArray[np.int64]
    """1 for a token of the prompt, 0 for padding, int64 [B, L]."""
    truncated: tuple[str | None, ...]
    """For each prompt the text that did not fit and was cut off; None if all of it fitted."""


class Tokenizer:
    """What turns prompts into token ids. Make one with `Tokenizer.from_folder`."""

    vocab_size: int
    """Tokens in the vocabulary, without the added ones; ``len(tokenizer)`` counts those too."""
    bos_token_id: int | None
    """The token that begins a prompt, if the tokenizer has one."""
    eos_token_id: int | None
    """The token that ends a prompt, if the tokenizer has one."""
    pad_token_id: int | None
    """The token that fills a prompt up, if the tokenizer has one."""

    def __init__(self, backend: "tokenizers.Tokenizer", files: "_Files", limit: int | None) -> None:
        # Lengths are decided by each call; what a tokenizer.json may have set would add to that.
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = bool(files.config.get("split_special_tokens", False))
        self._backend = backend
        self._files = files
        self._limit = limit
        self._word_end: str | None = getattr(backend.model, "end_of_word_suffix", None) or None
        self._specials: int = backend.num_special_tokens_to_add(False)
        self._pad_left = files.config.get("padding_side") == "left"
        self._truncation_side = "left" if files.config.get("truncation_side") == "left" else "right"
        self.vocab_size = backend.get_vocab_size(with_added_tokens=False)
        self.bos_token_id = self._id_of("bos_token")
        self.eos_token_id = self._id_of("eos_token")
        self.pad_token_id = self._id_of("pad_token")

    @classmethod
    def from_folder(cls, path: str | Path, tokenizer_class: str | None = None) -> "Tokenizer":
        """Read the tokenizer that a folder holds.

        ``tokenizer_class`` is what ``model_index.json`` calls it; ``tokenizer_config.json``, if it
        names a class, is believed first. Raises `CheckpointError` if a file is missing or damaged,
        if the vocabulary and the merges do not belong together, or if the class is not known and
        there is no ``tokenizer.json``.
        """
        files = _Files.read(Path(path), tokenizer_class)
        backend = _BUILDERS.get(files.kind, _build_from_json)(files)
        limit = files.max_length()
        if limit is None and files.kind == "CLIPTokenizer":
            limit = 77  # the context of every CLIP text encoder
        return cls(backend, files, limit)

    @property
    def model_max_length(self) -> int:
        """The most tokens of a prompt, special ones included: 77 for CLIP.

        Raises `CheckpointError` if the checkpoint states no limit.
        """
        if self._limit is None:
            raise CheckpointError(
                f"{self._files.folder / CONFIG} states no model_max_length. Pass max_length=."
            )
        return self._limit

    def __len__(self) -> int:
        size: int = self._backend.get_vocab_size(with_added_tokens=True)
        return size

    def __call__(
        self, texts: str | Sequence[str], max_length: int | None = None, padding: bool = True
    ) -> TokenBatch:
        """Turn prompts into tokens: special tokens added, cut to ``max_length``, filled up to it.

        ``max_length`` is `model_max_length` if None. The end-of-text token survives the cut.
        Without ``padding`` the batch is as long as its longest prompt. Raises `InputError` for
        what is not text, a lone surrogate, or a ``max_length`` that leaves no room.
        """
        prompts = _checked_texts(texts)
        length = self.model_max_length if max_length is None else max_length
        if length < max(self._specials, 1):
            raise InputError(
                f"max_length={length} leaves no room: this tokenizer adds {self._specials} special "
                f"tokens to each prompt. Give more; its model takes {self._limit or 'any number'}."
            )
        rows, truncated = [], []
        for prompt in prompts:
            ids, cut = self._encode(prompt, length)
            rows.append(ids)
            truncated.append(cut)
        return self._stack(rows, tuple(truncated), length if padding else max(map(len, rows)))

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids back into text; special tokens are shown as they are written."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        # The byte-level decoder knows nothing of the end-of-word mark and leaves it in the text.
        return text if self._word_end is None else text.replace(self._word_end, " ").strip()

    def save(self, folder: str | Path) -> None:
        """Copy the files this tokenizer was read from into ``folder``, unchanged.

        Raises `InputError` if the folder cannot be written.
        """
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for name in self._files.present:
                shutil.copyfile(self._files.folder / name, Path(folder) / name)
        except shutil.SameFileError:
            return  # saved where it was read: there is nothing to do
        except OSError as exc:
            raise InputError(
                f"The tokenizer of {self._files.folder} cannot be saved to {folder}: "
                f"{exc.strerror or exc}. Choose a folder that can be written."
            ) from exc

    def _id_of(self, name: str) -> int | None:
        token = self._files.named.get(name)
        found: int | None = None if token is None else self._backend.token_to_id(token["content"])
        return found

    def _encode(self, text: str, length: int) -> tuple[list[int], str | None]:
        content = self._backend.encode(text, add_special_tokens=False)
        room = length - self._specials
        cut = None
        over = len(content) - room
        if over > 0:
            left = self._truncation_side == "left"
            cut = self.decode(content.ids[:over] if left else content.ids[room:])
            content.truncate(room, direction=self._truncation_side)
        return self._backend.post_process(content, None, True).ids, cut

    def _stack(
        self, rows: list[list[int]], truncated: tuple[str | None, ...], length: int
    ) -> TokenBatch:
        if self.pad_token_id is None and any(len(row) < length for row in rows):
            raise CheckpointError(
                f"{self._files.folder} names no pad_token, so prompts cannot be filled up to "
                f"{length} tokens. Add a pad_token to {CONFIG}."
            )
        input_ids = np.full((len(rows), length), self.pad_token_id or 0, dtype=np.int64)
        mask = np.zeros_like(input_ids)
        for i, row in enumerate(rows):
            filled = slice(length - len(row), length) if self._pad_left else slice(0, len(row))
            input_ids[i, filled] = row
            mask[i, filled] = 1
        return TokenBatch(input_ids=input_ids, attention_mask=mask, truncated=truncated)


Token = Mapping[str, Any]
"""A special or added token: its ``content`` and how it is matched in text."""


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What the files of a folder say, before anything is built from them."""

    folder: Path
    present: tuple[str, ...]
    """The names in `FILES` that the folder holds."""
    kind: str
    """The tokenizer's class, without "Fast" at its end; empty if nothing names it."""
    config: Mapping[str, Any]
    whole: Mapping[str, Any] | None
    """``tokenizer.json``, if it is there."""
    named: Mapping[str, Token]
    """Special tokens by the part they play: ``bos_token``, ``pad_token`` …"""
    added: tuple[Token, ...]
    """Every token to be matched whole in the text, in the order of their ids."""

    @classmethod
    def read(cls, folder: Path, tokenizer_class: str | None) -> "_Files":
        if not folder.is_dir():
            raise CheckpointError(f"The tokenizer's folder {folder} does not exist. {_AGAIN}")
        present = tuple(name for name in FILES if (folder / name).is_file())

        def read(name: str) -> dict[str, Any]:
            return _read_json(folder / name) if name in present else {}

        config, whole = read(CONFIG), read(WHOLE) if WHOLE in present else None
        kind = config.get("tokenizer_class") or tokenizer_class
        if kind is None and whole is None and {VOCAB, MERGES} <= set(present):
            kind = "CLIPTokenizer"  # nothing says so, but only CLIP's comes like this; _clip checks
        kind = str(kind or "").removesuffix("Fast")
        defaults = _CLIP_TOKENS if kind == "CLIPTokenizer" else {}
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
                f"tokenizers use: {exc!r}. {_AGAIN}"
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


_CLIP_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_CLIP_PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+"  # a word
    r"|\p{N}"  # a digit, alone
    r"|[^\s\p{L}\p{N}]+"  # a run of anything else that is not space
)


def _build_clip(files: _Files) -> "tokenizers.Tokenizer":
    """Build CLIP's tokenizer from its vocabulary and merges, whichever file holds them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import BertProcessing

    vocab, merges, source = _clip_tables(files)
    try:
        model = models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=files.named["unk_token"]["content"],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    except Exception as exc:  # the library raises nothing narrower
        raise CheckpointError(
            f"The vocabulary and the merges in {source} do not belong together: {exc}. {_AGAIN}"
        ) from exc
    tokenizer = Tokenizer(model)

    def placed(role: str) -> tuple[str, int]:
        content: str = files.named[role]["content"]
        i = tokenizer.token_to_id(content)
        assert i is not None  # _add_tokens has put it there
        return content, i

    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # What the pattern matches is kept, what lies between is dropped.
            pre_tokenizers.Split(Regex(_CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, files)
    # Named after BERT's use of it: one token after the prompt, one before.
    tokenizer.post_processor = BertProcessing(placed("eos_token"), placed("bos_token"))
    return tokenizer


def _clip_tables(files: _Files) -> tuple[dict[str, int], list[tuple[str, str]], str]:
    """Return the vocabulary, the merges and the place they were found in."""
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
                f"{WHOLE} instead. It holds: {', '.join(files.present) or 'nothing'}. {_AGAIN}"
            )
        source = f"{files.folder / VOCAB} and {MERGES}"
        vocab, lines = _read_json(files.folder / VOCAB), _read_merges(files.folder / MERGES)
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in lines or ()]
    if not isinstance(vocab, dict) or any(type(i) is not int or i < 0 for i in vocab.values()):
        raise CheckpointError(f"The vocabulary in {source} does not map tokens to ids. {_AGAIN}")
    bad = next((n for n, merge in enumerate(merges, 1) if len(merge) != 2), None)
    if bad is not None:
        raise CheckpointError(
            f"Merge {bad} in {source} is not a pair of tokens: {merges[bad - 1]!r}. {_AGAIN}"
        )
    if not any(token.endswith("</w>") for token in vocab):
        raise CheckpointError(
            f"The vocabulary in {source} is not CLIP's: none of its {len(vocab)} tokens ends in "
            f"'</w>'. Its class is {files.kind!r}; is {CONFIG} of another tokenizer?"
        )
    return vocab, merges, source  # type: ignore[return-value]  # pairs, as checked above


def _build_from_json(files: _Files) -> "tokenizers.Tokenizer":
    """Build a tokenizer of any class from its ``tokenizer.json``."""
    if WHOLE not in files.present:
        raise CheckpointError(
            f"The tokenizer in {files.folder} is a {files.kind or 'class that no file names'}, and "
            f"without a {WHOLE} perfuse can read only: {', '.join(_BUILDERS)}. Save it with "
            f"transformers' fast tokenizer (AutoTokenizer.from_pretrained(...).save_pretrained(...))."
        )
    from tokenizers import Tokenizer

    path = files.folder / WHOLE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing narrower
        raise CheckpointError(f"{path} does not describe a tokenizer: {exc}. {_AGAIN}") from exc
    _add_tokens(tokenizer, files)
    return tokenizer


_BUILDERS: dict[str, Callable[[_Files], "tokenizers.Tokenizer"]] = {"CLIPTokenizer": _build_clip}
"""For each class that is built and not read: its builder."""


def _add_tokens(tokenizer: "tokenizers.Tokenizer", files: _Files) -> None:
    from tokenizers import AddedToken

    roles = {token["content"] for token in files.named.values()}
    tokens = []
    for token in files.added:
        how = {key: value for key, value in token.items() if key in _MATCHING}
        added = AddedToken(token["content"], **how)
        added.special = added.special or token["content"] in roles
        tokens.append(added)
    tokenizer.add_tokens(tokens)


_MATCHING = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _token(stated: Any) -> Token:
    """Read a token as the files write it: a string, or a dict with its content and flags."""
    if isinstance(stated, str):
        return {"content": stated, "special": True}
    if not isinstance(stated["content"], str):
        raise TypeError(f"token content {stated['content']!r}")
    flags = {key: bool(stated.get(key, False)) for key in _MATCHING}
    flags["normalized"] = bool(stated.get("normalized", not flags["special"]))
    return {"content": stated["content"], **flags}


def _special(roles: Mapping[str, Any]) -> dict[str, Any]:
    """Mark the tokens of ``special_tokens_map.json`` as special, which its entries do not say."""
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
    """Find the token of each role; how an added token is matched is said where it is added."""
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
    """Put together the tokens to add, one for each content.

    What an added token says, stands. Of special tokens with one content that say different things
    (SD 1's end and padding do) the last stands, as it does in transformers.
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} cannot be read as JSON: {exc}. {_AGAIN}") from exc
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(content).__name__}, not an object. {_AGAIN}"
        )
    return content


def _read_merges(path: Path) -> list[str]:
    try:
        # Not splitlines(): a merge may hold a character that Unicode counts as the end of a line.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{path} cannot be read as UTF-8 text: {exc}. {_AGAIN}") from exc
    return [line for line in lines if line and not line.startswith("#version")]


def _checked_texts(texts: Any) -> list[str]:
    prompts = [texts] if isinstance(texts, str) else list(texts)
    if not prompts:
        raise InputError("No prompt was given. Give at least one; it may be the empty string.")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(
                f"Prompt {i} is not text but a {type(prompt).__name__}. Give a string, or a list "
                "of strings."
            )
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise InputError(
                f"Prompt {i} holds half a character (the lone surrogate {prompt[exc.start]!r} at "
                f"position {exc.start}), as badly decoded text does. Remove it."
            ) from exc
    return prompts
