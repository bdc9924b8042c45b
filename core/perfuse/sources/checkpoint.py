"""A Diffusers checkpoint: a folder or Hub repository, read into a ``PipelineSpec``.

Nothing here loads weights, torch or an engine. Checkpoints are not trusted: pickles and code in
them are never run, and paths that lead out of their folder are refused.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from perfuse.contract.component import Component, Recipe
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.hooks import PipelineManifest
from perfuse.contract.source import Source
from perfuse.contract.spec import ComponentSpec, PipelineSpec
from perfuse.contract.target import PRECISIONS
from perfuse.contract.weights import Reader
from perfuse.errors import CheckpointError, InputError, NotNativeError
from perfuse.models.registry import describe, fitted, latents_of
from perfuse.plugins import host
from perfuse.schedulers import scheduler_from_config
from perfuse.sources.chat_template import chat_template
from perfuse.sources.files import user_path
from perfuse.sources.hub import check_variant, from_hub, is_hub_id
from perfuse.sources.left_out import LEFT_OUT
from perfuse.sources.llama_file import weights_of_llama
from perfuse.sources.model_index import (
    AGAIN,
    CONFIG,
    INDEX,
    PROCESSOR,
    SCHEDULER,
    TOKENIZER,
    class_of,
    entries_of,
    folder_of,
    is_setting,
    kind_of,
    names_in,
    read_index,
    read_json,
    unused_of,
)
from perfuse.sources.weights import Hollow, Weights, check_inside

if TYPE_CHECKING:
    import os

    from torch import nn

    from perfuse.sources.tokenizer import Tokenizer

__all__ = ["OF_THE_CONFIG", "Checkpoint", "corrected", "stored_component"]

#: What a module's graph depends on that is built from its config alone, whoever has its weights.
OF_THE_CONFIG = "of the config"


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Source):
    """A checkpoint on this machine. Open one with ``Checkpoint.open``."""

    #: The folder; for a Hub repository, the snapshot in the Hub's cache.
    path: Path
    #: The path or Hub id that the user named.
    model: str
    #: The commit of a Hub repository; ``None`` for a local folder.
    revision: str | None
    #: The variant of weights to prefer: ``"fp16"``.
    variant: str | None
    spec: PipelineSpec
    #: The content of ``model_index.json``.
    index: Mapping[str, Any]
    #: Components that no task runs: ``("safety_checker",)``.
    ignored: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        model: "str | os.PathLike[str]",
        *,
        revision: str | None = None,
        variant: str | None = None,
        offline: bool | None = None,
        hub: Mapping[str, Any] | None = None,
        unknown_as: str | None = None,
    ) -> Self:
        """Open a local folder or a Hub repository, which is downloaded if it is not in the cache.

        Args:
            model: A folder, or OWNER/NAME.
            revision: Branch, tag or commit of a Hub repository.
            variant: Weights to prefer where a component has them, for example ``"fp16"``.
            offline: ``True`` reads only the Hub's cache; by default as ``HF_HUB_OFFLINE`` says.
            hub: Other arguments of ``huggingface_hub``: ``cache_dir``, ``token``.
            unknown_as: A class that no plugin knows and that the checkpoint may name all the same.

        Raises:
            CheckpointError: the model does not exist, or cannot be read.
            NotNativeError: it is of a pipeline class that no plugin has.
            WeightsError: no component has the variant, or there are no safetensors weights.
        """
        try:
            return cls._open(model, revision, variant, offline, hub or {}, unknown_as)
        except OSError as exc:
            raise CheckpointError(
                f"Model {str(model)!r} was asked for; the system said: {exc.strerror or exc}. "
                "Name a folder that this user can read."
            ) from exc

    @classmethod
    def _open(
        cls,
        model: "str | os.PathLike[str]",
        revision: str | None,
        variant: str | None,
        offline: bool | None,
        hub: Mapping[str, Any],
        unknown_as: str | None,
    ) -> Self:
        asked, commit = str(model), None
        path = user_path(model)
        if not path.exists() and is_hub_id(model):
            check = partial(_known_class, unknown_as=unknown_as)
            path, commit = from_hub(asked, revision, variant, offline, hub, check=check)
        index = read_index(path, asked)
        entries = entries_of(index, path / INDEX)
        spec = _read_spec(path, index, entries, unknown_as)
        folders = {component.folder for component in spec.components.values()}
        check_variant({f: names_in(path / f) for f in folders}, variant, asked)
        return cls(
            path=path,
            model=asked,
            revision=commit,
            variant=variant,
            spec=spec,
            index=FrozenDict(index),
            ignored=tuple(name for name in entries if name in unused_of(index)),
        )

    def weights(self, folder: str) -> Weights:
        """The weights in a component's folder. Reads and checks headers, but no tensors.

        Raises:
            WeightsError: there are no safetensors weights, and no GGUF file in their place, or they
                are damaged.
        """
        found = weights_of_llama(self.path / folder)
        if found is not None:
            return found
        return Weights.open(self.path / folder, variant=self.variant, root=self.path)

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        """One component, for a backend to prepare.

        Args:
            name: One of ``spec.components``.
            precision: Of weights and arithmetic; float32 by default.
            static: Dimensions to fix; every other one stays symbolic.

        Raises:
            InputError: the component, the precision or a dimension is unknown.
            WeightsError: the component's weights are missing or damaged.
        """
        return stored_component(self, name, self.weights, precision, static)

    def tokenizer(self, name: str = "tokenizer") -> "Tokenizer":
        """One of the checkpoint's tokenizers.

        Raises:
            InputError: the checkpoint has no tokenizer of this name.
            CheckpointError: the tokenizer's files are missing or damaged.
        """
        from perfuse.sources.tokenizer import Tokenizer
        from perfuse.sources.tokenizer_files import FILES

        if name not in self.spec.tokenizers:
            raise InputError(
                f"Tokenizer {name!r} was asked for; {self.model} has "
                f"{', '.join(self.spec.tokenizers) or 'none'}."
            )
        folder = self.path / self.spec.tokenizers[name]
        for file in FILES:
            check_inside(folder / file, self.path)
        return Tokenizer.from_folder(folder, self.index[name][1])

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of weights by folder, from the files' headers."""
        folders = dict.fromkeys(c.folder for c in self.spec.components.values())
        return {folder: self.weights(folder).total_bytes for folder in folders}

    def with_spec(self, spec: PipelineSpec) -> "Checkpoint":
        return dataclasses.replace(self, spec=spec)

    def files(self) -> dict[str, Path]:
        """Tokenizers, image processors and scheduler."""
        from perfuse.sources.tokenizer_files import FILES

        wanted: list[tuple[str, tuple[str, ...]]]
        wanted = [(folder, FILES) for folder in self.spec.tokenizers.values()]
        wanted += [(folder_of(self.path, n, PROCESSOR), (PROCESSOR,)) for n in self.spec.processors]
        wanted.append((folder_of(self.path, "scheduler", SCHEDULER), (SCHEDULER,)))
        found = {
            (Path(folder) / name).as_posix(): self.path / folder / name
            for folder, names in wanted
            for name in names
        }
        return {name: check_inside(p, self.path) for name, p in found.items() if p.is_file()}


