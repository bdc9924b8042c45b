"""Loading weights into modules, memory-mapped where possible, and saving them."""

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from perfuse.errors import CheckpointError, InputError, WeightsError
from perfuse.models.config import check_types
from perfuse.sources.block_tensor import BlockTensor
from perfuse.sources.files import replacing, user_path, write_file
from perfuse.sources.fitting import Rename, check_fit, some_names
from perfuse.sources.hub import file_from_hub, is_hub_id
from perfuse.sources.layouts import DENOISERS, VAE
from perfuse.sources.model_index import read_json
from perfuse.sources.original import NONE, OriginalFile, locate
from perfuse.sources.weights import Weights, check_variant, variants

if TYPE_CHECKING:
    from perfuse.models.model import Model

__all__ = [
    "component_folder",
    "config_file",
    "load_model",
    "load_single_file",
    "load_state",
    "read_config",
    "save_config",
    "save_model",
]

_CONFIG = "config.json"
#: Where a file of a whole pipeline keeps the models that are also kept alone.
_PLACES = {**DENOISERS, "vae": VAE}
_M = TypeVar("_M", bound="Model")


def load_state(
    module: nn.Module,
    weights: Weights,
    *,
    where: str,
    rename: Rename = str,
    dtype: torch.dtype | None = None,
) -> None:
    """Load weights into a module, which may be on the meta device.

    Tensors that have the dtype already stay memory-mapped; others are cast one at a time. Blocks of
    integers stay so in linear layers.

    Args:
        module: The module. Its parameters and persistent buffers are replaced.
        weights: The weights.
        where: The component's name in an error.
        rename: Maps a tensor's name in the file to its name in the module; ``None`` drops it.
        dtype: Of floating-point tensors; by default as in the module.

    Raises:
        WeightsError: tensors are missing, unexpected or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_fit(expected, weights, where, rename)
    dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    state: dict[str, Tensor] = {}
    for old, tensor in weights.tensors():
        if (name := rename(old)) is None:
            continue
        if tensor.is_floating_point():
            tensor = tensor.to(dtype if dtype is not None else dtypes[name])
        if isinstance(tensor, BlockTensor) and not _multiplies(module, name):
            tensor = tensor.dequantized()
        state[name] = tensor.reshape(expected[name])
        del tensor  # the mapping of a tensor that was cast is no longer needed
    module.load_state_dict(state, assign=True)
    _fill_buffers(module, where)


def _multiplies(module: nn.Module, name: str) -> bool:
    """Whether a tensor is what a linear layer multiplies with."""
    layer, _, last = name.rpartition(".")
    return last == "weight" and isinstance(module.get_submodule(layer), nn.Linear)


def _fill_buffers(module: nn.Module, where: str) -> None:
    """Compute non-persistent buffers, and check that no tensor is left on the meta device."""
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta and name.endswith("position_ids"):
            parent, _, last = name.rpartition(".")
            positions = torch.arange(buffer.shape[-1], device="cpu").expand(buffer.shape)
            module.get_submodule(parent).register_buffer(last, positions, persistent=False)
    left = [n for n, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta]
    if left:
        raise WeightsError(
            f"{where} has tensors that no file holds and that perfuse cannot compute: "
            f"{some_names(left)}. Please report this, with the version of transformers."
        )


def component_folder(
    model: str | os.PathLike[str], subfolder: str | None, settings: dict[str, Any]
) -> Path:
    """The folder of one model: on this machine, or in the Hub's cache.

    Args:
        model: A folder, or OWNER/NAME.
        subfolder: The model's folder in it.
        settings: Arguments of Diffusers' ``from_pretrained``; those on where files come from are
            taken out.

    Raises:
        CheckpointError: there is no such repository, or it cannot be reached.
        InputError: pickles were asked for.
    """
    from perfuse.sources.hub import component_from_hub, is_hub_id

    names = ("cache_dir", "token", "force_download")
    hub = {name: settings.pop(name) for name in names if settings.get(name) is not None}
    revision, alone = settings.pop("revision", None), settings.pop("local_files_only", None)
    for name in ("cache_dir", "token", "force_download", "low_cpu_mem_usage", "proxies"):
        settings.pop(name, None)
    if settings.pop("use_safetensors", None) is False:
        raise InputError(
            "use_safetensors=False was given; perfuse reads safetensors alone, because a pickle can "
            "run any code. Convert the model: save_pretrained in Diffusers writes safetensors."
        )
    path = user_path(model)
    if not path.exists() and is_hub_id(os.fspath(model)):
        return component_from_hub(
            os.fspath(model),
            subfolder,
            revision=revision,
            variant=settings.get("variant"),
            offline=alone or None,
            hub=hub,
        )
    return path / subfolder if subfolder is not None else path


def load_model(
    cls: type[_M], path: Path, *, variant: str | None = None, dtype: torch.dtype | None = None
) -> _M:
    """A model from the folder with its ``config.json`` and safetensors weights.

    Raises:
        CheckpointError: the folder or its config cannot be read, or is of another class.
        WeightsError: tensors are missing, unexpected, misshapen or damaged.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{cls.__name__} was to be loaded from {path}, which is "
            f"{'a file' if path.exists() else 'not there'}. Name the folder with its {_CONFIG}."
        )
    config = read_json(path / _CONFIG)
    named = config.get("_class_name", cls.__name__)
    if named != cls.__name__:
        raise CheckpointError(
            f"{cls.__name__} was to be loaded from {path}; its {_CONFIG} is of a {named}. Name "
            "the folder of another component, or use the other class."
        )
    check_types(cls.config_class, config, where=path / _CONFIG)
    weights = Weights.open(path, variant=variant)
    if variant is not None and weights.variant != variant:
        others = [v or "plain" for v in variants(file.name for file in path.iterdir())]
        raise WeightsError(
            f"Variant {variant!r} was asked for; {path} has: {', '.join(others)}. Ask for one of "
            "these, or for none."
        )
    try:
        with torch.device("meta"):
            model = cls.from_config(config)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise CheckpointError(
            f"A {cls.__name__} cannot be built from {path / _CONFIG}: {exc}. Take the file from "
            "the checkpoint again."
        ) from exc
    load_state(model, weights, where=path.name, rename=cls.rename, dtype=dtype)
    return model.eval()


