"""Adapters in an exported Core ML package: the weights that they change, in a copy of its files.

Core ML takes weights from files alone. Needs neither torch nor coremltools.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from perfuse.backend import Component, Constant, StoredTensor, WeightMap
from perfuse.errors import ArtifactError
from perfuse.sources import ArtifactStore, changed_constants, read_map, sha256
from perfuse_exporters.coreml.mlpackage import model_file, within

__all__ = ["digest_of", "with_adapters"]


def with_adapters(component: Component, package: Path, store: ArtifactStore) -> Path:
    """The package of an exported component with its adapters, kept in the store.

    Args:
        component: Where it has ``changes`` and is a file, a weight map is beside that.
        package: Its ``.mlpackage``.
        store: Where the copy is kept, for these files and adapters.

    Returns:
        The package itself where there are no adapters, or where they are in it.

    Raises:
        ArtifactError: the package does not hold what the map says.
        ExportError: a weight has numbers that the package's precision cannot hold.
    """
    if component.changes is None or component.build is not None:
        return package
    weights, changes = read_map(package), component.changes
    assert weights is not None  # the host asks ``Backend.weights`` first
    main = model_file(package)

    def make(folder: Path) -> None:
        copy = folder / package.name
        shutil.copytree(package, copy)
        below = copy / main.parent.relative_to(package)
        for name, tensor in changed_constants(weights, changes, lambda n: _read(main, weights, n)):
            constant = weights.constants[name]
            file, offset = _place(below, name)
            with open(file, "r+b") as content:
                content.seek(offset)
                content.write(tensor.changed(constant.changes).array.data)

    key = {"package": digest_of(package), "adapters": changes.fingerprint}
    return store.get_or_make(f"{component.name}-coreml-adapters", key, make) / package.name


def digest_of(package: Path) -> str:
    """Identifies the content of a package: the SHA-256 of its files' names and digests."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(package).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _place(folder: Path, name: str) -> tuple[Path, int]:
    """The file and the offset that a constant's name is: ``FILE@OFFSET``."""
    file, _, offset = name.rpartition("@")
    return within(folder, file, folder), int(offset)


def _read(main: Path, weights: WeightMap, name: str) -> StoredTensor:
    """A constant of a package in the layout of the checkpoint."""
    constant: Constant = weights.constants[name]
    try:
        file, offset = _place(main.parent, name)
        array = np.memmap(
            file, np.dtype(constant.dtype), mode="r", offset=offset, shape=constant.final_shape
        )
    except (ValueError, TypeError, OSError) as exc:
        raise ArtifactError(
            f"{main} was to be loaded with a LoRA; its weight {name} cannot be read: {exc}. Export "
            "the model again."
        ) from exc
    return constant.undone(StoredTensor(dtype=constant.dtype, array=np.asarray(array)))
