"""``model_index.json``: the components of a checkpoint, and their folders."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse.contract.spec import PipelineSpec
from perfuse.errors import CheckpointError, NotNativeError
from perfuse.plugins import host
from perfuse.sources import files
from perfuse.sources.manifest import MANIFEST, is_artifact
from perfuse.sources.weights import check_inside

__all__ = [
    "check_index",
    "class_of",
    "entries_of",
    "folder_of",
    "is_setting",
    "kind_of",
    "names_in",
    "read_index",
    "read_json",
    "unused_of",
    "write_index",
]

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
#: What Diffusers writes for a modular pipeline in place of ``model_index.json``.
MODULAR = "modular_model_index.json"
TOKENIZER = "tokenizer_config.json"
PROCESSOR, IMAGE_PROCESSOR = "preprocessor_config.json", "CLIPImageProcessor"
AGAIN = "Download or save the checkpoint again."

#: Transformers 5 names the library that an image processor uses, too: ``CLIPImageProcessorPil``.
_PROCESSOR = re.compile(r"((ImageProcessor|FeatureExtractor)(Fast|Pil)?|VLProcessor)$")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        CheckpointError: the file is missing, cannot be read, or does not hold an object.
    """
    try:
        return files.read_json(path, remedy=AGAIN)
    except CheckpointError as exc:
        if not isinstance(exc.__cause__, FileNotFoundError):
            raise
        held = ", ".join(names_in(path.parent)[:8]) or "nothing"
        raise CheckpointError(f"{path} is missing; its folder holds {held}. {AGAIN}") from exc


def names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def read_index(path: Path, asked: str) -> dict[str, Any]:
    """The content of ``model_index.json``.

    Raises:
        CheckpointError: there is no such file; the message says what ``path`` is instead.
    """
    if not os.path.exists(path):
        raise CheckpointError(
            f"Model {asked!r} was asked for; there is no such folder. Name an existing folder, or "
            "a Hub repository as OWNER/NAME."
        )
    if not os.path.isdir(path):
        raise CheckpointError(
            f"Model {asked!r} is a file; a Diffusers folder with {INDEX} was expected. A single "
            "file can be converted: load it with diffusers' from_single_file and call "
            "save_pretrained(folder)."
        )
    if is_artifact(path):
        raise CheckpointError(
            f"{path} is an exported artifact (it has {MANIFEST}), and a checkpoint was asked for. "
            "Run it as it is, or name the checkpoint that it was exported from."
        )
    if (path / INDEX).exists():
        file = check_inside(path / INDEX, path)
        return check_index(read_json(file), file)
    names = names_in(path)
    if MODULAR in names:
        raise NotNativeError(
            f"{path} is a modular pipeline of Diffusers (it has {MODULAR}), which runs through "
            "Diffusers. Install that: pip install diffusers transformers."
        )
    if CONFIG in names:
        named = read_json(path / CONFIG).get("_class_name", "one component")
        raise CheckpointError(
            f"{path} has no {INDEX}: it is {named} alone. Name the folder of the whole pipeline, "
            "which holds this one."
        )
    raise CheckpointError(
        f"{path} has no {INDEX}; it holds {', '.join(names[:8]) or 'nothing'}. Name the folder "
        "of a Diffusers pipeline."
    )


def check_index(index: dict[str, Any], where: Path) -> dict[str, Any]:
    """The content of an index, plain or modular, whose class and components are what they should be.

    Raises:
        CheckpointError: one of them is not a name, or a library and a name.
    """
    named = index.get("_class_name")
    if not (named is None or isinstance(named, str) or _is_pair(named)):
        raise CheckpointError(f"{where}: _class_name is {named!r}; a class was expected. {AGAIN}")
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) not in (2, 3):
            continue
        origin = value[2] if len(value) == 3 and isinstance(value[2], dict) else {}
        pairs = [value[:2], origin.get("type_hint") or [None, None]]
        if not is_setting(value) and not all(_is_pair(one) for one in pairs):
            raise CheckpointError(
                f"{where}: {name} is {value!r}; [library, class] was expected. {AGAIN}"
            )
    return index


def _is_pair(value: object) -> bool:
    """Whether a value is a library and a class, or ``null`` for each."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(one is None or isinstance(one, str) for one in value)
    )


def entries_of(index: Mapping[str, Any], where: Path) -> dict[str, str]:
    """Component name to class name, without components that are ``null`` in the index."""
    entries = {}
    for name, value in index.items():
        if name.startswith("_") or isinstance(value, dict) or is_setting(value):
            continue
        if not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{where} has the component {name!r}; a plain folder name was expected, because "
                "nothing outside of the checkpoint's folder is read. Do not use this checkpoint."
            )
        if not _is_pair(value):
            raise CheckpointError(
                f"{where}: {name} is {value!r}; [library, class] was expected. {AGAIN}"
            )
        if value[1] is not None:
            entries[name] = value[1]
    return entries


def is_setting(value: object) -> bool:
    """Whether a value is no component: a scalar, a list of numbers, or texts by name."""
    if isinstance(value, list | tuple):
        return all(type(one) in (int, float) for one in value)
    if isinstance(value, dict):
        return all(isinstance(one, str) for one in value.values())
    return True


def write_index(spec: PipelineSpec, folder: Path) -> None:
    """Write ``model_index.json`` for a pipeline whose tokenizers are in the folder already."""
    known = host().architectures()

    def entry(class_name: str, library: str) -> list[str]:
        architecture = known.get(class_name)
        return [library if architecture is None else architecture.library, class_name]

    index: dict[str, Any] = {"_class_name": spec.class_name, **spec.options}
    for component in spec.components.values():
        index[component.part] = entry(component.class_name, "diffusers")
    for name, place in spec.tokenizers.items():
        config = folder / place / TOKENIZER
        said = read_json(config) if config.is_file() else {}
        index[name] = entry(str(said.get("tokenizer_class", "CLIPTokenizer")), "transformers")
    for name, settings in spec.processors.items():
        kind = settings.get("image_processor_type", IMAGE_PROCESSOR)
        index[name] = entry(str(kind), "transformers")
    index["scheduler"] = entry(str(spec.scheduler["_class_name"]), "diffusers")
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def unused_of(index: Mapping[str, Any]) -> tuple[str, ...]:
    """The components of a checkpoint that no task of its pipeline class runs."""
    manifest = host().pipelines().get(class_of(index) or "")
    return () if manifest is None else manifest.unused


def class_of(index: Mapping[str, Any]) -> str | None:
    """The pipeline class that ``model_index.json`` names."""
    named = index.get("_class_name")
    class_name = named[-1] if isinstance(named, list) and named else named
    return class_name if isinstance(class_name, str) else None


def kind_of(name: str, class_name: str) -> str:
    """``"scheduler"``, ``"tokenizer"``, ``"processor"`` of pictures, or ``"component"``."""
    if name == "scheduler" or class_name.endswith("Scheduler"):
        return "scheduler"
    if _PROCESSOR.search(class_name):
        return "processor"
    return "tokenizer" if "Tokenizer" in class_name else "component"


def folder_of(path: Path, name: str, file: str) -> str:
    """The folder of a component; in early checkpoints with one component, the root.

    Raises:
        CheckpointError: the component is in neither folder.
    """
    if (path / name).is_dir():
        check_inside(path / name, path)
        return name
    if (path / file).is_file():
        return "."
    raise CheckpointError(
        f"{path / INDEX} names {name}; there is no folder {path / name}. The checkpoint is "
        f"incomplete: {AGAIN[0].lower()}{AGAIN[1:]}"
    )
