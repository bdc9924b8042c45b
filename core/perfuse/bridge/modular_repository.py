"""A modular repository: ``modular_model_index.json`` says where each component comes from."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perfuse.bridge.accelerate import diffusers_pipeline
from perfuse.bridge.code import check_files
from perfuse.errors import CheckpointError, InputError
from perfuse.sources.files import user_path
from perfuse.sources.hub import file_from_hub, is_hub_id
from perfuse.sources.model_index import CONFIG, INDEX, MODULAR, check_index, read_json

__all__ = ["modular_index_of", "open_modular"]

_Model = str | os.PathLike[str]
#: Arguments of ``load_components``, and those that say where a pipeline holds its components.
_LOADING = ("torch_dtype", "variant")
_HOLDING = ("components_manager", "collection")


def modular_index_of(
    model: _Model, revision: str | None, offline: bool | None, hub: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The content of ``modular_model_index.json``; ``None`` for another model than a modular one."""
    path = user_path(model)
    if path.is_dir():
        named = path / MODULAR
        if not named.is_file() or (path / INDEX).exists():
            return None
        return check_index(read_json(named), named)
    if path.exists() or not is_hub_id(model):
        return None
    for name in (INDEX, MODULAR):
        try:
            file = file_from_hub(str(model), name, revision, offline, hub)[0]
        except CheckpointError:
            continue
        return check_index(read_json(file), file) if name == MODULAR else None
    return None


def open_modular(
    model: _Model,
    *,
    loading: bool,
    accelerated: Callable[[Any], Any],
    revision: str | None,
    offline: bool | None,
    hub: Mapping[str, Any],
    trust_remote_code: bool,
    arguments: Mapping[str, Any],
) -> Any:
    """Open a modular pipeline of Diffusers.

    Args:
        model: A folder or a Hub id.
        loading: Whether its components are loaded at once; otherwise by ``load_components``.
        accelerated: Runs the pipeline's modules on a backend; called before they are loaded, so that a
            module that the repository leaves out may be named.
        revision: Branch, tag or commit of the Hub repository.
        offline: Use only what the Hub's cache holds.
        hub: ``cache_dir`` and ``token``.
        trust_remote_code: Whether code in the repository may run; of a Hub repository, only at a commit
            that ``revision`` names in full.
        arguments: Components, and what all of them are loaded with: ``torch_dtype``, ``variant``; and
            ``components_manager`` and ``collection``, where they are held.

    Raises:
        InputError: it would run code; or an argument is neither a component nor one of loading.
        CheckpointError: Diffusers cannot open it, or a component cannot be loaded.
    """
    diffusers_pipeline()
    from diffusers import ModularPipeline, __version__

    path = user_path(model)
    files = _code(model, path, revision, offline, hub)
    check_files(files, model=str(model), revision=revision, trusted=trust_remote_code)
    where: dict[str, Any] = {**hub, **({"local_files_only": True} if offline else {})}
    try:
        pipe = ModularPipeline.from_pretrained(
            os.fspath(path) if path.is_dir() else str(model),
            trust_remote_code=trust_remote_code,
            revision=revision,
            **{name: arguments[name] for name in _HOLDING if name in arguments},
            **where,
        )
    except Exception as exc:  # Diffusers, the Hub, the repository's code: they have no one root
        raise CheckpointError(
            f"{model} was opened by Diffusers {__version__}, which raised {type(exc).__name__}: "
            f"{' '.join(str(exc).split())[:600]}"
        ) from exc
    given = {name: value for name, value in arguments.items() if name in pipe.components}
    others = [name for name in arguments if name not in given and name not in _HOLDING]
    if unknown := [name for name in others if name not in _LOADING or not loading]:
        further = (*_LOADING, *_HOLDING) if loading else _HOLDING
        raise InputError(
            f"{', '.join(unknown)} was given; {model} is a modular pipeline with the components "
            f"{', '.join(pipe.components)}. Give one of these, or {' or '.join(further)}"
            f"{'' if loading else '; load_components takes the rest'}."
        )
    pipe = accelerated(pipe)
    pipe.update_components(**given)
    if loading:
        _load(pipe, model, given, {**{name: arguments[name] for name in others}, **where})
    return pipe


def _load(pipe: Any, model: _Model, given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Load the components that were not given.

    Raises:
        CheckpointError: one cannot be loaded.
    """
    wanted = [name for name in pipe.pretrained_component_names if name in pipe.null_component_names]
    pipe.load_components(
        [name for name in wanted if name not in given],
        use_safetensors={name: True for name in wanted if _has_weights(pipe, name)},
        **settings,
    )
    missing = [name for name in pipe.null_component_names if name in wanted and name not in given]
    if missing := [name for name in missing if _source(pipe, name) is not None]:
        raise CheckpointError(
            f"{model} was opened; Diffusers could not load {', '.join(missing)} from "
            f"{', '.join(str(_source(pipe, name)) for name in missing)}, and said why above. Give "
            f"{missing[0]}=, or None to leave it out."
        )


def _has_weights(pipe: Any, name: str) -> bool:
    from torch import nn

    kind = pipe.get_component_spec(name).type_hint
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def _source(pipe: Any, name: str) -> str | None:
    """The folder or repository that a component comes from."""
    found: str | None = pipe.get_component_spec(name).pretrained_model_name_or_path
    return found


def _code(
    model: _Model,
    path: Path,
    revision: str | None,
    offline: bool | None,
    hub: Mapping[str, Any],
) -> list[str]:
    """The files of code that the repository names as its blocks."""
    file = path / CONFIG
    if not path.is_dir():
        try:
            file = file_from_hub(str(model), CONFIG, revision, offline, hub)[0]
        except CheckpointError:
            return []  # it has no blocks of its own
    named = read_json(file).get("auto_map") if file.is_file() else None
    if not isinstance(named, dict):
        return []
    elsewhere = [str(one) for one in named.values() if "--" in str(one)]
    if elsewhere:
        raise InputError(
            f"{model} would run code of another repository, {elsewhere[0]}, at no commit that could be "
            "named. Open that repository."
        )
    return sorted({f"{str(one).rpartition('.')[0].replace('.', '/')}.py" for one in named.values()})
