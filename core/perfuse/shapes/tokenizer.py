"""The tokenizers of the bundled models: byte-level BPE with just the merges that their words need.

`shapes` has CLIP's, which marks where a word ends, and `shapes-flow` has Qwen's, in whose words the
space before them is the first letter. Every word of the language is one token; anything else falls
apart into letters.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from perfuse.shapes.grammar import WORDS

__all__ = [
    "BOS",
    "EOS",
    "LENGTH",
    "PADDING",
    "TURN",
    "TURN_END",
    "language_vocabulary",
    "vocabulary",
    "write_json",
    "write_language_tokenizer",
    "write_tokenizer",
]

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 32
"""Tokens in a prompt, the two marks and the padding included."""

TURN, TURN_END, PADDING = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_SPACE = "Ġ"
_TEMPLATE = (
    f"{{% for message in messages %}}{TURN} {{{{ message.content }}}}{TURN_END}{{% endfor %}}"
)
"""A prompt between two marks; the space makes its first word like the others."""


def _alphabet() -> list[str]:
    """The printable character of each byte, in CLIP's order (Radford et al. 2019, section 2.2)."""
    plain = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index in range(len(rest))]


def _merges(words: list[list[str]]) -> list[tuple[str, str]]:
    """The merges that make each word one token: always the commonest pair, the first of equals."""
    merges = []
    while any(len(word) > 1 for word in words):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in words:
            for i in range(len(word) - 2, -1, -1):
                if tuple(word[i : i + 2]) == best:
                    word[i : i + 2] = ["".join(best)]
    return merges


@cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The tokens with their ids, and the merges, first to last."""
    letters = _alphabet()
    merges = _merges([[*word[:-1], word[-1] + "</w>"] for word in WORDS])
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    return {token: index for index, token in enumerate([*tokens, BOS, EOS])}, merges


@cache
def language_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The tokens with their ids, and the merges, of Qwen's layout; a caption may begin with "A"."""
    merges = _merges([[_SPACE, *word] for word in (*WORDS, "A", "An")])
    tokens = [*_alphabet(), *("".join(pair) for pair in merges), PADDING, TURN, TURN_END]
    return {token: index for index, token in enumerate(tokens)}, merges


def write_language_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json, with its chat template."""
    ids, merges = language_vocabulary()
    special = (PADDING, TURN, TURN_END)
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(ids[token]): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in special
        },
        "chat_template": _TEMPLATE,
        "eos_token": TURN_END,
        "model_max_length": 512,
        "pad_token": PADDING,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(
        folder / "vocab.json", {token: i for token, i in ids.items() if token not in special}
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    ids, merges = vocabulary()

    def mark(token: str, normalized: bool) -> dict[str, Any]:
        flags = {"lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}
        return {"content": token, **flags}

    special = {
        "bos_token": mark(BOS, True),
        "eos_token": mark(EOS, True),
        "pad_token": EOS,
        "unk_token": mark(EOS, True),
    }
    config = {
        "add_prefix_space": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": EOS,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "vocab.json", ids)
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as Diffusers writes its configs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