def config_file(
    model: str | os.PathLike[str],
    subfolder: str | None,
    offline: bool | None,
    hub: Mapping[str, Any] = NONE,
) -> Path:
    """The ``config.json`` of a model in a folder or a Hub repository.

    Raises:
        CheckpointError: the Hub does not give it.
    """
    name = f"{subfolder}/{_CONFIG}" if subfolder is not None else _CONFIG
    path = user_path(model)
    if path.exists() or not is_hub_id(model):
        return path / name
    return file_from_hub(str(model), name, None, offline, hub)[0]


def load_single_file(
    cls: type[_M],
    file: str | os.PathLike[str],
    place: Path | None,
    fields: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    kept: bool = False,
    ema: bool = False,
    revision: str | None = None,
    offline: bool | None = None,
    hub: Mapping[str, Any] = NONE,
) -> _M:
    """A model from a file in its original layout; ``place`` is its ``config.json``, if given.

    Its linear layers keep the blocks of a GGUF file where ``kept`` says so.

    Raises:
        CheckpointError: the file does not hold such a model, or its config cannot be read.
        WeightsError: the file is a pickle or damaged, or tensors are missing.
    """
    path, _ = locate(file, revision=revision, offline=offline, hub=hub)
    stored = OriginalFile.open(path)
    found = {n: stored.part(n, p, ema=ema and n == "unet") for n, p in _PLACES.items()}
    part = next((p for p in found.values() if p and p.class_name == cls.__name__), None)
    if part is None:
        held = ", ".join(p.class_name for p in found.values() if p is not None)
        raise CheckpointError(
            f"{cls.__name__} was to be loaded from {path}, which has "
            f"{held or 'no model in a layout that perfuse knows'}. Name another file."
        )
    config = {**(read_json(place) if place is not None else part.config), **fields}
    check_types(cls.config_class, config, where=place or path)
    with torch.device("meta"):
        model = cls.from_config(config)
    weights = dataclasses.replace(part.weights, kept=kept)
    load_state(model, weights, where=cls.__name__, dtype=dtype)
    return model.eval()


def save_model(model: "Model", folder: Path, *, variant: str | None = None) -> None:
    """Write ``config.json`` and the weights; each file appears only when it is complete.

    Raises:
        CheckpointError: the folder cannot be written.
        InputError: the variant is no word that a file name can have.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    check_variant(variant)
    state = {
        name: tensor.dequantized() if isinstance(tensor, BlockTensor) else tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }
    _make_folder(model, folder)
    stem, _, ending = model.weights_name.rpartition(".")
    name = model.weights_name if variant is None else f"{stem}.{variant}.{ending}"
    with replacing(folder / name, error=CheckpointError) as partial:
        try:
            save_file(state, partial, metadata={"format": "pt"})
        except SafetensorError as exc:  # the disk is full
            raise OSError(str(exc)) from exc
    save_config(model, folder)


def save_config(model: "Model", folder: Path) -> None:
    """Write ``config.json`` alone.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    _make_folder(model, folder)
    config = {**model.config.to_dict(), "_perfuse_version": _version()}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_file(folder / _CONFIG, text, error=CheckpointError)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a component's ``config.json``.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    return dict(read_json(folder / _CONFIG))


def _make_folder(model: "Model", folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CheckpointError(
            f"{type(model).__name__} was to be saved to {folder}; the system said: "
            f"{exc.strerror or exc}. Free space or choose another folder."
        ) from exc


def _version() -> str:
    try:
        return importlib.metadata.version("perfuse")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from its sources, without having been installed
