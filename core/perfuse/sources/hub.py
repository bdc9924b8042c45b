"""Checkpoints from the Hub: downloads only the files needed, into ``huggingface_hub``'s cache."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from perfuse.errors import CheckpointError
from perfuse.plugins import host
from perfuse.sources.model_index import (
    CONFIG,
    INDEX,
    PROCESSOR,
    SCHEDULER,
    entries_of,
    kind_of,
    read_json,
    unused_of,
)
from perfuse.sources.weights import choose, variants

__all__ = [
    "check_variant",
    "component_from_hub",
    "file_from_hub",
    "from_hub",
    "is_hub_id",
    "names_on_hub",
    "scheduler_from_hub",
]

# Read when huggingface_hub and diffusers are imported, which happens after this module is.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

#: The HTTP library of huggingface_hub, which depends on its version.
_HTTP = ("requests", "httpx", "httpx2")


def is_hub_id(model: object) -> bool:
    """Whether a model is written OWNER/NAME."""
    return isinstance(model, str) and _HUB_ID.fullmatch(model) is not None


def check_variant(folders: Mapping[str, Iterable[str]], variant: str | None, asked: str) -> None:
    """Raise ``CheckpointError`` unless at least one component has the variant."""
    found = sorted({v for names in folders.values() for v in variants(names) if v is not None})
    if variant is not None and variant not in found:
        raise CheckpointError(
            f"Variant {variant!r} of {asked} was asked for; no component has it. Found: "
            f"{', '.join(found) or 'only plain weights'}. Ask for one of these, or for none."
        )


def _wanted(
    files: Iterable[str],
    entries: Mapping[str, str],
    unused: Collection[str],
    variant: str | None,
    held: Collection[str],
) -> list[str]:
    """The files of a repository that are needed to run it, without other formats and variants."""
    from perfuse.sources.tokenizer_files import FILES

    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        folders.setdefault(folder, []).append(name)
    wanted = []
    for name, class_name in _each(entries, folders):
        if name in unused:
            continue
        folder = name if name in folders else ""
        names, kind = folders.get(folder, []), kind_of(name, class_name)
        if kind == "component" and name in held:
            keep = {CONFIG}
        elif kind == "component":
            choice = choose(names, variant, where=name)
            index = (choice.index,) if choice.index is not None else ()
            keep = {CONFIG, *choice.files, *index}
        else:
            # A processor of texts and pictures may bring the tokenizer.
            keep = {SCHEDULER} if kind == "scheduler" else {PROCESSOR, *FILES}
        wanted += [f"{folder}/{file}".lstrip("/") for file in names if file in keep]
    return wanted


def _each(entries: Mapping[str, str], folders: Collection[str]) -> Iterable[tuple[str, str]]:
    """The entries, and the folders ``NAME_1``, … of those that hold several models."""
    known = host().architectures()
    for name, class_name in entries.items():
        yield name, class_name
        architecture = known.get(class_name)
        if architecture is not None and architecture.each:
            more = re.compile(rf"{re.escape(name)}_\d+")
            yield from ((one, architecture.each) for one in folders if more.fullmatch(one))


def from_hub(
    model: str,
    revision: str | None,
    variant: str | None,
    offline: bool | None,
    hub: Mapping[str, Any],
    *,
    held: Collection[str] = (),
    check: Callable[[Path, Mapping[str, Any]], object] | None = None,
) -> tuple[Path, str]:
    """The snapshot of a repository in the Hub's cache, downloaded if needed, and its commit.

    Of components in ``held``, whose weights are elsewhere, only the configs. ``hub`` holds further
    arguments of ``hf_hub_download``: ``cache_dir``, ``token`` … ``check`` sees ``model_index.json``, and
    may raise, before any weights are downloaded.

    Raises:
        CheckpointError: there is no such repository, revision or variant, or the Hub cannot be
            reached and the cache lacks it.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download

    asked = f"{model} at {revision}" if revision is not None else model
    reason = "it is not in the Hub's cache and this is offline"
    if not (constants.HF_HUB_OFFLINE if offline is None else offline):
        try:
            # First, because without a connection it fails at once, not after half a minute.
            api = HfApi(token=hub.get("token"))
            info = api.model_info(model, revision=revision)
            index = Path(hf_hub_download(model, INDEX, revision=revision, **hub))
            commit = index.parent.name  # the other files are taken from the same commit
            if info.sha != commit:
                info = api.model_info(model, revision=commit)
            contents = read_json(index)
            if check is not None:
                check(index, contents)
            entries = entries_of(contents, index)
            files = [file.rfilename for file in info.siblings or ()]
            check_variant(_by_component(files, entries), variant, asked)
            for file in _wanted(files, entries, unused_of(contents), variant, held):
                hf_hub_download(model, file, revision=commit, **hub)
            return index.parent, commit
        except CheckpointError:
            raise
        except Exception as exc:  # requests, httpx, the system's own: the library has no one root
            if (error := _hub_error(exc, asked)) is not None:
                raise error from exc
            reason = f"the Hub cannot be reached ({type(exc).__name__}) and its cache lacks it"
    try:
        only = {**hub, "local_files_only": True, "force_download": False}
        index = Path(hf_hub_download(model, INDEX, revision=revision, **only))
    except Exception as exc:  # as above
        raise CheckpointError(
            f"Model {asked} was asked for; there is no such folder, and {reason}. Name a folder, "
            "or run once with a connection to huggingface.co and without HF_HUB_OFFLINE."
        ) from exc
    return index.parent, index.parent.name


