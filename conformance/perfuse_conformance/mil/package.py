"""Reads an ``.mlpackage``: its manifest, and the model that is its root.

The layout is that of coremltools' ModelPackage: ``Manifest.json`` names the items under ``Data``,
each by an author, a name and a path. The model is protobuf, by coremltools' own classes.
"""

import importlib
import importlib.util
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from perfuse.errors import ArtifactError, EngineMissingError, UnsupportedError
from perfuse.manifest import inside

__all__ = ["read_model"]

_DATA = "Data"
_AUTHOR = "com.apple.CoreML"
#: Core ML's versions of its file format that have ML Programs: iOS 15 to iOS 26.
_VERSIONS = range(6, 11)
_MESSAGES = "perfuse_conformance.mil.coremltools_proto"


def read_model(package: Path) -> tuple[Any, Path]:
    """The model of an ``.mlpackage``, and the folder that ``@model_path`` stands for in it.

    Returns:
        A ``CoreML.Specification.Model`` that holds an ML Program, and the folder of its file.

    Raises:
        ArtifactError: the manifest or the model is missing, damaged, or leads out of the folder.
        UnsupportedError: the model is no ML Program, or of a version that is not known.
        EngineMissingError: coremltools is not installed.
    """
    path = _root(package)
    messages = _messages()
    model = messages.Model()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, messages.DecodeError) as exc:
        raise ArtifactError(
            f"{path} was to be read as a Core ML model; {exc}. Copy or export it again."
        ) from exc
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise UnsupportedError(
            f"{path} holds a model of the kind {kind or 'none'}; ML Programs are interpreted. "
            "Convert it with convert_to='mlprogram'."
        )
    if model.specificationVersion not in _VERSIONS:
        raise UnsupportedError(
            f"{path} has version {model.specificationVersion} of Core ML's format; versions "
            f"{_VERSIONS[0]} to {_VERSIONS[-1]} are known. Export it for another deployment target."
        )
    return model, path.parent


def _root(package: Path) -> Path:
    """The file of the root model, by the manifest; every item that is named must be there."""
    path = package / "Manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = str(manifest["fileFormatVersion"])
        items = {
            str(key): (item["author"], str(item["path"]))
            for key, item in manifest["itemInfoEntries"].items()
        }
        root = str(manifest["rootModelIdentifier"])
        author, _ = items[root]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ArtifactError(
            f"{path} was to be read as the manifest of an .mlpackage; {type(exc).__name__}: {exc}. "
            "Copy or export it again."
        ) from exc
    if version.partition(".")[0] != "1" or author != _AUTHOR:
        raise ArtifactError(
            f"{path} has format version {version} and a root model by {author}; 1 and {_AUTHOR} "
            "are read. Copy or export it again."
        )
    files = {key: within(package / _DATA, item, path) for key, (_, item) in items.items()}
    missing = [str(file) for file in files.values() if not file.exists()]
    if missing:
        raise ArtifactError(
            f"{path} names {', '.join(missing)}, which is not there. Copy or export it again."
        )
    return files[root]


def within(folder: Path, relative: str, named_by: Path) -> Path:
    """The file of a relative path, which must stay inside the folder."""
    try:
        return inside(folder, relative)
    except ArtifactError:
        raise ArtifactError(
            f"{named_by} names the file {relative!r}, which is outside {folder}. It was tampered "
            "with, or is damaged; export it again."
        ) from None


@lru_cache(maxsize=1)
def _messages() -> Any:
    """coremltools' protobuf classes, without coremltools: importing that takes seconds, and prints.

    Whichever is imported first, protobuf's pool of descriptors makes the classes the same ones.
    """
    found = importlib.util.find_spec("coremltools")
    if found is None or found.origin is None:
        raise EngineMissingError(
            "A Core ML program was to be interpreted; coremltools, which has its file format, is "
            "not installed. pip install 'perfuse[coreml]'"
        )
    folder = Path(found.origin).parent / "proto"
    spec = importlib.util.spec_from_file_location(
        _MESSAGES, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_MESSAGES] = package
    spec.loader.exec_module(package)
    messages: Any = importlib.import_module(f"{_MESSAGES}.Model_pb2")
    messages.DecodeError = importlib.import_module("google.protobuf.message").DecodeError
    return messages
