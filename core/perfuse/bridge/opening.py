"""Pipelines that are not native: opened by Diffusers itself, and given to a backend."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from perfuse.bridge.accelerate import (
    RECORD,
    accelerate,
    check_filled,
    diffusers_pipeline,
    loaded,
)
from perfuse.bridge.code import check_code
from perfuse.bridge.modular_repository import modular_index_of, open_modular
from perfuse.contract.source import Source
from perfuse.contract.target import PRECISIONS, Placement
from perfuse.errors import CheckpointError, InputError, PerfuseError
from perfuse.run.arguments import check_safetensors
from perfuse.run.placing import torch_device
from perfuse.sources.files import user_path
from perfuse.sources.hub import file_from_hub, is_hub_id
from perfuse.sources.model_index import INDEX, read_index
from perfuse.sources.store import ArtifactStore

__all__ = [
    "accelerated",
    "class_by_name",
    "has_diffusers",
    "index_of",
    "is_accelerated",
    "open_bridged",
]

_Model = str | os.PathLike[str]


def is_accelerated(model: object) -> bool:
    """Whether a model is a folder that ``pipe.save_perfuse`` wrote."""
    return isinstance(model, str | os.PathLike) and (user_path(model) / RECORD).is_file()


def open_bridged(
    model: _Model | Source | None,
    opening: Callable[..., Any] | None = None,
    *,
    backend: str | None = None,
    precision: str | None = None,
    store: ArtifactStore | None = None,
    strict: bool = False,
    revision: str | None = None,
    offline: bool | None = None,
    trust_remote_code: bool = False,
    options: Mapping[str, str] | None = None,
    transforms: Sequence[str] = (),
    scheduler_from: object = None,
    loading: bool = True,
    **arguments: Any,
) -> Any:
    """Open a pipeline by Diffusers, and run its modules on a backend.

    Args:
        model: A checkpoint's folder, a Hub id, or a folder that ``pipe.save_perfuse`` wrote.
        opening: The ``from_pretrained`` to call: ``MyPipeline.from_pretrained``. By default that of
            the class that the model names.
        backend: As for ``accelerate``; ``"torch:cuda"`` moves the pipeline there. By default torch.
        precision: Of the backend; on torch, that of the weights.
        store: As for ``accelerate``.
        strict: As for ``accelerate``.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what the Hub's cache holds.
        trust_remote_code: Whether code in the model's own files may run. Of a Hub repository, only
            at a commit that ``revision`` names in full.
        options: As for ``accelerate``.
        transforms: As for ``accelerate``.
        scheduler_from: Refused: only native pipelines have it.
        loading: Whether a modular pipeline's components are loaded at once. Without it any checkpoint is
            opened as a modular pipeline.
        **arguments: Diffusers' own, and components: ``torch_dtype=``, ``vae=``, ``safety_checker=None`` …

    Returns:
        The pipeline of Diffusers, with the attribute ``perfuse`` that ``accelerate`` gives it.

    Raises:
        InputError: Diffusers is not installed; an argument cannot be used; or code would run.
        CheckpointError: Diffusers cannot open the model.
        BackendError: a backend is unknown, or its engine is not installed.
    """
    check_safetensors(arguments.pop("use_safetensors", None))
    if precision is not None and precision not in PRECISIONS:
        raise InputError(
            f"precision={precision!r} was given; {model} runs through Diffusers, in one of "
            f"{', '.join(PRECISIONS)} as a whole."
        )
    if scheduler_from is not None:
        raise InputError(
            f"scheduler_from was given; {model} runs through Diffusers, which takes none. Set the "
            "scheduler on the pipeline: pipe.scheduler = ...."
        )
    base = diffusers_pipeline()
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"bridged=True was given for {model if model is not None else 'the bundled model'}; "
            "Diffusers opens a checkpoint's folder or a Hub id. Name one."
        )
    path = user_path(model)
    if is_accelerated(path):
        return loaded(path, opening, backend=backend, strict=strict, **arguments)
    hub = {n: arguments[n] for n in ("cache_dir", "token") if arguments.get(n) is not None}
    finish = partial(
        accelerated,
        backend=backend,
        precision=precision,
        store=store,
        strict=strict,
        options=options,
        transforms=transforms,
    )
    place = path if path.exists() else model
    if not loading or modular_index_of(place, revision, offline, hub) is not None:
        return open_modular(
            model,
            loading=loading,
            accelerated=finish,
            revision=revision,
            offline=offline,
            hub=hub,
            trust_remote_code=trust_remote_code,
            arguments={n: value for n, value in arguments.items() if n not in hub},
        )
    index = index_of(model, revision, offline, hub)
    check_code(index, model=str(model), revision=revision, trusted=trust_remote_code)
    # Where it cannot do better, Diffusers says so at each model.
    lean = {} if find_spec("accelerate") is not None else {"low_cpu_mem_usage": False}
    asked = {
        **lean,
        **arguments,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": True if offline else arguments.get("local_files_only"),
        "use_safetensors": True,
    }
    if precision is not None and _on_torch(backend) and "torch_dtype" not in asked:
        asked["torch_dtype"] = _torch_dtype(precision)
    asked = {name: value for name, value in asked.items() if value is not None or name in index}
    if opening is None:
        named = index.get("_class_name")
        kind = base if isinstance(named, list) else class_by_name(str(named))
        opening = kind.from_pretrained
    pipe = _opened(partial(opening, place, **asked), str(model), index)
    check_filled(pipe, str(model))
    return finish(pipe)


def accelerated(pipe: Any, backend: str | None, **manner: Any) -> Any:
    """``accelerate``; a pipeline whose target is a torch device is moved there as well."""
    placement = Placement.parse("torch" if backend is None else backend, default="torch")
    if placement.default.device is not None and (device := torch_device(placement.default)):
        pipe.to(device)
    return accelerate(pipe, str(placement), **manner)


def class_by_name(name: str) -> Any:
    """Diffusers' pipeline class of a name.

    Raises:
        InputError: Diffusers is not installed.
        CheckpointError: it has no such class.
    """
    diffusers_pipeline()
    import diffusers

    found = getattr(diffusers, name, None)
    # What stands for a class that lacks a library is of the metaclass DummyObject.
    if "Pipeline" not in name or found is None or type(found).__name__ == "DummyObject":
        raise CheckpointError(
            f"A {name} was asked for; neither perfuse nor Diffusers {diffusers.__version__} has it, or "
            "a library that it needs is not installed. Update Diffusers, or give the class's own "
            "file: custom_pipeline=FILE."
        )
    return found


def has_diffusers() -> bool:
    """Whether Diffusers is installed."""
    return find_spec("diffusers") is not None


def _on_torch(backend: str | None) -> bool:
    return backend is None or backend.partition(":")[0] == "torch"


def _torch_dtype(precision: str) -> Any:
    import torch

    return getattr(torch, precision)


def index_of(
    model: _Model, revision: str | None, offline: bool | None, hub: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of ``model_index.json``, or of a modular pipeline's ``modular_model_index.json``."""
    if (modular := modular_index_of(model, revision, offline, hub)) is not None:
        return modular
    path = user_path(model)
    if not path.exists() and is_hub_id(model):
        path = file_from_hub(str(model), INDEX, revision, offline, hub)[0].parent
    return read_index(path, str(model))


def _opened(opening: Callable[[], Any], model: str, index: Mapping[str, Any]) -> Any:
    from diffusers import __version__

    try:
        return opening()
    except (PerfuseError, KeyboardInterrupt):
        raise
    except Exception as exc:  # Diffusers, transformers, the Hub: they have no one root
        said = " ".join(str(exc).split())
        by = index.get("_diffusers_version", __version__)
        other = "" if by == __version__ else f" It was written by Diffusers {by}."
        raise CheckpointError(
            f"{model} was opened by Diffusers {__version__}, which raised {type(exc).__name__}: "
            f"{said[:600]}{other}"
        ) from exc