def component_from_hub(
    model: str,
    subfolder: str | None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    offline: bool | None = None,
    hub: Mapping[str, Any],
) -> Path:
    """The folder of one model of a repository, in the Hub's cache: its config and its weights.

    Args:
        model: OWNER/NAME.
        subfolder: The model's folder in the repository; ``None`` for the repository itself.
        revision: Branch, tag or commit.
        variant: Weights to prefer.
        offline: ``True`` reads only the cache.
        hub: Further arguments of ``hf_hub_download``.

    Raises:
        CheckpointError: the repository or the folder is not there, or cannot be reached.
        WeightsError: there are no safetensors weights.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download

    where = f"{subfolder}/" if subfolder else ""
    asked = f"{model}/{where}" if where else model
    alone = constants.HF_HUB_OFFLINE if offline is None else offline
    get = partial(hf_hub_download, model, revision=revision, local_files_only=alone, **hub)
    try:
        config = Path(get(f"{where}{CONFIG}"))
        if not alone:
            info = HfApi(token=hub.get("token")).model_info(
                model, revision=_commit_of(config, where)
            )
            names = [
                file.rfilename.removeprefix(where)
                for file in info.siblings or ()
                if file.rfilename.startswith(where)
                and "/" not in file.rfilename.removeprefix(where)
            ]
            choice = choose(names, variant, where=asked)
            for name in (*choice.files, *((choice.index,) if choice.index is not None else ())):
                get(f"{where}{name}")
        return config.parent
    except CheckpointError:
        raise
    except Exception as exc:  # requests, httpx, the system's own: the library has no one root
        if (error := _hub_error(exc, asked)) is not None:
            raise error from exc
        raise CheckpointError(
            f"{asked} was asked for; there is no such folder, it is not in the Hub's cache, and "
            f"{'this is offline' if alone else f'the Hub cannot be reached ({type(exc).__name__})'}."
            " Name a folder, or run once with a connection to huggingface.co."
        ) from exc


def _commit_of(config: Path, where: str) -> str:
    """The commit of a snapshot's file, from its path in the cache."""
    return (config.parent.parent if where else config.parent).name


def scheduler_from_hub(model: str, offline: bool | None) -> Path:
    """A repository's ``scheduler/scheduler_config.json``, in the Hub's cache."""
    from huggingface_hub import constants, hf_hub_download

    alone = constants.HF_HUB_OFFLINE if offline is None else offline
    file = f"scheduler/{SCHEDULER}"
    try:
        return Path(hf_hub_download(model, file, local_files_only=alone))
    except Exception as exc:  # requests, httpx, the system's own: the library has no one root
        raise CheckpointError(
            f"A scheduler was to be taken from {model}; there is no such folder, and the Hub gave "
            f"no {file} of it: {type(exc).__name__}. Name a folder, or a repository that has one."
        ) from exc


