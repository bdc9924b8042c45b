"""A pipeline's source made of objects in memory, as ``Pipeline(unet=…, scheduler=…)`` gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from perfuse.contract.component import Component
from perfuse.contract.source import Source
from perfuse.contract.spec import PipelineSpec
from perfuse.errors import InputError
from perfuse.models.registry import describe, fitted, is_known, latents_of
from perfuse.run.adding import models_in, numbered
from perfuse.run.classes import family_of
from perfuse.run.safety import is_processor, processor_config
from perfuse.sources.tokenizer import Tokenizer
from perfuse.sources.tokenizer_face import PromptTokenizer, as_ours

__all__ = ["Assembled"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Assembled(Source):
    """Models, tokenizers and a scheduler that the user made or loaded."""

    model: str
    spec: PipelineSpec
    #: Every object by attribute, ``None`` for a part that the pipeline is without.
    modules: Mapping[str, Any]
    revision: str | None = None

    @classmethod
    def of(cls, class_name: str, tasks: tuple[str, ...], modules: Mapping[str, Any]) -> Self:
        """The source of a pipeline class with these objects.

        Raises:
            CheckpointError: a model's class cannot take its config.
        """
        modules = _apart(modules)
        specs = [
            spec
            for name, module in modules.items()
            if (kind := _class_of(module)) is not None
            for spec in describe(kind, name, name, _config(module), pipeline=class_name)
        ]
        components = fitted({spec.name: spec for spec in specs})
        schedulers = {
            name: {**one.config, "_class_name": type(one).__name__}
            for name, one in modules.items()
            if _is_scheduler(one)
        }
        spec = PipelineSpec(
            class_name=class_name,
            tasks=tasks,
            components=components,
            scheduler=schedulers.pop("scheduler", {}),
            schedulers=schedulers,
            latents=latents_of(components),
            tokenizers={name: name for name, one in modules.items() if _is_tokenizer(one)},
            processors={
                name: processor_config(one) for name, one in modules.items() if is_processor(one)
            },
        )
        return cls(model=f"a {family_of(class_name)} in memory", spec=spec, modules=modules)

    @property
    def models(self) -> dict[str, Any]:
        """The objects that are models of a known class."""
        return {n: one for n, one in self.modules.items() if _class_of(one) is not None}

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The objects that are tokenizers."""
        return {
            n: one.ours if isinstance(one, PromptTokenizer) else one
            for n, one in self.modules.items()
            if _is_tokenizer(one)
        }

    @property
    def others(self) -> dict[str, Any]:
        """The objects that are neither, without the scheduler."""
        spec = self.spec
        known = {*self.models, *self.tokenizers, *spec.processors, *spec.schedulers, "scheduler"}
        return {n: one for n, one in self.modules.items() if n not in known}

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        from perfuse.models.building import Given

        spec = self.spec.components.get(name)
        if spec is None:
            raise InputError(
                f"Component {name!r} was asked for; this pipeline was made of "
                f"{', '.join(self.modules) or 'nothing'}."
            )
        return Component(
            spec=spec,
            precision=precision or "float32",
            static=static or {},
            build=Given(spec=spec, module=self.modules[spec.part]),
        )

    def tokenizer(self, name: str) -> Tokenizer:
        if name not in self.spec.tokenizers:
            raise InputError(f"Tokenizer {name!r} was asked for; this pipeline was made without.")
        return as_ours(self.modules[name])


def _apart(modules: Mapping[str, Any]) -> dict[str, Any]:
    """The objects, of several models under one name each: ``controlnet``, ``controlnet_1`` …"""
    found: dict[str, Any] = {}
    for name, one in modules.items():
        each = models_in(one)
        several = bool(each) and all(_class_of(model) is not None for model in each)
        found |= (
            {numbered(name, i): model for i, model in enumerate(each)} if several else {name: one}
        )
    return found


def _class_of(module: Any) -> str | None:
    """The known class of a model, or of the nearest of its bases; ``None`` for anything else."""
    if getattr(module, "config", None) is None or not hasattr(module, "state_dict"):
        return None
    names = (one.__name__ for one in type(module).__mro__)
    return next((name for name in names if is_known(name)), None)


def _config(module: Any) -> dict[str, Any]:
    config = module.config
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def _is_scheduler(value: Any) -> bool:
    return hasattr(value, "set_timesteps") and hasattr(value, "config")


def _is_tokenizer(value: Any) -> bool:
    return isinstance(value, Tokenizer) or hasattr(value, "batch_decode")
