"""Edits a saved Core ML package: splits it in two, and writes its metadata."""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["bisect", "sign"]

_MANIFEST = "Manifest.json"
_ROOT = Path("Data", "com.apple.CoreML", "model.mlmodel")
_DATE = "com.github.apple.coremltools.conversion_date"


def bisect(package: Path) -> list[Path]:
    """Replace a package by two that hold about half of the weights each, and run one after another.

    What crosses the cut is float32, and an output of the first and an input of the second by name;
    the order in which coremltools lists it differs from time to time.

    Returns:
        ``…_chunk1.mlpackage`` and ``…_chunk2.mlpackage``, beside it.
    """
    import coremltools as ct

    ct.utils.bisect_model(str(package), str(package.parent), check_output_correctness=False)
    shutil.rmtree(package)
    return [package.with_name(f"{package.stem}_chunk{i}.mlpackage") for i in (1, 2)]


def sign(package: Path, metadata: Mapping[str, str]) -> None:
    """Write the package's metadata, and remove the date and the random identifiers."""
    from coremltools.proto import Model_pb2

    spec: Any = Model_pb2.Model()
    spec.ParseFromString((package / _ROOT).read_bytes())
    notes = spec.description.metadata.userDefined
    notes.pop(_DATE, None)
    for name, value in metadata.items():
        notes[f"perfuse.{name}"] = value
    (package / _ROOT).write_bytes(spec.SerializeToString(deterministic=True))
    for clutter in package.glob(
        "*debug_handle_mapping.json"
    ):  # only coremltools' debugger reads it
        clutter.unlink()
    _identify(package / _MANIFEST)


def _identify(path: Path) -> None:
    """Replace the random identifiers of the package's items by ones made from their paths."""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    items = manifest["itemInfoEntries"]
    names = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])) for old, item in items.items()}
    manifest["itemInfoEntries"] = {
        new: items[old] for old, new in sorted(names.items(), key=lambda p: p[1])
    }
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    path.write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")
