"""Code that is no package's: a file of the user's own, or one that a repository brings.

A file that the user names on this machine is theirs, and runs. What comes from elsewhere runs only with
``trust_remote_code=True`` and at a commit named in full, so that what was read is what runs.
"""

import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from perfuse.errors import InputError
from perfuse.sources.files import user_path
from perfuse.sources.hub import is_hub_id

__all__ = ["check_code", "check_files", "custom_class"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = "pipeline.py"
#: The community's pipelines, of each version of Diffusers.
_COMMUNITY = "diffusers/community-pipelines-mirror"


def check_code(
    index: Mapping[str, Any], *, model: str, revision: str | None, trusted: bool
) -> None:
    """Refuse a checkpoint that would run code of its own, unless that is trusted and pinned.

    Args:
        index: The content of its ``model_index.json``.
        model: Its folder or Hub id.
        revision: As it was asked for.
        trusted: Whether ``trust_remote_code=True`` was given.

    Raises:
        InputError: it would run code.
    """
    check_files(_code_of(index), model=model, revision=revision, trusted=trusted)


def check_files(files: list[str], *, model: str, revision: str | None, trusted: bool) -> None:
    """Refuse files of code that a model brings, unless that is trusted and pinned; as ``check_code``.

    Raises:
        InputError: there are any, and they may not run.
    """
    if not files:
        return
    what = f"Opening {model} would run code of its own: {', '.join(files)}."
    if not trusted:
        raise InputError(f"{what} Read it, and give trust_remote_code=True if you trust it.")
    _check_pinned(model, revision, what, "revision")


def _code_of(index: Mapping[str, Any]) -> list[str]:
    """The files of code that a checkpoint names."""
    from diffusers import pipelines
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    named = index.get("_class_name")
    found = [f"{named[0]}.py"] if isinstance(named, list) and named else []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2:
            continue
        library = value[0]
        known = library in LOADABLE_CLASSES or hasattr(pipelines, str(library))
        if library is not None and not known:
            found.append(f"{name}/{library}.py")
    return found


def _check_pinned(model: str, revision: str | None, what: str, name: str) -> None:
    if is_hub_id(model) and not Path(model).exists() and not _COMMIT.fullmatch(revision or ""):
        raise InputError(
            f"{what} A branch or a tag can be changed after you read it: name the commit, "
            f"{name}= and its 40 digits."
        )


def custom_class(
    custom: "str | os.PathLike[str]",
    model: object,
    revision: str | None,
    *,
    trust_remote_code: bool,
    offline: bool | None,
) -> type[Any]:
    """The pipeline class of ``custom_pipeline=``.

    Args:
        custom: A file ``….py`` or a folder with ``pipeline.py``, the user's own; the name of a file
            in the model's folder; a Hub repository with ``pipeline.py``; or the name of one of the
            community's pipelines.
        model: The model's folder or Hub id.
        revision: ``custom_revision``: the commit of a repository.
        trust_remote_code: Whether code that is not the user's own file may run.
        offline: Use only what the Hub's cache holds.

    Returns:
        The one class in the file that is a pipeline, of Diffusers or of perfuse.

    Raises:
        InputError: there is no such file; it may not run; it raised; or it has no such class, or
            several.
    """
    custom = os.fspath(custom)
    file = _local(custom)
    if file is None:
        own = user_path(str(model)) / f"{custom}.py"
        file = own if own.is_file() else _from_hub(custom, revision, offline)
        what = f"custom_pipeline={custom!r} would run {file}."
        if not trust_remote_code:
            raise InputError(f"{what} Read it, and give trust_remote_code=True if you trust it.")
        if file != own:
            repository = custom if is_hub_id(custom) else _COMMUNITY
            _check_pinned(repository, revision, what, "custom_revision")
    return _class_in(_module(file), file)


def _local(custom: str) -> Path | None:
    """The user's own file; ``None`` if none was named."""
    path = user_path(custom)
    if path.is_dir():
        path = path / _FILE
    elif path.suffix != ".py":
        return None
    if not path.is_file():
        raise InputError(
            f"custom_pipeline={custom!r} was given; there is no file {path}. Name a file of Python, or "
            f"a folder with {_FILE}."
        )
    return path


def _from_hub(custom: str, revision: str | None, offline: bool | None) -> Path:
    """The file of a repository, in the Hub's cache. It is downloaded, and not run."""
    from diffusers import __version__
    from huggingface_hub import constants, hf_hub_download

    alone = constants.HF_HUB_OFFLINE if offline is None else offline
    settings: dict[str, Any] = {"revision": revision, "local_files_only": alone}
    try:
        if is_hub_id(custom):
            return Path(hf_hub_download(custom, _FILE, **settings))
        name = f"v{__version__}/{custom}.py"
        return Path(hf_hub_download(_COMMUNITY, name, repo_type="dataset", **settings))
    except Exception as exc:  # requests, httpx, the system's own: the library has no one root
        raise InputError(
            f"custom_pipeline={custom!r} was given; it is no file, and the Hub did not give it: "
            f"{type(exc).__name__}. Name a file of Python, a folder with {_FILE}, a Hub repository or "
            "one of Diffusers' community pipelines."
        ) from exc


def _module(file: Path) -> ModuleType:
    """Run a file; files beside it can be imported by it: ``from .blocks import …``."""
    digest = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()
    name = f"perfuse_custom_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(file.parent)]
    )
    assert spec is not None, "a file of Python has a loader"
    assert spec.loader is not None, "a file of Python has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        del sys.modules[name]
        raise InputError(
            f"{file} was imported for a pipeline's class; it raised {type(exc).__name__}: "
            f"{' '.join(str(exc).split())}. Mend it, or name another file."
        ) from exc
    return module


def _class_in(module: ModuleType, file: Path) -> type[Any]:
    found = {
        one
        for one in vars(module).values()
        if inspect.isclass(one)
        and one.__module__.startswith(module.__name__)
        and any(base.__name__ == "DiffusionPipeline" for base in one.__mro__[1:])
    }
    # A class that another one of the file is derived from is no choice.
    last = [one for one in found if not any(o is not one and issubclass(o, one) for o in found)]
    if len(last) != 1:
        names = ", ".join(sorted(one.__name__ for one in last)) or "none"
        raise InputError(
            f"{file} was to have one class that derives from DiffusionPipeline; it has {names}. Leave "
            "one in it."
        )
    return last[0]
