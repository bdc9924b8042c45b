"""Reads the description of a saved Core ML model: files, inputs, outputs, precision.

Of a ``.mlpackage`` the program is read, of a compiled ``.mlmodelc`` the ``metadata.json`` beside
it. Nothing is run, evaluated or loaded into an engine.
"""

import importlib
import importlib.util
import json
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.errors import ArtifactError, EngineMissingError, UnsupportedError
from perfuse.sources import inside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "RECORD",
    "Interface",
    "model_file",
    "parts_of",
    "read_interface",
    "read_model",
    "stored_values",
    "within",
]

#: What is before a weight in a ``weight.bin``: a sentinel, the type, the size in bytes, the offset
#: of the data, the bits of padding. Source: MILBlob/Blob/StorageFormat.hpp of coremltools.
RECORD = struct.Struct("<IIQQQ32x")

Tensors = Mapping[str, tuple[tuple[int, ...], str]]

_AGAIN = "Copy or export it again."
_DATA = "Data"
_AUTHOR = "com.apple.CoreML"
#: Core ML's versions of its file format that have ML Programs: iOS 15 to iOS 26.
_VERSIONS = range(6, 11)
_MESSAGES = "perfuse_exporters.coremltools_proto"
#: The values of ``ArrayFeatureType.ArrayDataType`` in FeatureTypes.proto.
_ARRAYS = {65552: "float16", 65568: "float32", 131104: "int32"}
#: ``FLOAT16`` of ``DataType`` in MIL.proto.
_FLOAT16 = 10
_CHUNK = re.compile(r"(?P<stem>.+)(?P<mark>_chunk|Chunk)1(?P<suffix>\.mlpackage|\.mlmodelc)")


@dataclass(frozen=True, kw_only=True)
class Interface:
    """The inputs and outputs of a model, each with its default shape and numpy dtype."""

    inputs: Tensors
    outputs: Tensors
    #: For an input of a list of shapes, those.
    listed: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    #: The metadata that its author wrote into it.
    notes: Mapping[str, str] = field(default_factory=dict)
    #: What it computes in: ``"float16"`` where any operation does.
    precision: str


def parts_of(main: Path) -> list[Path]:
    """The packages of a component, in the order in which they run.

    Args:
        main: Its main file: ``model.mlpackage``, or the first of two chunks,
            ``model_chunk1.mlpackage`` (Apple's ``…_unet_chunk1.mlpackage``, ``UnetChunk1.mlmodelc``).

    Raises:
        ArtifactError: the second chunk is missing.
    """
    found = _CHUNK.fullmatch(main.name)
    if found is None:
        return [main]
    second = main.with_name(f"{found['stem']}{found['mark']}2{found['suffix']}")
    if not second.exists():
        raise ArtifactError(
            f"{main} is the first of two parts; {second.name} is not beside it. Copy or export "
            "them again, both."
        )
    return [main, second]


def read_model(package: Path) -> tuple[Any, Path]:
    """The model of an ``.mlpackage``, and the folder that ``@model_path`` refers to.

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
    data = within(package, _DATA, path)  # the folder of the items may be a link itself
    files = {key: within(data, item, path) for key, (_, item) in items.items()}
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


def read_interface(model: Path) -> Interface:
    """The interface of a ``.mlpackage`` or of a ``.mlmodelc``.

    Raises:
        ArtifactError: it is incomplete, damaged, or no ML Program.
    """
    if model.suffix == ".mlmodelc":
        return _compiled(model / "metadata.json")
    spec, folder = read_model(model)
    _check_weights(folder, spec)
    given = {value.name: value.type for op in _operations(spec) for value in op.outputs}
    return Interface(
        inputs={one.name: _declared(model, one) for one in spec.description.input},
        outputs={
            one.name: _shaped(_declared(model, one), given.get(one.name))
            for one in spec.description.output
        },
        listed={
            one.name: tuple(tuple(shape.shape) for shape in _listed(one))
            for one in spec.description.input
            if len(_listed(one)) > 1
        },
        notes=dict(spec.description.metadata.userDefined),
        precision="float16" if any(map(_in_half, _operations(spec))) else "float32",
    )


def _check_weights(folder: Path, spec: Any) -> None:
    """Every weight's file is there, and reaches as far as the weight."""
    ends: dict[str, int] = {}
    for value in _blobs(spec):
        blob = value.blobFileValue
        ends[blob.fileName] = max(blob.offset, ends.get(blob.fileName, 0))
    for name, end in ends.items():
        file = within(folder, name.removeprefix("@model_path/"), folder)
        if not file.is_file():
            raise ArtifactError(f"{file}, which holds weights, is missing. {_AGAIN}")
        if file.stat().st_size <= end:
            raise ArtifactError(f"{file} is incomplete: it ends before a weight. {_AGAIN}")


