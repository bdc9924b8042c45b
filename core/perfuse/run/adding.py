"""Components that a user adds to a pipeline, such as ControlNets, or puts in place of its own."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfuse.contract.component import Component
from perfuse.contract.source import Source
from perfuse.contract.spec import ComponentSpec, PipelineSpec
from perfuse.errors import CheckpointError, InputError
from perfuse.models.registry import describe, fitted, is_known, latents_of, model_class
from perfuse.plugins import host
from perfuse.sources.files import user_path
from perfuse.sources.model_index import CONFIG, read_json
from perfuse.sources.tokenizer import Tokenizer
from perfuse.tasks.choosing import pipeline_manifest

__all__ = [
    "Extended",
    "Several",
    "addable",
    "components_of",
    "exchanged",
    "extended",
    "is_one_of",
    "models_in",
    "numbered",
    "with_added",
]


def addable(spec: PipelineSpec) -> Collection[str]:
    """The names of the components that may be added to a pipeline; none if its class is the user's."""
    manifest = host().pipelines().get(spec.class_name)
    return () if manifest is None else tuple(manifest.addable)


@dataclass(frozen=True, kw_only=True)
class Several:
    """Models of one kind, as Diffusers' ``MultiControlNetModel`` and ``MultiAdapter`` hold them.

    What else is asked of it is that of the first.
    """

    nets: tuple[Any, ...]

    @property
    def adapters(self) -> tuple[Any, ...]:
        """The models, by their name in ``MultiAdapter``."""
        return self.nets

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "nets":  # while it is copied, it has none
            raise AttributeError(name)
        return getattr(self.nets[0], name)


def with_added(
    source: Source,
    given: Mapping[str, Any],
    *,
    variant: str | None = None,
    offline: bool | None = None,
) -> tuple[Source, dict[str, Any]]:
    """The source with models of the user, and what is none of these.

    Args:
        source: Any source.
        given: Components that may be added to the pipeline, as models, folders or Hub ids; folders,
            files or Hub ids for components that it has; and others, which are passed on.
        variant: Weight files to prefer in folders.
        offline: Use only what the Hub's cache holds.

    Raises:
        CheckpointError: a folder or a file cannot be read, or a model was made for another denoiser.
        InputError: a model does not fit, or the source is exported already.
    """
    names = addable(source.spec)
    own = {one.part for one in source.spec.components.values() if one.entry_of is None}
    own -= set(names)
    named = {n: one for n, one in given.items() if n in own and isinstance(one, str | os.PathLike)}
    parts = {
        n: one for n, one in given.items() if n in names and n not in named and one is not None
    }
    if named:
        source = exchanged(source, named, variant=variant, offline=offline)
    if parts:
        source = extended(source, parts, variant=variant, offline=offline)
    return source, {n: one for n, one in given.items() if n not in named and n not in parts}


def exchanged(
    source: Source,
    parts: Mapping[str, "str | os.PathLike[str]"],
    *,
    variant: str | None = None,
    offline: bool | None = None,
) -> Source:
    """The source with other models in place of its own.

    Args:
        source: A checkpoint, or another source of torch modules.
        parts: Pipeline attribute to the folder of one model or its Hub id, whose weights are read as
            the source's own are; or to a file in an original layout, which is loaded.
        variant: Weight files to prefer in folders.
        offline: Use only what the Hub's cache holds.

    Raises:
        CheckpointError: a folder or a file cannot be read.
        InputError: a model does not fit the others, or the source is exported already.
    """
    spec = source.spec
    if source.format is not None:
        raise InputError(
            f"{', '.join(parts)} was given; {source.model} is exported already, with its own. Open "
            "the checkpoint with it, and export that."
        )
    models: dict[str, Any] = dict(source.models) if isinstance(source, Extended) else {}
    components = dict(spec.components)
    for part, given in parts.items():
        former = [one for one in components.values() if one.part == part and one.entry_of is None]
        is_file = user_path(given).is_file()
        model = _loaded(former[0], given) if is_file else _folder(given, variant, offline)
        found = {one.name: one for one in _described(part, part, model)}
        if not {one.role for one in former} <= {one.role for one in found.values()}:
            (class_name, *_) = (one.class_name for one in found.values())
            raise InputError(
                f"{part}={str(given)!r} was given, a {class_name}; {source.model} has a "
                f"{former[0].class_name} there. Give one of its kind."
            )
        components = {name: one for name, one in components.items() if one not in former} | found
        models |= dict.fromkeys(found, model)
    components = fitted(components)
    latents = latents_of(components)
    if latents.channels != spec.latents.channels:
        raise InputError(
            f"{', '.join(parts)} was given for latents of {latents.channels} channels; those of "
            f"{source.model} have {spec.latents.channels}. Give one that was made for it."
        )
    spec = dataclasses.replace(spec, components=components, latents=latents)
    return _beside(source, spec, models, variant, exchanged=tuple(parts))


