"""The weight map of an exported component: which constant of its file is which weight.

With it, adapters can be put into an exported file when it is loaded, without torch.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from perfuse.contract.changes import Changes, plain_name
from perfuse.contract.component import Component
from perfuse.contract.weights import StoredTensor, WeightMap
from perfuse.errors import ArtifactError
from perfuse.sources.files import read_json
from perfuse.sources.plain import from_plain, to_plain

__all__ = ["changed_constants", "exported_weights", "read_map", "shapes_of", "write_map"]

_FILE = "weights.json"


def write_map(weights: WeightMap, folder: Path) -> None:
    """Write the map of a component beside its file."""
    (folder / _FILE).write_text(json.dumps(to_plain(weights)), encoding="utf-8")


def read_map(file: Path) -> WeightMap | None:
    """The map beside a component's file; ``None`` for one of another tool, or of an older perfuse.

    Raises:
        ArtifactError: it is damaged.
    """
    path = file.with_name(_FILE)
    if not path.is_file():
        return None
    try:
        again = "Export the model again."
        return from_plain(WeightMap, read_json(path, error=ArtifactError, remedy=again, once=True))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ArtifactError(
            f"{path} cannot be read as a weight map: {exc}. Export the model again."
        ) from exc


def shapes_of(weights: WeightMap) -> dict[str, tuple[int, ...]]:
    """The weights of a map by their names in the model's state dict, and their shapes."""
    return {plain_name(one.tensor): one.shape for one in weights.constants.values()}


def exported_weights(component: Component, format: str) -> dict[str, tuple[int, ...]] | None:
    """The weights of an exported component that adapters can be put into.

    Args:
        component: What was exported.
        format: What its file is.

    Returns:
        Their shapes by their names in the model's state dict; ``None`` where no weight map is beside
        its file, or it holds integers.

    Raises:
        ArtifactError: the map is damaged.
    """
    path = component.files.get(format)
    known = read_map(path) if path is not None and not component.storage else None
    return shapes_of(known) if known is not None else None


def changed_constants(
    weights: WeightMap, changes: Changes, stored: Callable[[str], StoredTensor]
) -> Iterator[tuple[str, StoredTensor]]:
    """Each constant that adapters change, as it is with them, in the layout of the checkpoint.

    Args:
        weights: What the constants are.
        changes: The adapters.
        stored: Gives a constant of the file in that layout.
    """
    for name, constant in weights.only(changes.names).constants.items():
        before = np.asarray(stored(name).cast("float32").array).reshape(constant.shape)
        after = changes.of(plain_name(constant.tensor), before)
        yield name, constant.of(StoredTensor(dtype="float32", array=after), exact=True)
