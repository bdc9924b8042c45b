"""Quality: how often a picture matches its prompt, by a checker that needs no weights."""

from pathlib import Path
from typing import Any

import numpy as np

from perfuse.run import DiffusionPipeline
from perfuse.shapes import CHECKPOINT
from perfuse.shapes.evaluate import judge
from perfuse.shapes.grammar import held_out
from perfuse.spec import PipelineSpec

__all__ = ["caption_verdicts", "has_captions"]

#: As in the model's own score; ``python -m perfuse.shapes.evaluate`` prints it.
COUNT = 100
STEPS = 20
GUIDANCE = 3.0


def has_captions(spec: PipelineSpec, model: str | None) -> bool:
    """Whether the pictures of a model can be checked: it is ``shapes``, or an export of it."""
    from perfuse.sources import read_json

    if model is None or Path(model).resolve() == CHECKPOINT.resolve():
        return True
    config = spec.denoiser.config
    own = read_json(CHECKPOINT / "unet" / "config.json")
    return all(config.get(name) == value for name, value in own.items())


def caption_verdicts(pipe: DiffusionPipeline) -> list[bool]:
    """For each held-out caption, whether its picture matches it."""
    scenes = held_out()[:COUNT]

    def paint(captions: list[str], seed: int) -> Any:
        return pipe(captions, num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=seed).images

    return [bool(verdict.right) for _, _, verdict in judge(paint, scenes)]


def agreement(one: list[bool], other: list[bool]) -> float:
    """The share of captions on which two give the same verdict."""
    return float(np.mean(np.asarray(one) == np.asarray(other)))