def file_from_hub(
    model: str,
    file: str,
    revision: str | None,
    offline: bool | None,
    hub: Mapping[str, Any],
) -> tuple[Path, str]:
    """One file of a repository, in the Hub's cache, and its commit; ``hub`` as for ``from_hub``.

    Raises:
        CheckpointError: there is no such file, or the Hub cannot be reached and the cache lacks it.
    """
    if not is_hub_id(model):
        raise CheckpointError(
            f"{file} was to be taken from {model!r}; there is no such folder. Name a folder, or a Hub "
            "repository as OWNER/NAME."
        )
    from huggingface_hub import constants, hf_hub_download

    alone = constants.HF_HUB_OFFLINE if offline is None else offline
    try:
        found = hf_hub_download(model, file, revision=revision, local_files_only=alone, **hub)
    except Exception as exc:  # requests, httpx, the system's own: the library has no one root
        reason = "it is not in the Hub's cache and this is offline" if alone else type(exc).__name__
        raise CheckpointError(
            f"The file {file} of {model} was asked for; the Hub did not give it: {reason}. Name a "
            "file on this machine, or run once with a connection to huggingface.co and without "
            "HF_HUB_OFFLINE."
        ) from exc
    path = Path(found)  # CACHE/models--OWNER--NAME/snapshots/COMMIT/FILE
    return path, path.parents[file.count("/")].name


def names_on_hub(
    model: str, revision: str | None, offline: bool | None, hub: Mapping[str, Any]
) -> tuple[str, ...]:
    """The names of a repository's files; none where the Hub is not to be asked, or does not answer."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE if offline is None else offline:
        return ()
    try:
        info = HfApi(token=hub.get("token")).model_info(model, revision=revision)
    except Exception as exc:  # requests, httpx, the system's own: the library has no one root
        if (error := _hub_error(exc, model)) is not None:
            raise error from exc
        return ()
    return tuple(file.rfilename for file in info.siblings or ())


def _by_component(files: Iterable[str], entries: Mapping[str, str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder in entries or not folder:
            folders.setdefault(folder, []).append(name)
    return folders


def _hub_error(exc: Exception, asked: str) -> CheckpointError | None:
    """The error for the Hub's answer; ``None`` if there was none, so that the cache may serve."""
    from huggingface_hub import errors

    if isinstance(exc, errors.GatedRepoError):
        return CheckpointError(
            f"Model {asked} was asked for; its owner gives access on request only. Ask for it on "
            "its page, then log in: hf auth login, or set HF_TOKEN."
        )
    if isinstance(exc, errors.RevisionNotFoundError):
        return CheckpointError(
            f"Model {asked} was asked for; the repository has no such revision. Name one of its "
            "branches, tags or commits."
        )
    if isinstance(exc, errors.RepositoryNotFoundError | errors.HFValidationError):
        return CheckpointError(
            f"Model {asked} was asked for; there is neither a folder nor a Hub repository of this "
            "name, or it is private. Check the name; for a private one log in: hf auth login, or "
            "set HF_TOKEN."
        )
    if isinstance(exc, errors.EntryNotFoundError) and not isinstance(exc, FileNotFoundError):
        return CheckpointError(
            f"Model {asked} was asked for; the repository has no {INDEX}, so it is not a Diffusers "
            "pipeline. Name another repository."
        )
    if _unreachable(exc):
        return None
    return CheckpointError(
        f"Model {asked} was asked for; downloading it failed: {type(exc).__name__}: "
        f"{' '.join(str(exc).split())}. Try again, or name a folder that has it."
    )


def _unreachable(exc: Exception) -> bool:
    """Whether there was no answer, or a server error."""
    from huggingface_hub import errors

    if isinstance(exc, errors.HfHubHTTPError):
        return exc.response is None or exc.response.status_code >= 500
    return (
        isinstance(exc, errors.LocalEntryNotFoundError | ConnectionError | TimeoutError)
        or type(exc).__module__.partition(".")[0] in _HTTP
    )