def _loaded(former: ComponentSpec, file: "str | os.PathLike[str]") -> Any:
    """A model of a file in its original layout, of the class of the one that it takes the place of.

    Its linear layers keep the blocks of a GGUF file.
    """
    from perfuse.models.loading import load_single_file

    kind = model_class(former.class_name)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise InputError(
            f"{former.part}={str(file)!r} was given; a {former.class_name} is read from a folder. "
            "Give that."
        )
    return load_single_file(kind, file, None, {}, kept=True)


def extended(
    source: Source,
    parts: Mapping[str, Any],
    *,
    variant: str | None = None,
    offline: bool | None = None,
) -> Source:
    """The source with further components, as the pipeline class that has them.

    Args:
        source: A checkpoint, or another source of torch modules.
        parts: Component name to a model, to its folder or Hub id, or to a list of these.
        variant: Weight files to prefer in folders.
        offline: Use only what the Hub's cache holds.

    Raises:
        CheckpointError: a folder cannot be read, or the model was made for another denoiser.
        InputError: a value is none of these, or the source is exported already.
    """
    spec = source.spec
    if parts and source.format is not None:
        raise InputError(
            f"{', '.join(parts)} was to be added to {source.model}, which is exported already. "
            "Open the checkpoint with it, and export that."
        )
    models: dict[str, Any] = dict(source.models) if isinstance(source, Extended) else {}
    for part, given in parts.items():
        former = [name for name, one in spec.components.items() if is_one_of(one.part, part)]
        kept = {name: one for name, one in spec.components.items() if name not in former}
        models = {name: model for name, model in models.items() if name not in former}
        found = _found(part, given, variant, offline)
        models |= {name: model for name, (_, model) in found.items()}
        components = fitted({**kept, **{name: one for name, (one, _) in found.items()}})
        added = [one for one, _ in found.values()]
        class_name = _class_with(pipeline_manifest(spec.class_name).addable[part], added, part)
        spec = dataclasses.replace(
            spec,
            class_name=class_name,
            tasks=tuple(pipeline_manifest(class_name).tasks),
            components=components,
            latents=latents_of(components),
        )
    return _beside(source, spec, models, variant)


def _beside(
    source: Source,
    spec: PipelineSpec,
    models: Mapping[str, Any],
    variant: str | None,
    *,
    exchanged: tuple[str, ...] = (),
) -> "Extended":
    """A source with models beside its own."""
    inner = source.inner if isinstance(source, Extended) else source
    return Extended(
        inner=inner,
        model=inner.model,
        revision=inner.revision,
        spec=spec,
        models=models,
        variant=variant,
        replaced=(*source.replaced, *exchanged),
    )


def _class_with(taken: str | Mapping[str, str], added: Sequence[ComponentSpec], part: str) -> str:
    """The pipeline class for the components that are added.

    Raises:
        InputError: they are of two kinds, which no pipeline class takes together.
    """
    if isinstance(taken, str):
        return taken
    fitting = [[taken[name] for name in taken if one.signature.input(name)] for one in added]
    names = {classes[-1] if classes else "" for classes in fitting}
    if len(names) > 1 or "" in names:
        raise InputError(
            f"{', '.join(one.class_name for one in added)} was given as {part}; the pipelines with "
            f"one are {', '.join(taken.values())}. Give models of one kind that one of these takes."
        )
    return names.pop()


def models_in(given: Any) -> list[Any]:
    """What was given as one component: one model, several in a list, or in one of their containers."""
    # Diffusers' containers of several hold them in ``nets`` or ``adapters``.
    several = getattr(given, "nets", None) or getattr(given, "adapters", None)
    each = list(several) if several is not None else given
    return list(each) if isinstance(each, list | tuple) else [each]


def numbered(part: str, i: int) -> str:
    """The name of one of several components: ``controlnet``, ``controlnet_1`` …"""
    return f"{part}_{i}" if i else part


def is_one_of(name: str, part: str) -> bool:
    """Whether ``name`` is ``part``, or one of several: ``controlnet_1``."""
    head, _, number = name.rpartition("_")
    return name == part or (head == part and number.isdigit())


def _found(
    part: str, given: Any, variant: str | None, offline: bool | None
) -> dict[str, tuple[ComponentSpec, Any]]:
    """Component name to its description, and its model or its folder."""
    each = models_in(given)
    if not each:
        raise InputError(f"{part}=[] was given; give a model, its folder or Hub id, or several.")
    found: dict[str, tuple[ComponentSpec, Any]] = {}
    for i, one in enumerate(each):
        name = numbered(part, i)
        model = _folder(one, variant, offline) if isinstance(one, str | os.PathLike) else one
        (spec,) = _described(part, name, model)
        found[name] = (spec, model)
    return found