def _blobs(spec: Any) -> Iterator[Any]:
    """The values of a program that are in a file of weights."""
    for op in _operations(spec):
        values = [*op.attributes.values()]
        values += [one.value for given in op.inputs.values() for one in given.arguments]
        yield from (value for value in values if value.HasField("blobFileValue"))


def model_file(package: Path) -> Path:
    """The file of a package's program, beside which the folder of its weights is."""
    return _root(package)


def stored_values(package: Path) -> Iterator[tuple[str, int, "NDArray[np.uint8]"]]:
    """What a package has in files of weights: the file as it is named from the program's, the offset
    of the data, and the bytes, mapped."""
    import numpy as np

    spec, folder = read_model(package)
    seen = set()
    for value in _blobs(spec):
        name = value.blobFileValue.fileName.removeprefix("@model_path/")
        content = np.memmap(within(folder, name, folder), np.uint8, mode="r")
        at = value.blobFileValue.offset
        _, _, size, start, _ = RECORD.unpack(content[at : at + RECORD.size].tobytes())
        if (name, start) not in seen:
            seen.add((name, start))
            yield name, start, content[start : start + size]


def _listed(feature: Any) -> Any:
    return feature.type.multiArrayType.enumeratedShapes.shapes


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


def _operations(spec: Any) -> Iterator[Any]:
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            yield from block.operations


def _in_half(op: Any) -> bool:
    return op.type not in ("cast", "const") and any(
        value.type.tensorType.dataType == _FLOAT16 for value in op.outputs
    )


def _declared(model: Path, feature: Any) -> tuple[tuple[int, ...], str]:
    array = feature.type.multiArrayType
    shapes = [array.shape, *(one.shape for one in _listed(feature))]
    sound = all(len(s) == len(shapes[0]) and all(size > 0 for size in s) for s in shapes)
    if array.dataType not in _ARRAYS or not sound:
        raise ArtifactError(
            f"{model} has {feature.name}, which is no array of float16, float32 or int32 with "
            "sizes. It was made for something else than a diffusion pipeline."
        )
    return tuple(array.shape), _ARRAYS[array.dataType]


def _shaped(declared: tuple[tuple[int, ...], str], value: Any) -> tuple[tuple[int, ...], str]:
    """Converters leave an output's shape out; the operation that gives it has it, if it is fixed."""
    shape, dtype = declared
    if not shape and value is not None:
        sizes = tuple(dim.constant.size for dim in value.tensorType.dimensions)
        shape = sizes if all(sizes) else ()
    return shape, dtype


def _compiled(metadata: Path) -> Interface:
    try:
        (data,) = json.loads(metadata.read_text("utf-8"))
        return Interface(
            inputs=dict(map(_described, data["inputSchema"])),
            outputs=dict(map(_described, data["outputSchema"])),
            notes={str(k): str(v) for k, v in data.get("userDefinedMetadata", {}).items()},
            precision="float16" if "Float16" in data["computePrecision"] else "float32",
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ArtifactError(
            f"{metadata} was to be read as a compiled Core ML model's; {type(exc).__name__}: {exc}. "
            f"{_AGAIN}"
        ) from exc


def _described(entry: Mapping[str, str]) -> tuple[str, tuple[tuple[int, ...], str]]:
    # The shape is text, "[2, 4, 64, 64]", and is read as JSON: it was never ours to evaluate.
    shape, dtype = json.loads(entry["shape"]), entry["dataType"].lower()
    if dtype not in _ARRAYS.values() or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"{entry['name']} is {entry['dataType']} {entry['shape']}")
    return entry["name"], (tuple(shape), dtype)
