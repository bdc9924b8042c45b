"""The tokenizer files of `shapes`: CLIP's byte-level BPE with just the merges that its words need.

Every word of the language is one token; anything else falls apart into letters, as in CLIP.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from perfuse.shapes.grammar import WORDS

__all__ = ["BOS", "EOS", "LENGTH", "vocabulary", "write_json", "write_tokenizer"]

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 32
"""Tokens in a prompt, the two marks and the padding included."""


def _alphabet() -> list[str]:
    """The printable character of each byte, in CLIP's order (Radford et al. 2019, section 2.2)."""
    plain = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index in range(len(rest))]


def _merges() -> list[tuple[str, str]]:
    """The merges that make each word one token: always the commonest pair, the first of equals."""
    words = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
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
    letters, merges = _alphabet(), _merges()
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    return {token: index for index, token in enumerate([*tokens, BOS, EOS])}, merges


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
