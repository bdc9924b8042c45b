"""Graphs in the cache, apart from weights: one serves every checkpoint of a configuration."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from perfuse.contract.architecture import Architecture
from perfuse.contract.changes import Changes, plain_name
from perfuse.contract.component import Component, Recipe
from perfuse.contract.pieces import Windowed
from perfuse.contract.quantized import SCHEMES, quantized
from perfuse.contract.weights import StoredTensor, WeightMap
from perfuse.errors import ArtifactError, ExportError, UnwritableError
from perfuse.models.registry import find
from perfuse.plugins import missing_modules, resolve
from perfuse.plugins.host import host
from perfuse.progress import working
from perfuse.run.graph_sets import DamagedGraphError, GraphSet, graph_sets
from perfuse.run.lowering import lowered, settings, tools
from perfuse.sources.checkpoint import FromCheckpoint
from perfuse.sources.files import read_json
from perfuse.sources.fitting import Rename, check_fit
from perfuse.sources.manifest import sha256
from perfuse.sources.plain import from_plain, to_plain
from perfuse.sources.store import ArtifactStore
from perfuse.sources.unfinished import scratch_folder

__all__ = [
    "Apart",
    "Bound",
    "add_graph",
    "apart",
    "apart_formats",
    "bound",
    "filled",
    "graph_file",
    "kept_graph",
    "known_weights",
]

_MAP, _RECORD = "weights.json", "main-file.json"
#: What a config says of where it comes from, and of the dtype that it was saved in.
_WHENCE = frozenset(
    ("_name_or_path", "name_or_path", "_commit_hash", "_diffusers_version", "_perfuse_version")
    + ("transformers_version", "dtype", "torch_dtype")
)


#: Gives tensors by their names.
_Reader = Callable[[Collection[str]], Mapping[str, StoredTensor]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """A graph without weights, with the tensors that its constants are made of."""

    #: The graph's main file.
    path: Path
    weights: WeightMap
    #: The tensors of the component's module; most of them lie in the checkpoint's mapped files. Their
    #: shapes may differ from the constants' by axes of size 1. They are read some at a time, in the
    #: order of the constants.
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Apart:
    """A graph without weights, and what reads tensors for its constants."""

    #: The graph's main file.
    path: Path
    weights: WeightMap
    #: Gives tensors of the component's module by their names, as ``Reader.read`` where they lie in the
    #: checkpoint's files.
    read: _Reader


def bound(component: Component, format: str, store: ArtifactStore) -> Bound | None:
    """A component's graph from the cache, or made now and kept, and its weights where they lie.

    Returns:
        ``None`` where graph and weights cannot be had apart, or are stored in another scheme than
        the checkpoint's: ``exported`` gives both in one.

    Raises:
        ExportError: the graph in the cache is damaged.
        WeightsError: tensors are missing, unexpected or of another shape.
    """
    found = apart(component, format, store)
    if found is None:
        return None
    sizes = {one.tensor: one.size for one in found.weights.constants.values()}
    return Bound(path=found.path, weights=found.weights, tensors=Windowed(found.read, sizes))


def apart(component: Component, format: str, store: ArtifactStore) -> Apart | None:
    """As ``bound``, for who reads some of the weights at a time."""
    changes = component.changes
    component = component.unchanged
    key = _key(component, format)
    if key is None or component.build is None or component.storage:
        return None
    try:
        folder = store.get_or_make(
            _label(component, format), key, lambda f: _provide(component, format, f)
        )
    except _NotApart:
        return None
    path, weights, files = _read(folder)
    read = _from_files(component.build, weights, files)
    if read is None:
        tensors = _from_module(component)
        if not weights.fits(tensors):
            return None
        read = partial(_some, tensors)
    if changes is not None:
        read = partial(_read_changed, read, changes)
    return Apart(path=path, weights=weights, read=read)


def _some(
    tensors: Mapping[str, StoredTensor], names: Collection[str]
) -> Mapping[str, StoredTensor]:
    return {name: tensors[name] for name in names}


def _read_changed(
    read: _Reader, changes: Changes, names: Collection[str]
) -> Mapping[str, StoredTensor]:
    """Tensors as they are with adapters in them."""
    found = read(names)
    return {**found, **dict(_changed(found, changes))}


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
    """What a checkpoint calls the tensors of a graph, by the names of today (``Architecture.names``)."""

    #: The names of the module's tensors that are constants of the graph, to those in a file.
    names: Mapping[str, str]
    #: The names of the other tensors that belong to the component, such as the other half's.
    others: tuple[str, ...]


def _files(build: Recipe, weights: WeightMap) -> _Files | None:
    """How the tensors of a graph are stored; ``None`` where they are not all stored as they are."""
    if not isinstance(build, FromCheckpoint):
        return None
    current = _current(build)
    names = {name: str(current(stored)) for name, stored in build.names().items()}
    wanted = {constant.tensor for constant in weights.constants.values()}
    if not wanted <= names.keys() or weights.held.keys() & names.keys():
        return None
    # What the module computes from its config has the dtype of its weights: look at it each time.
    if any("float" in digest.partition(" ")[0] for digest in weights.held.values()):
        return None
    stored = {name for name in map(current, build.weights.shapes) if name is not None}
    read = {name: names[name] for name in sorted(wanted)}
    return _Files(names=read, others=tuple(sorted(stored - set(read.values()))))


def _current(build: FromCheckpoint) -> Rename:
    """What the tensors of a file are called in checkpoints of today."""
    found = find(build.spec.class_name, asked=build.spec.name).names
    rename: Rename = resolve(found) if found else str
    return rename


def _from_files(build: Recipe, weights: WeightMap, files: _Files | None) -> _Reader | None:
    """Reads the tensors of a graph from a checkpoint's files, without torch; ``None`` if that does.

    Raises:
        WeightsError: tensors are missing, unexpected or of another shape.
    """
    if files is None or not isinstance(build, FromCheckpoint):
        return None
    shapes = {files.names[one.tensor]: one.shape for one in weights.constants.values()}
    where, current = build.spec.folder, _current(build)
    stored = check_fit(shapes, build.weights, where, current, others=frozenset(files.others))
    found = build.weights.reader({name: stored[of] for name, of in files.names.items()})
    return found.read if found is not None else None


def _from_module(component: Component) -> Mapping[str, StoredTensor]:
    """The tensors of a component's module.

    Raises:
        ExportError: torch is not installed.
    """
    assert component.build is not None  # it has a graph
    try:
        return component.build.tensors()
    except ModuleNotFoundError as exc:
        raise ExportError(
            f"{component.name} was to run without torch, with a graph that is known; its weights are "
            f"stored in a way that needs {exc.name}, which is not installed. Run: pip install "
            "'perfuse[torch]', or save the checkpoint in float32, float16 or bfloat16."
        ) from exc


def filled(
    component: Component,
    format: str,
    store: ArtifactStore,
    folder: Path,
    *,
    done: int,
    total: int | None,
) -> Path | None:
    """Write a component with its graph; ``None`` where graph and weights cannot be had apart.

    Args:
        component: What to write.
        format: In which format.
        store: The cache, where the graph is or is kept.
        folder: Where to write.
        done: How many components are written.
        total: How many there are.

    Raises:
        ExportError: the graph in the cache is damaged, or the folder cannot be written.
    """
    integers = component.storage in SCHEMES
    plain = component
    if integers:
        build = component.recipe
        plain = dataclasses.replace(component, storage="", calibration=None, build=build)
    found = bound(plain, format, store)
    if found is None:
        return None
    tensors = quantized(_Shaped(found), component.storage, component.calibration)
    with working(
        "export",
        f"Writing {component.name} for {format}",
        subject=component.name,
        done=done,
        total=total,
    ):
        return lowered(
            component, format, lambda e: e.fill(found.path, found.weights, tensors, folder)
        )


class _Shaped(Mapping[str, StoredTensor]):
    """The tensors of a graph in the shapes that it knows them in, read when they are asked for."""

    def __init__(self, found: Bound) -> None:
        self._tensors = found.tensors
        self._shapes = {one.tensor: one.shape for one in found.weights.constants.values()}

    def __getitem__(self, name: str) -> StoredTensor:
        tensor, shape = self._tensors[name], self._shapes[name]
        if tensor.shape == shape:
            return tensor
        return StoredTensor(dtype=tensor.dtype, array=tensor.array.reshape(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _label(component: Component, format: str) -> str:
    return f"{component.name}-{format}-graph-{component.precision}"


def _key(component: Component, format: str) -> dict[str, object] | None:
    """All that a component's graph depends on; ``None`` where that is not known."""
    known = _identity(component, format)
    return {**known, "tools": tools(format)} if known is not None else None