def _folder(given: "str | os.PathLike[str]", variant: str | None, offline: bool | None) -> Path:
    from perfuse.sources.hub import component_from_hub, is_hub_id

    path = user_path(given)
    if not path.exists() and is_hub_id(given):
        return component_from_hub(str(given), None, variant=variant, offline=offline, hub={})
    if not (path / CONFIG).is_file():
        raise CheckpointError(
            f"A model in {str(given)!r} was asked for; there is no {path / CONFIG}. Name the folder "
            "of one model, or a Hub repository as OWNER/NAME."
        )
    return path


def _described(part: str, name: str, model: Any) -> tuple[ComponentSpec, ...]:
    if isinstance(model, Path):
        file = model / CONFIG
        config: Mapping[str, Any] = read_json(file)
        class_name, where = str(config.get("_class_name", "")), file
    else:
        own: Any = getattr(model, "config", None)
        class_name, where = type(model).__name__, None
        config = dict(own.to_dict() if hasattr(own, "to_dict") else own or {})
    if config and class_name and not is_known(class_name):
        raise InputError(
            f"A {class_name} was given as {part}, which perfuse does not know. Give a model of a "
            "class that it knows, its folder or Hub id; or use it in Diffusers."
        )
    if not config or not class_name:
        raise InputError(
            f"{part}={model!r} was given; a model with a config, its folder or Hub id, or a list of "
            "these was expected."
        )
    return describe(class_name, name, name, config, where=where)


def components_of(
    name: str, given: Any, *, precision: str | None = None, offline: bool | None = None
) -> tuple[Component, ...]:
    """The components of one model that belongs to no pipeline.

    Args:
        name: What it was given as.
        given: The model, its folder or Hub id.
        precision: Of weights and arithmetic; float32 by default.
        offline: Use only what the Hub's cache holds.

    Raises:
        CheckpointError: the folder cannot be read, or its class is unknown.
        InputError: the value is none of these.
    """
    model = _folder(given, None, offline) if isinstance(given, str | os.PathLike) else given
    specs = _described(name, name, model)
    return tuple(_component(spec, model, precision, {}, None) for spec in specs)


def _component(
    spec: ComponentSpec,
    model: Any,
    precision: str | None,
    static: Mapping[str, int],
    variant: str | None,
) -> Component:
    """A component of a torch module, or of a folder of weights."""
    made = Component(spec=spec, precision=precision or "float32", static=static)
    if not isinstance(model, Path):
        from perfuse.models.building import Given

        return dataclasses.replace(made, build=Given(spec=spec, module=model))
    from perfuse.sources.checkpoint import FromCheckpoint
    from perfuse.sources.weights import Weights

    weights = Weights.open(model, variant=variant, root=model)
    key = [spec.name, spec.class_name, dict(spec.config), weights.fingerprint]
    return dataclasses.replace(
        made,
        build=FromCheckpoint(spec=spec, weights=weights, precision=made.precision),
        fingerprint=hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest(),
    )


@dataclass(frozen=True, kw_only=True)
class Extended(Source):
    """A source with other components, which are the user's models or come from folders."""

    inner: Source
    model: str
    revision: str | None
    spec: PipelineSpec
    #: Component name to a torch module, or to a folder of weights.
    models: Mapping[str, Any]
    #: The variant of weights to prefer.
    variant: str | None
    replaced: tuple[str, ...] = ()

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        spec = self.spec.components.get(name)
        if spec is None or name not in self.models:
            one = self.inner.component(name, precision=precision, static=static)
            return one if spec is None else one.with_spec(spec)
        spec.check_dims(static or {})
        return _component(spec, self.models[name], precision, static or {}, self.variant)

    def tokenizer(self, name: str) -> Tokenizer:
        return self.inner.tokenizer(name)

    def files(self) -> Mapping[str, Path]:
        return self.inner.files()

    def weight_bytes(self) -> Mapping[str, int]:
        from perfuse.sources.weights import Weights

        sizes = dict(self.inner.weight_bytes())
        for name, model in self.models.items():
            sizes[name] = (
                Weights.open(model, variant=self.variant, root=model).total_bytes
                if isinstance(model, Path)
                else sum(one.numel() * one.element_size() for one in model.parameters())
            )
        return sizes

    def with_spec(self, spec: PipelineSpec) -> "Extended":
        return dataclasses.replace(self, spec=spec)
