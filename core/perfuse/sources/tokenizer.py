"""Tokenizers, from the checkpoint's own files and without torch or transformers.

CLIP's is built here from its vocabulary and merges (Radford et al. 2021; the byte-level BPE of
GPT-2 with an end-of-word mark), because many checkpoints hold nothing else. Any other class is read
from its ``tokenizer.json``, which describes itself; a class that comes without one gets a builder
in `_BUILDERS`.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perfuse.errors import CheckpointError, InputError
from perfuse.sources.tokenizer_files import (
    AGAIN,
    CONFIG,
    MATCHING,
    PIECES,
    WHOLE,
    WORDS,
    TokenizerFiles,
    apart,
    read_tables,
    read_words,
)

if TYPE_CHECKING:
    import tokenizers

__all__ = ["TokenBatch", "Tokenizer"]


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
    """Turns prompts into token ids. Make one with `Tokenizer.from_folder`."""

    vocab_size: int
    """Tokens in the vocabulary, without the added ones; ``len(tokenizer)`` counts those too."""
    bos_token_id: int | None
    """The token that begins a prompt, if the tokenizer has one."""
    eos_token_id: int | None
    """The token that ends a prompt, if the tokenizer has one."""
    pad_token_id: int | None
    """The token that fills a prompt up, if the tokenizer has one."""
    learned: Mapping[int, NDArray[np.float32]]
    """Token id to its learned vector [D], for the tokens that `with_learned` added."""

    def __init__(
        self, backend: "tokenizers.Tokenizer", files: "TokenizerFiles", limit: int | None
    ) -> None:
        # Each call sets the length, so remove any setting of tokenizer.json.
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
        self.learned = {}
        self._several: dict[str, str] = {}  # a token of several vectors to all of their tokens

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        tokenizer_class: str | None = None,
        *,
        pad_token: str | None = None,
        max_length: int | None = None,
    ) -> "Tokenizer":
        """Read the tokenizer that a folder holds.

        ``tokenizer_class`` is the class in ``model_index.json``; a class in
        ``tokenizer_config.json`` overrides it. ``pad_token`` and ``max_length`` are the padding
        token and the length to use if no file gives them. Raises `CheckpointError` if a file is
        missing or damaged, if the vocabulary and the merges do not belong together, or if the class
        is not known and there is no ``tokenizer.json``.
        """
        files = TokenizerFiles.read(Path(path), tokenizer_class, pad_token=pad_token)
        backend = _BUILDERS.get(files.kind, _build_from_json)(files)
        limit = files.max_length() or max_length
        if limit is None and files.kind == "CLIPTokenizer":
            limit = 77  # the context of every CLIP text encoder
        return cls(backend, files, limit)

    @property
    def model_max_length(self) -> int:
        """The most tokens of a prompt, including special ones: 77 for CLIP.

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
        """Turn prompts into tokens: add special tokens, truncate and pad to ``max_length``.

        ``max_length`` is `model_max_length` if None. Truncation keeps the end-of-text token.
        Without ``padding`` the batch is as long as its longest prompt. Raises `InputError` for
        what is not text, a lone surrogate, or a ``max_length`` smaller than the special tokens.
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

    def ids(self, text: str, *, max_length: int | None = None, special: bool = True) -> list[int]:
        """The token ids of one text, cut to ``max_length`` if one is given.

        ``special`` says whether its first and last token are those that begin and end a prompt.
        Raises `InputError` for what is not text.
        """
        (prompt,) = _checked_texts([text])
        if special and max_length is not None:
            return self._encode(prompt, max_length)[0]
        found: list[int] = self._backend.encode(self.expand(prompt), add_special_tokens=special).ids
        return found if max_length is None else found[:max_length]

    @property
    def pads_left(self) -> bool:
        """Whether prompts are filled up at their beginning."""
        return self._pad_left

    def id_of(self, token: str) -> int | None:
        """The id of a token; that of the unknown one if it has none."""
        found: int | None = self._backend.token_to_id(token)
        return self._id_of("unk_token") if found is None else found

    def token_of(self, token_id: int) -> str:
        """The token of an id; the empty string if there is none."""
        return self._backend.id_to_token(token_id) or ""

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, added ones too."""
        found: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return found

    def with_learned(self, tokens: Mapping[str, NDArray[np.float32]]) -> "Tokenizer":
        """A tokenizer with further tokens, each with its learned vectors [n, D].

        A token of several vectors stands for the tokens ``TOKEN TOKEN_1 TOKEN_2 …`` in a prompt, as
        in Diffusers. Raises `InputError` if the vocabulary has one of them already.
        """
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(self._backend.to_str())
        made = Tokenizer(backend, self._files, self._limit)
        learned, several = dict(self.learned), dict(self._several)
        for token, vectors in tokens.items():
            names = [token, *(f"{token}_{i}" for i in range(1, len(vectors)))]
            for name, vector in zip(names, vectors, strict=True):
                if backend.token_to_id(name) is not None:
                    raise InputError(
                        f"The token {name!r} was to be added; the tokenizer has it already. Give "
                        "another: token=."
                    )
                learned[len(made)] = vector  # the id that it is given
                backend.add_tokens([AddedToken(name)])
            if len(names) > 1:
                several[token] = " ".join(names)
        made.learned, made._several = learned, several
        return made

    def expand(self, text: str) -> str:
        """The text with each token of several vectors followed by the tokens of the others."""
        for token, names in self._several.items():
            rest = re.escape(names.removeprefix(token))
            written = names.replace("\\", r"\\")
            text = re.sub(f"{re.escape(token)}(?!_[0-9]|{rest})", written, text)
        return text

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Turn token ids back into text, including special tokens unless they are to be left out."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        # The byte-level decoder does not know the end-of-word mark and leaves it in the text.
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
        content = self._backend.encode(self.expand(text), add_special_tokens=False)
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