def _identity(component: Component, format: str) -> dict[str, object] | None:
    """All that a component's graph depends on but the tools; ``None`` where that is not known."""
    build, spec = component.build, component.spec
    graph = build.graph if isinstance(build, Recipe) else None
    architecture = host().architectures().get(spec.class_name)
    # What a plugin's own architecture makes of weights is its own affair.
    if architecture is None or not architecture.build.startswith("perfuse."):
        return None
    manifest = host().exporters().get(format)
    if graph is None or component.storage or manifest is None or not manifest.apart:
        return None
    described = {
        "name": spec.name,
        "class_name": spec.class_name,
        "config": _config(component, architecture),
        "signature": to_plain(spec.signature),
        "dims": to_plain(spec.dims),
    }
    return {"component": described, "graph": graph, **settings(component, format)}


def _config(component: Component, architecture: Architecture) -> dict[str, Any]:
    """What of a config the graph depends on, the same for all that mean the same."""
    config = component.spec.config
    if not architecture.config:
        return {name: to_plain(one) for name, one in config.items() if name not in _WHENCE}
    beside = architecture.beside_graph
    if component.precision == "float32":
        beside += architecture.in_half_precision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # opening the checkpoint said what it does not know
        fields: Any = resolve(architecture.config)
        found: dict[str, Any] = fields.from_dict(config).normal()
    return {name: one for name, one in found.items() if name not in beside}


