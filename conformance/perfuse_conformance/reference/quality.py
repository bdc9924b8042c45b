"""Quality: how often a picture matches its prompt, by a checker that needs no weights."""

from typing import Any

import numpy as np

from perfuse.run import DiffusionPipeline
from perfuse.shapes import BUNDLED, Bundled, bundled_name
from perfuse.shapes.evaluate import judge
from perfuse.shapes.grammar import held_out
from perfuse.spec import PipelineSpec

__all__ = ["caption_verdicts", "has_captions"]

#: As in the models' own score; ``python -m perfuse.shapes.evaluate`` prints it.
COUNT = 100


def has_captions(spec: PipelineSpec, model: str | None) -> bool:
    """Whether the pictures of a model can be checked: it is a bundled one, or an export of one."""
    return bundled_name(model) is not None or _bundled(spec) is not None


def _bundled(spec: PipelineSpec) -> Bundled | None:
    """The bundled model that a pipeline is, as far as its denoiser's config tells."""
    from perfuse.sources import read_json

    config = spec.denoiser.config
    for one in BUNDLED.values():
        own = read_json(one.folder / one.denoiser / "config.json")
        if all(config.get(name) == value for name, value in own.items()):
            return one
    return None


def caption_verdicts(pipe: DiffusionPipeline) -> list[bool]:
    """For each held-out caption, whether its picture matches it."""
    bundled = _bundled(pipe.spec)
    assert bundled is not None

    def paint(captions: list[str], seed: int) -> Any:
        return pipe(captions, **bundled.call(), seed=seed).images

    return [bool(verdict.right) for _, _, verdict in judge(paint, held_out()[:COUNT])]


def agreement(one: list[bool], other: list[bool]) -> float:
    """The share of captions on which two give the same verdict."""
    return float(np.mean(np.asarray(one) == np.asarray(other)))
