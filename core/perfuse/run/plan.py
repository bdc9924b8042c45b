"""The plan of a pipeline: its source's components, with those that the user replaced."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perfuse.contract.backend import Program
from perfuse.contract.component import Component, Recipe
from perfuse.contract.quantized import KEPT
from perfuse.contract.source import Source
from perfuse.contract.spec import ComponentSpec, PipelineSpec, Role
from perfuse.contract.target import Placement
from perfuse.contract.transform import Plan
from perfuse.errors import InputError
from perfuse.models.registry import corrected, describe, fitted, is_known, latents_of
from perfuse.plugins import host
from perfuse.run.placing import target_of
from perfuse.run.precisions import precision_of
from perfuse.run.transforms import Chosen, applied, find_transforms
from perfuse.sources.left_out import check_left_out
from perfuse.sources.tokenizer import Tokenizer
from perfuse.tasks.choosing import tasks_of

__all__ = ["Planned", "added", "in_blocks", "parts_of", "plan_of", "respecified", "without"]


def plan_of(
    source: Source, spec: PipelineSpec, *, precision: str | None, models: Mapping[str, Any]
) -> Plan:
    """The plan of a pipeline before any transform.

    Args:
        source: Where its components come from.
        spec: The source's description, with components replaced or removed.
        precision: The precision asked for; ``None`` for the source's default.
        models: Pipeline attribute to the model that the user set.

    Raises:
        CheckpointError: a component's weights are missing or damaged.
        InputError: the source does not have this precision.
    """

    def component(one: ComponentSpec) -> Component:
        asked, model = precision_of(one, precision), models.get(one.part)
        if model is None:
            return source.component(one.name, precision=asked).with_spec(one)
        if isinstance(model, Program):
            return Component(spec=one, precision=asked or "float32")
        from perfuse.models.building import Given

        build = Given(spec=one, module=model)
        return Component(spec=one, precision=asked or "float32", build=build)

    components = {name: component(one) for name, one in spec.components.items()}
    return Plan(spec=spec, components=components, tasks=tasks_of(spec))


def in_blocks(plan: Plan, placement: Placement, precision: str | None) -> Plan:
    """The plan with weights that come in blocks of integers left so, where their backend takes them.

    Whoever asks for a precision of a component, or for a scheme of storing it, gets that instead; but a
    model that the user opened with its blocks has them in any precision.
    """
    for one in plan.components.values():
        if one.storage or not isinstance(one.build, Recipe) or not one.build.quantized:
            continue
        if one.build.quantized != KEPT and precision_of(one.spec, precision) is not None:
            continue
        backend = host().backend(target_of(placement, plan.spec, one.name).backend)
        if KEPT in backend.storages:
            plan = plan.with_component(dataclasses.replace(one, storage=KEPT))
    return plan


#: What latents are made for is known by these, and what prompts are encoded for, also without them.
_KNOWN_WITHOUT = (Role.DENOISER, Role.LATENT_ENCODER, Role.LATENT_DECODER)


def without(spec: PipelineSpec, part: str) -> PipelineSpec:
    """The spec without a tokenizer, an image processor, or the components of an attribute."""
    kept = {name: one for name, one in spec.components.items() if one.part != part}
    tokenizers = {name: folder for name, folder in spec.tokenizers.items() if name != part}
    processors = {name: config for name, config in spec.processors.items() if name != part}
    left_out = {
        name: one
        for name, one in spec.components.items()
        if name not in kept and one.role in _KNOWN_WITHOUT
    }
    return dataclasses.replace(
        spec,
        components=kept,
        tokenizers=tokenizers,
        processors=processors,
        left_out={**spec.left_out, **left_out},
    )


def respecified(spec: PipelineSpec, part: str, model: Any) -> PipelineSpec:
    """The spec with the components of an attribute as a new model's class and config describe them.

    Raises:
        CheckpointError: the model's class cannot take its config.
        InputError: the model has other components than the one that it replaces.
    """
    class_name, fields = _described(model)
    if fields is None:
        return spec  # a program, or the user's own module with the same signature
    fields = dict(corrected(fields, part, spec.class_name))
    former = [one for one in spec.components.values() if one.part == part]
    described = describe(class_name, part, former[0].folder, fields)
    names = [one.name for one in former]
    if [one.name for one in described] != names:
        raise InputError(
            f"{part} was to be replaced by a {class_name}; {spec.class_name} needs a "
            f"{former[0].class_name} there, or another model of the components {', '.join(names)}."
        )
    components = fitted({**spec.components, **{one.name: one for one in described}})
    latents = latents_of({**spec.left_out, **components})
    return dataclasses.replace(spec, components=components, latents=latents)


def added(spec: PipelineSpec, part: str, model: Any) -> PipelineSpec:
    """The spec with the components of a model that the pipeline did not have.

    Raises:
        CheckpointError: the model's class cannot take its config.
        InputError: the model's class is unknown.
    """
    class_name, fields = _described(model)
    if fields is None:
        raise InputError(
            f"{part} was to be a {class_name}, which perfuse does not know; {spec.class_name} has "
            "no component there that it could stand in for. A plugin can add a class: hook "
            "perfuse_architectures."
        )
    fields = dict(corrected(fields, part, spec.class_name))
    described = {one.name: one for one in describe(class_name, part, part, fields)}
    return dataclasses.replace(spec, components=fitted({**spec.components, **described}))


def _described(model: Any) -> tuple[str, dict[str, Any] | None]:
    """A model's class and config; ``None`` for a class that perfuse does not know.

    Raises:
        CheckpointError: perfuse leaves the class out.
    """
    config, class_name = getattr(model, "config", None), type(model).__name__
    check_left_out(class_name, asked="The model given")
    if config is None or not is_known(class_name):
        return class_name, None
    return class_name, dict(config.to_dict() if hasattr(config, "to_dict") else config)


def parts_of(spec: PipelineSpec) -> dict[str, list[str]]:
    """Pipeline attribute to the names of its components: ``vae`` to encoder and decoder."""
    parts: dict[str, list[str]] = {}
    for component in spec.components.values():
        if component.entry_of is None:
            parts.setdefault(component.part, []).append(component.name)
    return parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned(Source):
    """A source as transforms rewrite it: with components changed and added."""

    inner: Source
    chosen: tuple[Chosen, ...]
    model: str
    spec: PipelineSpec
    revision: str | None

    @classmethod
    def of(cls, source: Source, transforms: Sequence[str]) -> Source:
        """The source as the transforms rewrite it; the source itself if there are none.

        Raises:
            InputError: a transform is unknown or does not fit.
        """
        if not transforms:
            return source
        chosen = find_transforms(transforms)
        plan = applied(
            plan_of(source, source.spec, precision=None, models={}),
            chosen,
            exported=source.transforms,
        )
        return cls(
            inner=source,
            chosen=chosen,
            model=source.model,
            spec=plan.spec,
            revision=source.revision,
        )

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        plan = plan_of(self.inner, self.inner.spec, precision=precision, models={})
        components = applied(plan, self.chosen, exported=self.inner.transforms).components
        if name not in components:
            raise InputError(f"{name} was asked for; {self.model} has {', '.join(components)}.")
        component = components[name]
        component.spec.check_dims(static or {})
        return dataclasses.replace(component, static=static or component.static)

    def tokenizer(self, name: str) -> Tokenizer:
        return self.inner.tokenizer(name)

    def files(self) -> Mapping[str, Path]:
        return self.inner.files()

    @property
    def format(self) -> str | None:
        return self.inner.format

    def weight_bytes(self) -> Mapping[str, int]:
        return self.inner.weight_bytes()