def _provide(component: Component, format: str, folder: Path) -> None:
    """Put a component's graph into an empty folder: one that is known, or one made now.

    Raises:
        ExportError: a known one is damaged, and none can be made.
    """
    identity = _identity(component, format)
    assert identity is not None  # it has a key
    damaged = None
    for known in graph_sets():
        try:
            if known.unpack(_label(component, format), identity, folder):
                return
        except DamagedGraphError as exc:
            damaged = exc
    try:
        _make(component, format, folder)
    except ExportError as exc:
        raise exc if damaged is None else ExportError(f"{damaged} {exc}") from damaged


def apart_formats() -> tuple[str, ...]:
    """The formats of which graphs without weights, of any size, can be made with what is installed."""
    known = {name: one for name, one in host().exporters().items() if one.apart and not one.fixed}
    return tuple(name for name, one in known.items() if not missing_modules(one.requires))


def kept_graph(component: Component, format: str, store: ArtifactStore) -> Path | None:
    """The folder of a component's graph in the cache, if it is there."""
    component = component.unchanged
    key = _key(component, format)
    folder = store.folder(_label(component, format), key) if key is not None else None
    return folder if folder is not None and folder.is_dir() else None


def known_weights(component: Component, format: str, store: ArtifactStore) -> WeightMap | None:
    """The weight map of a component's graph, where that is known or in the cache; makes none."""
    component = component.unchanged
    key, label = _key(component, format), _label(component, format)
    if key is None:
        return None
    files = [graph_file(component, format, known) for known in graph_sets()]
    there = store.folder(label, key).is_dir() or any(f is not None and f.is_file() for f in files)
    if not there:
        return None
    return _read(store.get_or_make(label, key, lambda f: _provide(component, format, f)))[1]


def graph_file(component: Component, format: str, known: GraphSet) -> Path | None:
    """Where a set has a component's graph, or would have it; ``None`` where that is not known."""
    identity = _identity(component.unchanged, format)
    return known.path(_label(component, format), identity) if identity is not None else None


def add_graph(component: Component, format: str, to: GraphSet, *, of: str) -> Path | None:
    """Put a component's graph into a set; ``None`` where graph and weights cannot be had apart.

    Args:
        component: What it is the graph of.
        format: In which format.
        to: The set.
        of: What the set's list calls the model.

    Raises:
        ExportError: it cannot be made or written.
    """
    identity = _identity(component.unchanged, format)
    if identity is None:
        return None
    with scratch_folder() as folder:
        try:
            _make(component.unchanged, format, folder)
        except _NotApart:
            return None
        return to.pack(_label(component, format), identity, folder, of=of)


def _make(component: Component, format: str, folder: Path) -> None:
    with working(
        "export",
        f"Making the graph of {component.name} for {format} ({component.precision})",
        subject=component.name,
    ):
        try:
            main, weights = lowered(component, format, lambda e: e.export_graph(component, folder))
        except UnwritableError:
            raise
        except ExportError as exc:  # an exporter may have another way for a model with its weights
            raise _NotApart(str(exc)) from exc
    assert component.build is not None  # it was lowered
    stored = _files(component.build, weights)
    content = {"weights": to_plain(weights), "files": to_plain(stored)}
    (folder / _MAP).write_text(json.dumps(content), encoding="utf-8")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    record = {
        "main": main.relative_to(folder).as_posix(),
        "files": {name: sha256(files[name]) for name in sorted(files) if files[name].is_file()},
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
