"""Where the file of an adapter is: on this machine, or in the Hub's cache."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfuse.contract.frozen import FrozenDict
from perfuse.errors import CheckpointError, WeightsError
from perfuse.sources.adapters.settings import PEFT_FILE, PEFT_SETTINGS
from perfuse.sources.files import user_path
from perfuse.sources.hub import file_from_hub, is_hub_id, names_on_hub
from perfuse.sources.weights import is_pickle

__all__ = ["Place", "find_file"]

#: What Diffusers calls the file that it writes.
_USUAL = "pytorch_lora_weights.safetensors"
#: Files of a training run that are no adapters.
_OTHERS = ("scheduler", "optimizer", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a folder or a repository a file is."""

    weight_name: str | None = None
    subfolder: str | None = None
    revision: str | None = None
    #: ``True`` reads only the Hub's cache.
    offline: bool | None = None
    #: Further arguments of ``hf_hub_download``: ``cache_dir``, ``token``.
    hub: Mapping[str, Any] = field(default_factory=FrozenDict)


def find_file(given: "str | os.PathLike[str]", place: Place) -> Path:
    """The file of an adapter.

    Args:
        given: A file, a folder or OWNER/NAME on the Hub.
        place: Where in it.

    Raises:
        CheckpointError: the Hub does not give it.
        WeightsError: there is no such file, or several and none was named, or it is a pickle.
    """
    path = user_path(given)
    inner = place.subfolder.strip("/") if place.subfolder is not None else ""
    if path.is_dir():
        folder = path / inner
        name = place.weight_name
        if name is None:
            there = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
            name = _only(there, str(folder))
        path = folder / name
    elif not path.exists() and is_hub_id(os.fspath(given)):
        path = _from_hub(os.fspath(given), inner, place)
    if is_pickle(path.name):
        raise WeightsError(
            f"{path} was given as a LoRA; reading such a file can run code that is hidden in it, so "
            "perfuse never does. Use one in .safetensors, or convert it where you trust it."
        )
    if not path.is_file():
        raise WeightsError(
            f"A LoRA was to be read from {path}, which is no file. Name a .safetensors file, its "
            "folder, or OWNER/NAME on the Hub with weight_name=."
        )
    return path


def _from_hub(model: str, inner: str, place: Place) -> Path:
    name = place.weight_name
    every: tuple[str, ...] = ()
    if name in (None, PEFT_FILE):
        every = names_on_hub(model, place.revision, place.offline, place.hub)
    if name is None:
        within = [one.removeprefix(f"{inner}/") for one in every if one.startswith(inner)]
        # Without an answer, what is in the cache under the usual name.
        name = _only([one for one in within if "/" not in one], model) if every else _USUAL
    file, settings = (f"{inner}/{one}".lstrip("/") for one in (name, PEFT_SETTINGS))
    if is_pickle(name):
        return Path(file)
    try:
        if name == PEFT_FILE and settings in every:  # to lie beside the weights in the cache
            file_from_hub(model, settings, place.revision, place.offline, place.hub)
        return file_from_hub(model, file, place.revision, place.offline, place.hub)[0]
    except CheckpointError as exc:
        raise CheckpointError(f"{exc} Another file of it: weight_name=.") from exc


def _only(names: Sequence[str], where: str) -> str:
    """The one file among these that an adapter can be in."""
    fitting = [
        name
        for name in names
        if name.endswith(".safetensors") and not any(word in name for word in _OTHERS)
    ]
    if _USUAL in fitting:
        return _USUAL
    if len(fitting) != 1:
        held = ", ".join((fitting or list(names))[:5]) or "nothing"
        raise WeightsError(
            f"A LoRA was to be read from {where}, which holds {held}. Name its file: weight_name=."
        )
    return fitting[0]
