"""Saving a pipeline as a Diffusers checkpoint, without the adapters that are loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

from perfuse.contract.backend import Program
from perfuse.contract.spec import Role
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.run.parts import Parts
from perfuse.run.plan import parts_of
from perfuse.sources.files import write_file
from perfuse.sources.model_index import INDEX
from perfuse.sources.weights import check_variant
from perfuse.tasks.image_prompt import SCALES

__all__ = ["index_of", "save", "save_tokenizer"]

#: The version of Diffusers whose layout is written; it opens no inpainting pipeline without one.
_FORMAT = "0.35.0"


def save(pipe: Parts, folder: Path, *, variant: str | None = None) -> None:
    """Write ``model_index.json`` and a folder for each model, tokenizer and the scheduler.

    Args:
        pipe: The pipeline.
        folder: Where to write.
        variant: Part of the weight files' names.

    Raises:
        InputError: a component is no torch module, so it has no weights to save; or the variant is
            no word that a file name can have.
    """
    check_variant(variant)
    if pipe.source.format is not None:
        raise InputError(
            f"{pipe.source.model} is an export, which has no weights to save as a checkpoint. Save "
            "the checkpoint that it was exported from, or copy the folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    named = {} if variant is None else {"variant": variant}
    for name in _parts(pipe):
        model = pipe.model(name)
        if isinstance(model, Program) or not hasattr(model, "save_pretrained"):
            raise InputError(
                f"The pipeline was to be saved; its {name} is a {type(model).__name__}, which has no "
                "weights to save. Set a model that has save_pretrained, or None."
            )
        model.save_pretrained(folder / name, **named)
    for name in pipe.spec.tokenizers:
        save_tokenizer(pipe, name, folder / name)
    for name in (*pipe.spec.processors, *schedulers_of(pipe)):
        getattr(pipe, name).save_pretrained(folder / name)
    _save_others(pipe, folder)
    write_file(folder / INDEX, json.dumps(index_of(pipe), indent=2) + "\n")


def _parts(pipe: Parts) -> tuple[str, ...]:
    """The attributes that hold models; the projections of IP-Adapters are in the adapters' files."""
    adapters = {one.part for one in pipe.spec.having(Role.IMAGE_PROJECTION)}
    return tuple(name for name in parts_of(pipe.spec) if name not in adapters)


def schedulers_of(pipe: Parts) -> tuple[str, ...]:
    """The attributes that hold schedulers."""
    usual = () if pipe.scheduler is None else ("scheduler",)
    return (*pipe.spec.schedulers, *usual)


def save_tokenizer(pipe: Parts, name: str, folder: Path) -> None:
    """Write the files of one of a pipeline's tokenizers."""
    tokenizer = getattr(pipe, name)
    tokenizer.save_pretrained(folder)


def _save_others(pipe: Parts, folder: Path) -> None:
    """Copy what no task runs from the checkpoint, and save what the user registered."""
    for name in getattr(pipe.source, "ignored", ()):
        kept = Path(getattr(pipe.source, "path", "")) / name
        if kept.is_dir():
            shutil.copytree(kept, folder / name, dirs_exist_ok=True)
    for name, one in pipe.others.items():
        if hasattr(one, "save_pretrained"):
            one.save_pretrained(folder / name)


def index_of(pipe: Parts) -> dict[str, Any]:
    """The content of ``model_index.json``: each component's library and class, and the settings."""
    spec = pipe.spec
    index: dict[str, Any] = {"_class_name": pipe.class_name, "_diffusers_version": _FORMAT}
    before = dict(getattr(pipe.source, "index", {}))
    parts = _parts(pipe)
    for component in spec.components.values():
        if component.entry_of is None and component.part in parts:
            index[component.part] = [_library(component.class_name), component.class_name]
    for name in spec.tokenizers:
        said = before.get(name)
        index[name] = list(said) if said else _described(getattr(pipe, name), "transformers")
    for name in spec.processors:
        index[name] = ["transformers", getattr(pipe, name).kind]
    for name in schedulers_of(pipe):
        index[name] = ["diffusers", type(getattr(pipe, name)).__name__]
    for name in getattr(pipe.source, "ignored", ()):
        index[name] = list(before[name])
    for name, one in pipe.others.items():
        index[name] = [None, None] if one is None else _described(one, "transformers")
    for name in pipe.optional:
        index.setdefault(name, [None, None])
    return {**index, **{name: one for name, one in spec.options.items() if name != SCALES}}


def _library(class_name: str) -> str:
    architecture = host().architectures().get(class_name)
    return architecture.library if architecture is not None else "diffusers"


def _described(one: Any, library: str) -> list[str]:
    """The library and the class of an object; a tokenizer of perfuse's is CLIP's."""
    module = type(one).__module__.partition(".")[0]
    if module == "perfuse":
        return [library, "CLIPTokenizer"]
    return [module, type(one).__name__]
