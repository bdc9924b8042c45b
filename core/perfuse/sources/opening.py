"""Opens whatever a person names: a folder, a Hub id, an exported folder, another tool's."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from perfuse.contract.source import Source
from perfuse.plugins import host
from perfuse.shapes import CHECKPOINT
from perfuse.sources.artifact import Artifact
from perfuse.sources.manifest import is_artifact
from perfuse.sources.readers import read_folder, scheduler_config, with_scheduler

__all__ = ["SchedulerFrom", "open_model"]

#: Where a scheduler comes from: a folder, a file, a Hub id, or its config.
SchedulerFrom: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]


def open_model(
    model: str | os.PathLike[str] | Source | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    offline: bool | None = None,
    scheduler_from: SchedulerFrom | None = None,
) -> Source:
    """Open an exported folder, a local checkpoint or a Hub id; without one, the bundled ``shapes``.

    A source that is one already stays as it is; a folder that another tool exported is read where a
    plugin knows its layout; ``KIND:REST`` is opened by the plugin of that kind.

    Raises:
        CheckpointError: it is neither, or cannot be read.
        ArtifactError: an exported folder is incomplete.
    """
    scheduler = None
    if scheduler_from is not None:
        scheduler = scheduler_config(scheduler_from, offline=offline)
    source: Source | None = None
    if isinstance(model, Source):
        source = model
    elif model is not None and (kind := _kind(model)) is not None:
        source = host().source(kind, str(model).partition(":")[2])
    elif model is not None and is_artifact(Path(model)):
        source = Artifact.open(model)
    elif model is not None:
        source = read_folder(Path(model).expanduser(), scheduler=scheduler)
    if source is None:
        assert not isinstance(model, Source)
        from perfuse.sources.checkpoint import Checkpoint  # not for an export, which starts sooner

        where = CHECKPOINT if model is None else model
        found = Checkpoint.open(where, revision=revision, variant=variant, offline=offline)
        # The bundled one by its name: where it lies differs from machine to machine.
        source = found if model is not None else dataclasses.replace(found, model="shapes")
    return source if scheduler is None else with_scheduler(source, scheduler)


def _kind(model: str | os.PathLike[str]) -> str | None:
    """The kind of source that a plugin opens, where the model is written ``KIND:REST``."""
    name, colon, _ = str(model).partition(":")
    # One letter is a drive, and a folder may have any name.
    if not colon or len(name) < 2 or Path(model).exists():
        return None
    return name if name in host().sources() else None
