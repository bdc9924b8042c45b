"""Adapters in an exported file: the weights that they change are given to the engine in memory."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perfuse.backend import Component, Constant, StoredTensor, WeightMap
from perfuse.errors import ArtifactError
from perfuse.sources import changed_constants, read_map
from perfuse_onnxruntime.binding import give
from perfuse_onnxruntime.external import fields

__all__ = ["Adapted", "with_changes"]

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


class Adapted:
    """The weights of an exported file that adapters change, as they are with them."""

    def __init__(self, path: Path, component: Component) -> None:
        """Read where the weights are, and none of them.

        Args:
            path: ``model.onnx``.
            component: It has ``changes``, and its folder a weight map.

        Raises:
            ArtifactError: the file is damaged.
        """
        weights = read_map(path)
        assert component.changes is not None and weights is not None  # the host asks ``weights``
        self._path, self._weights, self._changes = path, weights, component.changes
        self.model = path.read_bytes()
        self.places = _places(self.model, path)

    def initializers(
        self, among: Collection[str] | None = None
    ) -> Iterator[tuple[str, StoredTensor]]:
        """The initializers that change, of all or of some, in the layout of the file.

        Raises:
            ArtifactError: the file does not hold what the map says.
            ExportError: a weight has numbers that the file's precision cannot hold.
        """
        wanted = self._weights.constants
        if among is not None:
            wanted = {name: one for name, one in wanted.items() if name in among}
        for name, tensor in changed_constants(
            WeightMap(constants=wanted), self._changes, self._stored
        ):
            yield name, tensor.changed(wanted[name].changes)

    def _stored(self, name: str) -> StoredTensor:
        """A weight without adapters, in the layout of the checkpoint."""
        constant = self._weights.constants[name]
        try:
            return constant.undone(_read(self._path, self.model, self.places[name], constant))
        except (KeyError, ValueError, OSError) as exc:
            raise ArtifactError(
                f"{self._path} was to be loaded with a LoRA; its weight {name} cannot be read: "
                f"{exc!r}. Export the model again."
            ) from exc


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
    adapted = Adapted(path, component)
    changed, inside = dict[str, StoredTensor](), dict[int, bytes]()
    for name, final in adapted.initializers():
        place = adapted.places[name]
        if place.file is None:
            inside[place.offset] = final.array.tobytes()
        else:
            changed[name] = final
    if changed:
        give(changed, settings)
    if not inside:
        return str(path), list(changed.values())
    whole = bytearray(adapted.model)
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
