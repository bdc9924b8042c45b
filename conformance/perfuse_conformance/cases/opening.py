"""Opens a model as the suite measures it: with transforms, and with IP-Adapters that lie beside it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from perfuse import Source
from perfuse.backend import Component
from perfuse.run import DiffusionPipeline, Planned
from perfuse.sources import open_model
from perfuse.spec import PipelineSpec
from perfuse_conformance.cases.checkpoints import IP_ADAPTERS

__all__ = ["open_pipeline", "open_source"]

Kind = TypeVar("Kind", bound=DiffusionPipeline)


def open_pipeline(kind: type[Kind], model: str | None, **settings: Any) -> Kind:
    """A pipeline of a class, with the adapters that lie in its folder; settings as ``from_pretrained``."""
    pipe = kind.from_pretrained(model, **settings)
    if files := _adapters_of(model):
        folder, names = str(files[0].parent), [file.name for file in files]
        pipe.load_ip_adapter(folder, weight_name=names, image_encoder_folder=None)
    return pipe


def open_source(model: str | None, transforms: Sequence[str] = ()) -> Source:
    """The components of a model as ``open_pipeline`` would run them.

    Raises:
        CheckpointError: the model cannot be read.
        InputError: a transform is unknown or does not fit.
    """
    if not _adapters_of(model):
        return Planned.of(open_model(model), transforms)
    pipe = open_pipeline(DiffusionPipeline, model, transforms=tuple(transforms))
    return _Adapted(
        inner=pipe.source, pipe=pipe, model=pipe.source.model, spec=pipe.spec, revision=None
    )


def _adapters_of(model: str | None) -> list[Path]:
    return sorted((Path(model) / IP_ADAPTERS).glob("*.safetensors")) if model is not None else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Adapted(Source):
    """A source whose components are those of a pipeline with adapters."""

    inner: Source
    pipe: DiffusionPipeline
    model: str
    spec: PipelineSpec
    revision: str | None

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        settings = {"transforms": self.pipe.transforms, "precision": precision}
        return open_pipeline(DiffusionPipeline, self.model, **settings).component(
            name, static=static
        )

    def tokenizer(self, name: str) -> Any:
        return self.inner.tokenizer(name)