def stored_component(
    source: Source,
    name: str,
    weights_of: Callable[[str], Weights],
    precision: str | None,
    static: Mapping[str, int] | None,
) -> Component:
    """A component of a source, with the weights that ``weights_of(folder)`` gives.

    Raises:
        InputError: the component, the precision or a dimension is unknown.
        WeightsError: the component's weights are missing or damaged.
    """
    spec = source.spec.components.get(name)
    if spec is None:
        raise InputError(
            f"Component {name!r} was asked for; {source.model} has "
            f"{', '.join(source.spec.components)}."
        )
    precision = "float32" if precision is None else precision
    if precision not in PRECISIONS:
        raise InputError(
            f"Precision {precision!r} was asked for {name}; use one of {', '.join(PRECISIONS)}."
        )
    static = dict(static) if static is not None else {}
    unknown = [dim for dim in static if dim not in spec.signature.dims]
    if unknown:
        raise InputError(
            f"{name} has no dimension {', '.join(unknown)} to fix; it has "
            f"{', '.join(spec.signature.dims)}."
        )
    spec.check_dims(static)
    weights = weights_of(spec.folder)
    key = [spec.name, spec.class_name, dict(spec.config), weights.fingerprint]
    return Component(
        spec=spec,
        precision=precision,
        static=static,
        build=FromCheckpoint(spec=spec, weights=weights, precision=precision),
        fingerprint=hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest(),
    )


