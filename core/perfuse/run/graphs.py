"""Graphs in the cache, apart from weights: one serves every checkpoint of a configuration."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from perfuse.contract.changes import Changes, plain_name
from perfuse.contract.component import Component, Recipe
from perfuse.contract.weights import StoredTensor, WeightMap
from perfuse.errors import ArtifactError, ExportError
from perfuse.plugins.host import host
from perfuse.progress import working
from perfuse.run.lowering import lowered, settings
from perfuse.sources.checkpoint import FromCheckpoint
from perfuse.sources.files import read_json
from perfuse.sources.manifest import sha256
from perfuse.sources.plain import from_plain, to_plain
from perfuse.sources.store import ArtifactStore

__all__ = ["Bound", "bound", "filled"]

_MAP, _RECORD = "weights.json", "main-file.json"
#: What a config says of where it comes from, and of the dtype that it was saved in.
_WHENCE = frozenset(
    ("_name_or_path", "name_or_path", "_commit_hash", "_diffusers_version", "_perfuse_version")
    + ("transformers_version", "dtype", "torch_dtype")
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """A graph without weights, with the tensors that its constants are made of."""

    #: The graph's main file.
    path: Path
    weights: WeightMap
    #: The tensors of the component's module; most of them lie in the checkpoint's mapped files. Their
    #: shapes may differ from the constants' by axes of size 1.
    tensors: Mapping[str, StoredTensor]


def bound(component: Component, format: str, store: ArtifactStore) -> Bound | None:
    """A component's graph from the cache, or made now and kept, and its weights where they lie.

    Returns:
        ``None`` where graph and weights cannot be had apart: ``exported`` gives both in one.

    Raises:
        ExportError: the graph in the cache is damaged.
        WeightsError: tensors are missing, unexpected or of another shape.
    """
    changes = component.changes
    component = component.unchanged
    key = _key(component, format)
    if key is None or component.build is None:
        return None
    try:
        folder = store.get_or_make(
            _label(component, format), key, lambda f: _make(component, format, f)
        )
    except _NotApart:
        return None
    path, weights, files = _read(folder)
    tensors: Mapping[str, StoredTensor] | None = _from_files(component.build, files)
    if tensors is None:
        tensors = component.build.tensors()
        if not weights.fits(tensors):
            return None
    if changes is not None:
        tensors = {**tensors, **dict(_changed(tensors, changes))}
    return Bound(path=path, weights=weights, tensors=tensors)


def _changed(
    tensors: Mapping[str, StoredTensor], changes: Changes
) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors that adapters change, as they are with them."""
    for name, tensor in tensors.items():
        weight = plain_name(name)
        if weight in changes.names:
            array = changes.of(weight, tensor.cast("float32").array)
            yield name, StoredTensor(dtype="float32", array=array)


class _NotApart(ExportError):
    """A graph could not be written without its weights."""


@dataclass(frozen=True, kw_only=True)
class _Files:
    """How a checkpoint stores the tensors of a graph: another one may store them otherwise."""

    #: The names of all stored tensors to their shapes.
    shapes: Mapping[str, tuple[int, ...]]
    #: The names of the module's tensors that are constants of the graph, to those of stored ones.
    names: Mapping[str, str]


def _files(build: Recipe, weights: WeightMap) -> _Files | None:
    """How the tensors of a graph are stored; ``None`` where they are not all stored as they are."""
    if not isinstance(build, FromCheckpoint):
        return None
    names = build.names()
    wanted = {constant.tensor for constant in weights.constants.values()}
    if not wanted <= names.keys() or weights.held.keys() & names.keys():
        return None
    # What the module computes from its config has the dtype of its weights: look at it each time.
    if any("float" in digest.partition(" ")[0] for digest in weights.held.values()):
        return None
    shapes = {name: shape for name, (_, shape) in build.weights.shapes.items()}
    return _Files(shapes=shapes, names={name: names[name] for name in wanted})


