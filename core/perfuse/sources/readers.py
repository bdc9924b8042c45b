"""Folders that other tools wrote, opened by the readers of plugins.

Many have no scheduler config; ``--scheduler-from`` takes it from another model.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse.contract.source import Source
from perfuse.errors import CheckpointError, InputError
from perfuse.plugins.host import host
from perfuse.sources.artifact import Artifact
from perfuse.sources.files import user_path
from perfuse.sources.manifest import is_artifact
from perfuse.sources.model_index import INDEX, SCHEDULER, read_json

__all__ = ["read_folder", "scheduler_config", "with_scheduler"]


def read_folder(folder: Path, *, scheduler: Mapping[str, Any] | None = None) -> Source | None:
    """Open a folder with the first reader that knows its layout; ``None`` if no reader does.

    Raises:
        ArtifactError: the folder is incomplete or damaged.
        InputError: a package that the reader needs is not installed.
    """
    if not folder.is_dir():
        return None
    index = (folder / INDEX).exists()
    for name, manifest in host().readers().items():
        if index and not manifest.indexed:
            continue
        if any(next(folder.glob(pattern), None) is not None for pattern in manifest.patterns):
            return host().reader(name).read(folder, scheduler=scheduler)
    return None


def scheduler_config(
    source: str | os.PathLike[str] | Mapping[str, Any], *, offline: bool | None = None
) -> dict[str, Any]:
    """The scheduler's config of a checkpoint, an exported folder, a file or a Hub repository.

    Args:
        source: A folder, a ``scheduler_config.json``, OWNER/NAME, or the config itself.
        offline: ``True`` reads only the Hub's cache.

    Raises:
        CheckpointError: the config cannot be read, or names no scheduler class.
        InputError: there is no such folder, file or repository.
    """
    if isinstance(source, Mapping):
        return dict(source)
    path = user_path(source)
    if path.is_dir():
        if is_artifact(path):
            return dict(Artifact.open(path).spec.scheduler)
        if (path / INDEX).exists():
            from perfuse.sources.checkpoint import Checkpoint

            return dict(Checkpoint.open(path).spec.scheduler)
        files = [path / "scheduler" / SCHEDULER, path / SCHEDULER]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise InputError(
                f"A scheduler was to be taken from {path}; it has neither {INDEX} nor {SCHEDULER}. "
                "Name a checkpoint, or the file itself."
            )
        return _named(file)
    if path.is_file():
        return _named(path)
    from perfuse.sources.hub import is_hub_id, scheduler_from_hub

    if not is_hub_id(source):
        raise InputError(
            f"A scheduler was to be taken from {str(source)!r}; there is no such folder or file. "
            "Name a checkpoint's folder, a scheduler_config.json, or a Hub repository as OWNER/NAME."
        )
    return _named(scheduler_from_hub(str(source), offline))


def _named(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if not isinstance(config.get("_class_name"), str):
        raise CheckpointError(
            f"A scheduler was to be taken from {file}; it has no _class_name. Name the checkpoint's "
            "folder, or put the class of the scheduler there."
        )
    return config


def with_scheduler(source: Source, config: Mapping[str, Any]) -> Source:
    """The same source with another scheduler config, corrected as Diffusers' pipeline does.

    Raises:
        CheckpointError: perfuse cannot take the config.
        InputError: this kind of source always uses its own scheduler.
    """
    from perfuse.sources.checkpoint import corrected

    kind = host().pipelines()[source.spec.class_name]
    try:
        scheduler = corrected(config, kind)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise CheckpointError(
            f"The scheduler {config.get('_class_name')} was to be used with {source.model}; its "
            f"config cannot be used: {exc} Name another checkpoint to take it from."
        ) from exc
    return source.with_spec(dataclasses.replace(source.spec, scheduler=scheduler))