@dataclass(frozen=True, kw_only=True)
class FromCheckpoint(Recipe):
    """Builds a component's module with a checkpoint's weights."""

    spec: ComponentSpec
    weights: Weights
    #: The dtype to build in if the weights are stored in several.
    precision: str
    #: Whether to build in that dtype also if they are stored in one.
    casts: bool = False

    @property
    def graph(self) -> str:
        return OF_THE_CONFIG

    @property
    def quantized(self) -> str:
        return self.weights.quantized

    def names(self) -> dict[str, str]:
        """The names of the stored tensors that the module's are, unchanged but for their shape.

        It reads no values: a module is built over memory without content.
        """
        return self._hollow()[1]

    def hollow(self) -> "tuple[nn.Module, Reader] | None":
        module, stored = self._hollow()
        reader = self.weights.reader(stored)
        if reader is None or module.state_dict().keys() != reader.names:
            return None
        return (module, reader) if self.weights.floating(stored.values()) else None

    def _hollow(self) -> "tuple[nn.Module, dict[str, str]]":
        import torch

        from perfuse.models.building import build_component

        hollow = Hollow.like(self.weights)
        module = build_component(self.spec, hollow, torch.float32)
        places = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
        names = {n: hollow.addresses[at] for n, at in places.items() if at in hollow.addresses}
        return module, names

    def cast(self) -> "FromCheckpoint":
        return dataclasses.replace(self, casts=True)

    def in_blocks(self) -> "FromCheckpoint":
        return dataclasses.replace(self, weights=dataclasses.replace(self.weights, kept=True))

    def with_spec(self, spec: ComponentSpec) -> "FromCheckpoint":
        return dataclasses.replace(self, spec=spec)

    def __call__(self) -> "nn.Module":
        import torch

        from perfuse.models.building import build_component

        # Keep the stored dtype if there is only one: nothing is copied, unless the caller will cast.
        stored = self.weights.precision
        kept = stored in PRECISIONS and not self.casts
        dtype = getattr(torch, stored if kept and stored is not None else self.precision)
        try:
            return build_component(self.spec, self.weights, dtype)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            raise CheckpointError(
                f"{self.spec.name}, a {self.spec.class_name}, cannot be built from the config.json "
                f"in {self.weights.folder}: {exc}. {AGAIN}"
            ) from exc


def _read_spec(
    path: Path,
    index: Mapping[str, Any],
    entries: Mapping[str, str],
    unknown_as: str | None,
) -> PipelineSpec:
    pipelines = host().pipelines()
    class_name = _known_class(path / INDEX, index, unknown_as)
    kind = pipelines.get(class_name)
    if kind is None:
        kind = PipelineManifest(class_name=class_name, tasks={}, needs=())
    missing = [name for name in dict.fromkeys((*kind.needs, "scheduler")) if name not in entries]
    if missing:
        raise CheckpointError(
            f"{path / INDEX} has no {', '.join(missing)}, which a {class_name} needs; it has "
            f"{', '.join(entries) or 'no components'}. {AGAIN}"
        )
    components: dict[str, ComponentSpec] = {}
    tokenizers: dict[str, str] = {}
    processors: dict[str, dict[str, Any]] = {}
    for name, component_class in entries.items():
        what = kind_of(name, component_class)
        if name in kind.unused or what == "scheduler":
            continue
        if what == "tokenizer":
            tokenizers[name] = folder_of(path, name, TOKENIZER)
            continue
        if what == "processor":
            file = path / folder_of(path, name, PROCESSOR) / PROCESSOR
            processors[name] = read_json(check_inside(file, path))
            # A processor of texts and pictures brings the tokenizer where there is no other.
            if "tokenizer" not in entries and (file.parent / TOKENIZER).is_file():
                tokenizers[name] = file.parent.name
            continue
        specs = _read_component(path, name, component_class, class_name)
        components |= {spec.name: spec for spec in specs}
    try:
        components = fitted(components)
        latents = latents_of(components)
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc} {AGAIN}") from exc
    return PipelineSpec(
        class_name=class_name,
        tasks=tuple(kind.tasks),
        components=components,
        scheduler=_read_scheduler(path, "scheduler", entries["scheduler"], kind),
        schedulers={
            name: _read_scheduler(path, name, found, None)
            for name, found in entries.items()
            if name != "scheduler" and kind_of(name, found) == "scheduler"
        },
        latents=latents,
        tokenizers=tokenizers,
        templates={
            name: chat_template(path / folder, kind.chat)
            for name, folder in tokenizers.items()
            if kind.chat
        },
        processors=processors,
        options={
            name: value
            for name, value in index.items()
            if not name.startswith("_") and is_setting(value)
        },
    )


