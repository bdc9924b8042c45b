"""CLIP's tokenizer for checkpoints that bring none: from a folder, a package, or the Hub."""

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse.errors import CheckpointError
from perfuse.sources.files import user_path
from perfuse.sources.hub import file_from_hub, is_hub_id
from perfuse.sources.store import ArtifactStore

__all__ = ["clip_folder"]

#: The repository that Diffusers takes it from, too.
_CLIP = "openai/clip-vit-large-patch14"
_VOCAB, _MERGES = "vocab.json", "merges.txt"
_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_START, _END = "<|startoftext|>", "<|endoftext|>"
#: Where OpenCLIP's package keeps the merges, of which CLIP has this many.
_PACKAGE, _FILE, _COUNT = "open_clip", "bpe_simple_vocab_16e6.txt.gz", 48_894


def clip_folder(
    name: str,
    padding: str,
    source: str | None,
    *,
    model: str,
    offline: bool | None,
    hub: Mapping[str, Any],
) -> Path:
    """A folder with CLIP's tokenizer.

    Args:
        name: The tokenizer's name in its pipeline.
        padding: The token that fills a prompt up.
        source: A folder with the tokenizer, or with one folder for each; or a Hub id. By default
            the package OpenCLIP where it is installed, and the Hub otherwise.
        model: The checkpoint, for messages.
        offline: ``True`` reads only the Hub's cache.
        hub: Other arguments of ``huggingface_hub``.

    Raises:
        CheckpointError: there is no such folder, or the Hub does not give the files.
        ExportError: perfuse's cache cannot be written.
    """
    if source is not None and not _is_remote(source):
        folder = user_path(source)
        if (folder / name).is_dir():
            folder = folder / name
        vocab, merges = folder / _VOCAB, folder / _MERGES
        if not (vocab.is_file() and merges.is_file()):
            raise CheckpointError(
                f"The tokenizer of {model} was to be taken from {folder}, which has no {_VOCAB} and "
                f"{_MERGES}. Name a folder that has CLIP's."
            )
        return _made(vocab.read_bytes(), merges.read_bytes(), padding)
    packed = _packaged() if source is None else None
    if packed is not None:
        return _made(*_unpacked(packed), padding)
    repository = source if source is not None else _CLIP
    try:
        vocab, _ = file_from_hub(repository, _VOCAB, None, offline, hub)
        merges, _ = file_from_hub(repository, _MERGES, None, offline, hub)
    except CheckpointError as exc:
        raise CheckpointError(
            f"{model} has no tokenizer, as no single file has. {exc} Or give a folder that has "
            "CLIP's: tokenizer_from=FOLDER, or --tokenizer-from."
        ) from exc
    return _made(vocab.read_bytes(), merges.read_bytes(), padding)


def _is_remote(source: str) -> bool:
    """Whether a source is a Hub id and not a folder."""
    return not user_path(source).exists() and is_hub_id(source)


def _made(vocab: bytes, merges: bytes, padding: str) -> Path:
    """The folder of a tokenizer in perfuse's cache."""
    names = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": padding}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **names}

    def make(folder: Path) -> None:
        (folder / _VOCAB).write_bytes(vocab)
        (folder / _MERGES).write_bytes(merges)
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (folder / _SPECIAL).write_text(json.dumps(names, indent=2) + "\n", "utf-8")

    digest = hashlib.sha256(vocab + b"\0" + merges).hexdigest()
    key = {"tokenizer": digest, "config": config}
    return ArtifactStore.default().get_or_make("tokenizer", key, make)


def _packaged() -> Path | None:
    """The merges in OpenCLIP's package, where it is installed; it is not imported."""
    found = importlib.util.find_spec(_PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    files = [Path(place) / _FILE for place in places or ()]
    return next((file for file in files if file.is_file()), None)


def _unpacked(file: Path) -> tuple[bytes, bytes]:
    """The vocabulary and the merges as Transformers' files hold them.

    The vocabulary is the 256 bytes, the same at the end of a word, what the merges make, and two
    special tokens (Radford et al. 2021; the byte codes are GPT-2's).
    """
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")[1 : _COUNT + 1]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in shown + [256 + i for i in range(256 - len(shown))]]
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += ["".join(line.split()) for line in lines] + [_START, _END]
    vocab = {token: i for i, token in enumerate(tokens)}
    return json.dumps(vocab).encode(), "\n".join(["#version: 0.2", *lines, ""]).encode()