_CLIP_PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+"  # a word
    r"|\p{N}"  # a digit, alone
    r"|[^\s\p{L}\p{N}]+"  # a run of anything else that is not space
)


_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with one character before it
    r"|\p{N}"  # a digit, alone
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # anything else, to the end of its line
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _build_clip(files: TokenizerFiles) -> "tokenizers.Tokenizer":
    """Build CLIP's tokenizer from its vocabulary and merges, whichever file holds them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import BertProcessing

    vocab, merges, source = read_tables(files)
    if not any(token.endswith("</w>") for token in vocab):
        raise CheckpointError(
            f"The vocabulary in {source} is not CLIP's: none of its {len(vocab)} tokens ends in "
            f"'</w>'. Its class is {files.kind!r}; is {CONFIG} of another tokenizer?"
        )
    try:
        model = models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=files.named["unk_token"]["content"],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    except Exception as exc:  # the library raises nothing narrower
        raise apart(source, exc) from exc
    tokenizer = Tokenizer(model)

    def placed(role: str) -> tuple[str, int]:
        content: str = files.named[role]["content"]
        i = tokenizer.token_to_id(content)
        if i is None:  # _add_tokens added every other
            raise CheckpointError(
                f"The tokenizer in {files.folder} has {content!r} as its {role}. {AGAIN}"
            )
        return content, i

    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Keep what the pattern matches, drop what lies between.
            pre_tokenizers.Split(Regex(_CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, files)
    # Named after BERT's use of it: one token after the prompt, one before.
    tokenizer.post_processor = BertProcessing(placed("eos_token"), placed("bos_token"))
    return tokenizer


def _build_qwen2(files: TokenizerFiles) -> "tokenizers.Tokenizer":
    """Build Qwen's tokenizer from ``tokenizer.json``, or from its vocabulary and merges."""
    if files.whole is not None:
        return _build_from_json(files)
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab, merges, source = read_tables(files)
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as exc:  # the library raises nothing narrower
        raise apart(source, exc) from exc
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, files)
    return tokenizer


def _build_from_json(files: TokenizerFiles) -> "tokenizers.Tokenizer":
    """Build a tokenizer of any class from its ``tokenizer.json``."""
    if WHOLE not in files.present:
        raise CheckpointError(
            f"The tokenizer in {files.folder} is of {files.kind or 'a class that no file names'}; "
            f"without a {WHOLE} perfuse can read only: {', '.join(_BUILDERS)}. Save it with "
            f"transformers' fast tokenizer (AutoTokenizer.from_pretrained(...).save_pretrained(...))."
        )
    from tokenizers import Tokenizer

    path = files.folder / WHOLE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing narrower
        raise CheckpointError(f"{path} does not describe a tokenizer: {exc}. {AGAIN}") from exc
    _add_tokens(tokenizer, files)
    return tokenizer


def _build_t5(files: TokenizerFiles) -> "tokenizers.Tokenizer":
    """Build T5's tokenizer from its SentencePiece model, where it has no ``tokenizer.json``."""
    if WHOLE in files.present or PIECES not in files.present:
        return _build_from_json(files)
    from perfuse.sources.sentencepiece import Pieces, build_unigram

    count = int(files.config.get("extra_ids", 100))
    extra = tuple(f"<extra_id_{i}>" for i in reversed(range(count)))
    end: str = files.named["eos_token"]["content"]
    tokenizer = build_unigram(Pieces.read(files.folder / PIECES), extra, end)
    _add_tokens(tokenizer, files)
    return tokenizer


def _build_bert(files: TokenizerFiles) -> "tokenizers.Tokenizer":
    """Build BERT's tokenizer from its list of words, where it has no ``tokenizer.json``."""
    if WHOLE in files.present or WORDS not in files.present:
        return _build_from_json(files)
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab = read_words(files.folder / WORDS)
    roles = {name: files.named[f"{name}_token"]["content"] for name in ("unk", "pad", "cls", "sep")}
    if missing := [token for token in roles.values() if token not in vocab]:
        raise CheckpointError(
            f"{files.folder / WORDS} has {len(vocab)} words and lacks {', '.join(missing)}. {AGAIN}"
        )
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token=roles["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=files.config.get("tokenize_chinese_chars", True),
        strip_accents=files.config.get("strip_accents"),
        lowercase=files.config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _add_tokens(tokenizer, files)
    ends = roles["cls"], roles["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}",
        special_tokens=[(token, vocab[token]) for token in ends],
    )
    return tokenizer


_BUILDERS: dict[str, Callable[[TokenizerFiles], "tokenizers.Tokenizer"]] = {
    "BertTokenizer": _build_bert,
    "CLIPTokenizer": _build_clip,
    "Qwen2Tokenizer": _build_qwen2,
    "T5Tokenizer": _build_t5,
}
"""Tokenizer class to its builder, for classes that need no ``tokenizer.json``."""


def _add_tokens(tokenizer: "tokenizers.Tokenizer", files: TokenizerFiles) -> None:
    from tokenizers import AddedToken

    roles = {token["content"] for token in files.named.values()}
    tokens = []
    for token in files.added:
        how = {key: value for key, value in token.items() if key in MATCHING}
        added = AddedToken(token["content"], **how)
        added.special = added.special or token["content"] in roles
        tokens.append(added)
    tokenizer.add_tokens(tokens)


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
