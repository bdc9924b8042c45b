"""What a saved Core ML model says of itself: its files, its inputs, its outputs, its precision.

Of a ``.mlpackage`` the program is read, of a compiled ``.mlmodelc`` the ``metadata.json`` beside
it. Nothing is run, evaluated or loaded into an engine.
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from perfuse.errors import ArtifactError
from perfuse.manifest import inside

__all__ = ["Interface", "check_package", "read_interface"]

Tensors = Mapping[str, tuple[tuple[int, ...], str]]

_AGAIN = "Copy or export it again."
#: The values of ``ArrayFeatureType.ArrayDataType`` in FeatureTypes.proto.
_ARRAYS = {65552: "float16", 65568: "float32", 131104: "int32"}
#: ``FLOAT16`` of ``DataType`` in MIL.proto.
_FLOAT16 = 10


@dataclass(frozen=True, kw_only=True)
class Interface:
    """The inputs and outputs of a model, each with its default shape and numpy dtype."""

    inputs: Tensors
    outputs: Tensors
    #: For an input of a list of shapes, those.
    listed: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    #: What whoever made it noted in it.
    notes: Mapping[str, str] = field(default_factory=dict)
    #: What it computes in: ``"float16"`` where any operation does.
    precision: str


def check_package(package: Path) -> Path:
    """The file of a package's program, by its manifest, whose every item must be there.

    Raises:
        ArtifactError: an item is missing, or the manifest is damaged or names a file outside.
    """
    manifest = package / "Manifest.json"
    try:
        data = json.loads(manifest.read_text("utf-8"))
        items = {key: str(entry["path"]) for key, entry in data["itemInfoEntries"].items()}
        root = items[data["rootModelIdentifier"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ArtifactError(
            f"{manifest} was to be read as a Core ML package's; {type(exc).__name__}: {exc}. {_AGAIN}"
        ) from exc
    for path in items.values():
        _inside(package, f"Data/{path}")
    program = package / "Data" / root
    if not program.is_file():
        raise ArtifactError(f"{manifest} says that {program} is the program, a folder. {_AGAIN}")
    return program


def _inside(package: Path, relative: str) -> Path:
    """A file of a package, which must be there, and inside."""
    try:
        path = inside(package, relative)
    except ArtifactError as exc:
        raise ArtifactError(
            f"{package} names the file {relative!r}, which is outside of it. It was tampered with, "
            f"or is damaged. {_AGAIN}"
        ) from exc
    if not path.exists():
        raise ArtifactError(f"{package} is incomplete: {relative} is missing. {_AGAIN}")
    return path


def read_interface(model: Path) -> Interface:
    """The interface of a ``.mlpackage`` or of a ``.mlmodelc``.

    Raises:
        ArtifactError: it is incomplete, damaged, or no ML Program.
    """
    if model.suffix == ".mlmodelc":
        return _compiled(model / "metadata.json")
    program = check_package(model)
    messages = _messages()
    spec = messages.Model()
    try:
        spec.ParseFromString(program.read_bytes())
    except messages.DecodeError as exc:
        raise ArtifactError(f"{program} is not a Core ML model: {exc}. {_AGAIN}") from exc
    if not spec.HasField("mlProgram"):
        raise ArtifactError(
            f"{program} is a {spec.WhichOneof('Type')}; an ML Program was expected. Export the "
            "model again with a newer tool."
        )
    _check_weights(model, program, spec)
    given = {value.name: value.type for op in _operations(spec) for value in op.outputs}
    return Interface(
        inputs={one.name: _declared(program, one) for one in spec.description.input},
        outputs={
            one.name: _shaped(_declared(program, one), given.get(one.name))
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


def _check_weights(package: Path, program: Path, spec: Any) -> None:
    """Every weight's file is there, and reaches as far as the weight."""
    ends: dict[str, int] = {}
    for op in _operations(spec):
        values = [*op.attributes.values()]
        values += [one.value for given in op.inputs.values() for one in given.arguments]
        for value in values:
            if value.HasField("blobFileValue"):
                blob = value.blobFileValue
                ends[blob.fileName] = max(blob.offset, ends.get(blob.fileName, 0))
    beside = program.parent.relative_to(package).as_posix()
    for name, end in ends.items():
        relative = f"{beside}/{name.removeprefix('@model_path/')}"
        if _inside(package, relative).stat().st_size <= end:
            raise ArtifactError(
                f"{package} is incomplete: {relative} ends before a weight. {_AGAIN}"
            )


def _listed(feature: Any) -> Any:
    return feature.type.multiArrayType.enumeratedShapes.shapes


@lru_cache(maxsize=1)
def _messages() -> Any:
    """coremltools' protobuf classes without coremltools, whose import takes seconds and torch.

    Whichever is imported first, protobuf's pool of descriptors makes the classes the same ones.
    """
    found = importlib.util.find_spec("coremltools")
    assert found is not None and found.origin is not None  # the reader's manifest requires it
    name, folder = "perfuse_exporters.coremltools_proto", Path(found.origin).parent / "proto"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    messages: Any = importlib.import_module(f"{name}.Model_pb2")
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


def _declared(program: Path, feature: Any) -> tuple[tuple[int, ...], str]:
    array = feature.type.multiArrayType
    shapes = [array.shape, *(one.shape for one in _listed(feature))]
    sound = all(len(s) == len(shapes[0]) and all(size > 0 for size in s) for s in shapes)
    if array.dataType not in _ARRAYS or not sound:
        raise ArtifactError(
            f"{program} has {feature.name}, which is no array of float16, float32 or int32 with "
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
