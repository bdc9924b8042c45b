"""Opens a model by name: a checkpoint's folder, a Hub id, an exported folder, another tool's."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from perfuse.contract.source import Source
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.shapes import BUNDLED, bundled_name
from perfuse.sources.artifact import Artifact
from perfuse.sources.files import user_path
from perfuse.sources.manifest import is_artifact
from perfuse.sources.readers import read_folder, scheduler_config, with_scheduler
from perfuse.sources.weights import is_single_file

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
    hub: Mapping[str, Any] | None = None,
    unknown_as: str | None = None,
    config: str | os.PathLike[str] | None = None,
    tokenizer_from: str | os.PathLike[str] | None = None,
    prediction_type: str | None = None,
) -> Source:
    """Open a model.

    Args:
        model: A checkpoint's folder, an exported folder, a Hub id, ``KIND:REST`` for a plugin's
            kind of source, or a ``Source``, returned as it is; or a bundled model's name,
            ``shapes`` or ``shapes-flow``. ``None`` is ``shapes``.
            Folders that other tools exported are opened by the reader that knows their layout, a
            file of weights as ``SingleFile.open`` does.
        revision: Branch, tag or commit of a Hub repository.
        variant: Weight files to prefer, e.g. ``"fp16"``.
        offline: ``True`` reads only the Hub's cache.
        scheduler_from: Where to take the scheduler from instead.
        hub: Other arguments of ``huggingface_hub``: ``cache_dir``, ``token``, ``force_download``.
        unknown_as: The class of the user's own that a checkpoint may name: it is read as one that
            has any components, and no tasks.
        config: For a single file: the checkpoint that has what the file has not.
        tokenizer_from: For a single file: the folder of its tokenizers.
        prediction_type: For a single file: what its UNet predicts.

    Raises:
        CheckpointError: the model does not exist, or cannot be read.
        ArtifactError: an exported folder is incomplete.
        InputError: a plugin's kind of source or layout needs a package that is not installed; or
            what belongs to a single file was given for another model.
    """
    scheduler = None
    if scheduler_from is not None:
        scheduler = scheduler_config(scheduler_from, offline=offline)
    source: Source | None = None
    asked: dict[str, Any] = {
        "config": config,
        "tokenizer_from": tokenizer_from,
        "prediction_type": prediction_type,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    if isinstance(model, Source) or model is None or not is_single_file(model):
        _check_unused(model, asked)
    if isinstance(model, Source):
        source = model
    elif model is not None and (kind := _kind(model)) is not None:
        source = host().source(kind, str(model).partition(":")[2])
    elif model is not None and is_single_file(model):
        from perfuse.sources.single_file import SingleFile

        source = SingleFile.open(model, revision=revision, offline=offline, hub=hub or {}, **asked)
    elif model is not None and is_artifact(user_path(model)):
        source = Artifact.open(model)
    elif model is not None:
        source = read_folder(user_path(model), scheduler=scheduler)
    if source is None:
        assert not isinstance(model, Source)
        from perfuse.sources.checkpoint import Checkpoint  # not for an export, which starts sooner

        name = bundled_name(model)
        where = model if name is None else BUNDLED[name].folder
        assert where is not None
        found = Checkpoint.open(
            where,
            revision=revision,
            variant=variant,
            offline=offline,
            hub=hub,
            unknown_as=unknown_as,
        )
        # A bundled model by its name, because its path differs between machines.
        source = found if name is None else dataclasses.replace(found, model=name)
    return source if scheduler is None else with_scheduler(source, scheduler)


def _check_unused(model: Any, asked: Mapping[str, Any]) -> None:
    if asked:
        raise InputError(
            f"{', '.join(asked)} was given; {model if model is not None else 'shapes'} is not a "
            "single file, and has its own. Leave it out."
        )


def _kind(model: str | os.PathLike[str]) -> str | None:
    """``KIND``, if the model is written ``KIND:REST`` and a plugin opens that kind."""
    name, colon, _ = str(model).partition(":")
    # One letter is a Windows drive; and an existing folder may have such a name.
    if not colon or len(name) < 2 or os.path.exists(model):
        return None
    return name if name in host().sources() else None