def _from_files(build: Recipe, files: _Files | None) -> dict[str, StoredTensor] | None:
    """The tensors of a graph from a checkpoint that stores them in the same way, without torch."""
    if files is None or not isinstance(build, FromCheckpoint):
        return None
    if {name: shape for name, (_, shape) in build.weights.shapes.items()} != files.shapes:
        return None
    stored = build.weights.arrays(set(files.names.values()))
    return {name: stored[of] for name, of in files.names.items()} if stored is not None else None


def filled(
    component: Component,
    format: str,
    store: ArtifactStore,
    folder: Path,
    *,
    done: int,
    total: int,
) -> Path | None:
    """Write a component with the graph that is in the cache; ``None`` if there is none.

    Args:
        component: What to write.
        format: In which format.
        store: The cache.
        folder: Where to write.
        done: How many components are written.
        total: How many there are.

    Raises:
        ExportError: the graph in the cache is damaged, or the folder cannot be written.
    """
    key = _key(component.unchanged, format)
    if key is None or not store.folder(_label(component, format), key).is_dir():
        return None
    found = bound(component, format, store)
    if found is None:
        return None
    with working(
        "export",
        f"Writing {component.name} with the graph in the cache",
        subject=component.name,
        done=done,
        total=total,
    ):
        return lowered(
            component, format, lambda e: e.fill(found.path, found.weights, found.tensors, folder)
        )


def _label(component: Component, format: str) -> str:
    return f"{component.name}-{format}-graph-{component.precision}"


def _key(component: Component, format: str) -> dict[str, object] | None:
    """All that a component's graph depends on; ``None`` where that is not known."""
    build, spec = component.build, component.spec
    graph = build.graph if isinstance(build, Recipe) else None
    architecture = host().architectures().get(spec.class_name)
    # What a plugin's own architecture makes of weights is its own affair.
    ours = architecture is not None and architecture.build.startswith("perfuse.")
    manifest = host().exporters().get(format)
    if graph is None or component.storage or not ours or manifest is None:
        return None
    if not host().exporter(format).apart:
        return None
    plain = to_plain(spec)
    plain["config"] = {n: value for n, value in plain["config"].items() if n not in _WHENCE}
    return {"component": plain, "graph": graph, **settings(component, format)}


def _make(component: Component, format: str, folder: Path) -> None:
    with working(
        "export",
        f"Making the graph of {component.name} for {format} ({component.precision})",
        subject=component.name,
    ):
        try:
            main, weights = lowered(component, format, lambda e: e.export_graph(component, folder))
        except ExportError as exc:  # an exporter may have another way for a model with its weights
            raise _NotApart(str(exc)) from exc
    assert component.build is not None  # it was lowered
    stored = _files(component.build, weights)
    content = {"weights": to_plain(weights), "files": to_plain(stored)}
    (folder / _MAP).write_text(json.dumps(content), encoding="utf-8")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    record = {
        "main": main.relative_to(folder).as_posix(),
        "files": {name: sha256(path) for name, path in files.items() if path.is_file()},
    }
    (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")


def _read(folder: Path) -> tuple[Path, WeightMap, _Files | None]:
    """A graph in the cache with its maps, seen to be as they were written."""
    try:
        record = read_json(folder / _RECORD, error=ExportError)
        for name, digest in record["files"].items():
            if sha256(folder / name) != digest:
                raise ValueError(f"{name} is not what was written")
        content = read_json(folder / _MAP, error=ExportError)
        weights = from_plain(WeightMap, content["weights"])
        stored = content["files"]
        files = from_plain(_Files, stored) if stored is not None else None
        return folder / record["main"], weights, files
    except (
        ExportError,
        ArtifactError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as exc:
        raise ExportError(
            f"{folder} in the cache is damaged: {exc}. Run: perfuse cache clear"
        ) from exc