def _known_class(where: Path, index: Mapping[str, Any], unknown_as: str | None) -> str:
    """The pipeline class of a checkpoint.

    Raises:
        CheckpointError: it names none.
        NotNativeError: no plugin has the class, and it is not ``unknown_as``.
    """
    pipelines, class_name = host().pipelines(), class_of(index)
    if class_name is not None and (class_name == unknown_as or class_name in pipelines):
        return class_name
    if class_name is not None and class_name in LEFT_OUT:
        said = f"is {class_name}, which perfuse leaves out. {LEFT_OUT[class_name]}"
    else:
        said = (
            f"is {class_name!r}, which perfuse does not know; it knows {', '.join(pipelines)}. "
            "Name a checkpoint of one of these, or install the plugin that brings it: hook "
            "perfuse_pipelines. What Diffusers has, DiffusionPipeline runs through it where it is "
            "installed: pip install diffusers transformers."
        )
    kind = CheckpointError if class_name is None else NotNativeError
    raise kind(f"{where} says that the pipeline {said}")


def _read_component(
    path: Path, name: str, class_name: str, pipeline: str
) -> tuple[ComponentSpec, ...]:
    architecture = host().architectures().get(class_name)
    if architecture is not None and architecture.each:
        names = [name]
        while (path / f"{name}_{len(names)}").is_dir():
            names.append(f"{name}_{len(names)}")
        return tuple(
            one for n in names for one in _read_component(path, n, architecture.each, pipeline)
        )
    folder = folder_of(path, name, CONFIG)
    file = check_inside(path / folder / CONFIG, path)
    config = read_json(file)
    named = config.get("_class_name", class_name)
    if named != class_name:
        raise CheckpointError(
            f"{path / INDEX} says that {name} is a {class_name}; {file} says {named}. {AGAIN}"
        )
    try:
        return describe(class_name, name, folder, config, where=file, pipeline=pipeline)
    except CheckpointError as exc:
        raise CheckpointError(
            str(exc) if str(exc).startswith(str(file)) else f"{file}: {exc}"
        ) from exc
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise CheckpointError(
            f"{file} was read as the config of a {class_name}; reading it raised {exc!r}. {AGAIN}"
        ) from exc


def _read_scheduler(
    path: Path, name: str, class_name: str, kind: PipelineManifest | None
) -> dict[str, Any]:
    """``scheduler_config.json`` with its class, corrected as Diffusers' pipeline does."""
    folder = folder_of(path, name, SCHEDULER)
    file = check_inside(path / folder / SCHEDULER, path)
    config = {**read_json(file), "_class_name": class_name}
    known = host().schedulers()
    if class_name not in known:
        raise CheckpointError(
            f"{path / INDEX} says that the scheduler is a {class_name}, which perfuse does not "
            f"know; it knows {', '.join(known)}. Name one of these there and in {file}, or add "
            "one by a plugin: hook perfuse_schedulers."
        )
    try:
        return config if kind is None else corrected(config, kind)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise CheckpointError(
            f"{file} was read as the config of a {class_name}: {exc} {AGAIN}"
        ) from exc


def corrected(config: Mapping[str, Any], kind: PipelineManifest) -> dict[str, Any]:
    """A scheduler's config as Diffusers' pipeline corrects it.

    Raises:
        CheckpointError: the scheduler's class is unknown.
        InputError: the class cannot take the config.
    """
    # The class has the defaults of settings that the file leaves out.
    settings = scheduler_from_config(config).config
    named = {"_class_name": kind.scheduler} if kind.scheduler is not None else {}
    wrong = {n: value for n, value in kind.corrects.items() if settings.get(n, value) != value}
    return {**config, **named, **wrong}
