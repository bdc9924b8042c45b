"""A checkpoint whose weights are not there: its configs say which tensors it would have."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perfuse.contract.component import Component
from perfuse.contract.source import Source
from perfuse.contract.spec import ComponentSpec, PipelineSpec
from perfuse.models.stored import stored_tensors
from perfuse.sources.checkpoint import Checkpoint, stored_component
from perfuse.sources.model_index import names_in
from perfuse.sources.weights import Hollow, is_pickle, variants

if TYPE_CHECKING:
    from perfuse.sources.tokenizer import Tokenizer

__all__ = ["ConfigsAlone", "hollow_weights", "with_or_without_weights"]


def with_or_without_weights(source: Source) -> Source:
    """The source; for a checkpoint none of whose models has weights, what its configs say of them.

    Raises:
        InputError: to count them, torch is needed, which is not installed.
    """
    if not isinstance(source, Checkpoint):
        return source
    folders = dict.fromkeys(one.folder for one in source.spec.components.values())
    names = [name for folder in folders for name in names_in(source.path / folder)]
    if variants(names) or any(map(is_pickle, names)):
        return source
    specs = source.spec.components.values()
    first = {folder: next(one for one in specs if one.folder == folder) for folder in folders}
    return ConfigsAlone(
        model=source.model,
        spec=source.spec,
        revision=source.revision,
        checkpoint=source,
        hollow={folder: hollow_weights(spec) for folder, spec in first.items()},
    )


def hollow_weights(spec: ComponentSpec) -> Hollow:
    """The tensors that a component's config asks for, in memory that is never touched.

    Weights are float32; the few integers, such as counters of batch norms, are zero.

    Raises:
        CheckpointError: the component's class is unknown.
        InputError: torch is not installed.
    """
    tensors = stored_tensors(spec)
    return Hollow(
        folder=Path(spec.folder),
        files=(),
        variant=None,
        shapes=tensors,
        fingerprint="",
        total_bytes=sum(_bytes(dtype, shape) for dtype, shape in tensors.values()),
    )


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return np.dtype(dtype).itemsize * math.prod(shape)


@dataclass(frozen=True, kw_only=True)
class ConfigsAlone(Source):
    """A checkpoint without weights, to look at and to make graphs of; it draws nothing."""

    model: str
    spec: PipelineSpec
    revision: str | None
    checkpoint: Checkpoint
    #: The folder of each model to its tensors, which have no content.
    hollow: Mapping[str, Hollow]

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        return stored_component(self, name, self.hollow.__getitem__, precision, static)

    def tokenizer(self, name: str) -> "Tokenizer":
        return self.checkpoint.tokenizer(name)

    def with_spec(self, spec: PipelineSpec) -> "ConfigsAlone":
        return dataclasses.replace(self, spec=spec)

    def parameters(self) -> dict[str, int]:
        """The number of elements in the tensors of each model, by its folder."""
        return {folder: weights.parameters for folder, weights in self.hollow.items()}
