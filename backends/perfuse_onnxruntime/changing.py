"""Adapters in an exported file: the weights that they change are given to the engine in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perfuse.backend import Component, Constant, StoredTensor
from perfuse.errors import ArtifactError
from perfuse.sources import changed_constants, read_map
from perfuse_onnxruntime.external import fields

__all__ = ["with_changes"]

#: Fields of onnx.proto.
_GRAPH, _INITIALIZER = 7, 5
_NAME, _RAW, _EXTERNAL = 8, 9, 13
_TYPES = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the values of an initializer are."""

    #: The file beside the model; ``None`` for the model itself.
    file: str | None
    offset: int


def with_changes(
    path: Path, component: Component, settings: Any
) -> tuple[str | bytes, list[StoredTensor]]:
    """The model to make a session of, with a component's adapters.

    Weights in a file beside it are given to the session in their place; those in the model itself are
    written over in memory. Nothing on the disk changes.

    Args:
        path: ``model.onnx``.
        component: It has ``changes``, and its folder a weight map.
        settings: The ``onnxruntime.SessionOptions``.

    Returns:
        The model, and the tensors whose memory must last as long as the session.

    Raises:
        ArtifactError: the file does not hold what the map says.
        ExportError: a weight has numbers that the file's precision cannot hold.
    """
    from onnxruntime import OrtValue

    weights = read_map(path)
    assert component.changes is not None and weights is not None  # the host asks ``weights`` first
    model = path.read_bytes()
    places = _places(model, path)

    def stored(name: str) -> StoredTensor:
        constant = weights.constants[name]
        try:
            return constant.undone(_read(path, model, places[name], constant))
        except (KeyError, ValueError, OSError) as exc:
            raise ArtifactError(
                f"{path} was to be loaded with a LoRA; its weight {name} cannot be read: {exc!r}. "
                "Export the model again."
            ) from exc

    changed, inside = dict[str, StoredTensor](), dict[int, bytes]()
    for name, tensor in changed_constants(weights, component.changes, stored):
        final = tensor.changed(weights.constants[name].changes)
        if places[name].file is None:
            inside[places[name].offset] = final.array.tobytes()
        else:
            changed[name] = final
    values = [OrtValue.ortvalue_from_numpy(one.array) for one in changed.values()]
    if values:
        settings.add_external_initializers(list(changed), values)
    if not inside:
        return str(path), list(changed.values())
    whole = bytearray(model)
    for offset, content in inside.items():
        whole[offset : offset + len(content)] = content
    return bytes(whole), list(changed.values())


def _places(model: bytes, path: Path) -> dict[str, _Place]:
    """Where the values of each initializer are."""
    try:
        graphs = [at for field, at in fields(model, 0, len(model)) if field == _GRAPH]
        return {
            name: place
            for graph in graphs
            if isinstance(graph, slice)
            for field, at in fields(model, graph.start, graph.stop)
            if field == _INITIALIZER and isinstance(at, slice)
            for name, place in _place(model, at)
        }
    except (IndexError, ValueError) as exc:
        raise ArtifactError(
            f"{path} was to be loaded; it is not an ONNX file, or was cut short ({exc}). Export "
            "the model again."
        ) from exc


def _place(model: bytes, tensor: slice) -> Iterator[tuple[str, _Place]]:
    name, raw, entries = "", None, dict[str, str]()
    for field, at in fields(model, tensor.start, tensor.stop):
        if not isinstance(at, slice):
            continue
        if field == _NAME:
            name = model[at].decode()
        elif field == _RAW:
            raw = at.start
        elif field == _EXTERNAL:
            pair = [one for _, one in fields(model, at.start, at.stop) if isinstance(one, slice)]
            key, value = (model[one].decode() for one in pair)
            entries[key] = value
    if entries:
        yield name, _Place(file=entries["location"], offset=int(entries.get("offset", "0")))
    elif raw is not None:
        yield name, _Place(file=None, offset=raw)


def _read(path: Path, model: bytes, place: _Place, constant: Constant) -> StoredTensor:
    """The values of a constant, as the file has them."""
    dtype, count = np.dtype(_TYPES[constant.dtype]), int(np.prod(constant.final_shape))
    if place.file is None:
        array = np.frombuffer(model, dtype=dtype, count=count, offset=place.offset)
    else:
        array = np.memmap(
            path.with_name(place.file), dtype=dtype, mode="r", offset=place.offset, shape=(count,)
        )
    return StoredTensor(dtype=constant.dtype, array=array.reshape(constant.final_shape))
