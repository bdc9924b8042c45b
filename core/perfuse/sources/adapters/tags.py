"""Adapters named in a prompt, as in AUTOMATIC1111's web UI: ``a castle <lora:pixels:0.8>``."""

import re
from pathlib import Path

from perfuse.errors import InputError

__all__ = ["read_tags"]

_TAG = re.compile(r"\s*<lora:([^<>]*)>")


def read_tags(prompt: str, folder: Path) -> tuple[str, tuple[tuple[Path, float], ...]]:
    """A prompt without the tags in it, and the file and the weight of each.

    Args:
        prompt: What the user wrote.
        folder: Where the files are: ``pixels.safetensors``.

    Raises:
        InputError: a tag names no file in the folder, or its weight is no number.
    """
    found = []
    for text in _TAG.findall(prompt):
        name, _, weight = text.partition(":")
        file = folder / f"{name}.safetensors"
        if Path(name).name != name or not file.is_file():
            there = ", ".join(sorted(one.stem for one in folder.glob("*.safetensors"))[:10])
            raise InputError(
                f"The prompt names the LoRA {name!r}; {folder} holds {there or 'none'}. Name one of "
                "these, or another folder: --lora-folder."
            )
        try:
            found.append((file, float(weight) if weight else 1.0))
        except ValueError as exc:
            raise InputError(
                f"The prompt has <lora:{text}>; {weight!r} is no number. Write <lora:NAME:0.8>."
            ) from exc
    return _TAG.sub("", prompt).strip(), tuple(found)
