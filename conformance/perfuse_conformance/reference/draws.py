"""Draws one picture with a pipeline and records the result of every step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from perfuse import Step, Tools
from perfuse.arrays import to_numpy
from perfuse.run import DiffusionPipeline
from perfuse.schedulers import scheduler_class
from perfuse.spec import Array, PipelineSpec, Role
from perfuse_conformance.cases.draws import Draw
from perfuse_conformance.cases.probes import Arrays

__all__ = ["run_draw"]


def run_draw(pipe: DiffusionPipeline, draw: Draw, *, nudge: int | None = None) -> Arrays:
    """Draw, and return ``latents`` [steps, B, C, h, w] and ``images`` [B, H, W, C] in [0, 1].

    Args:
        pipe: The pipeline; its scheduler, task and words are left as they were found.
        draw: What to draw.
        nudge: A seed, to change the first noise in its last bits.
    """
    scheduler = pipe.scheduler
    task = pipe.tasks[draw.task] if draw.task is not None else pipe.task
    try:
        if draw.scheduler is not None:
            cls = scheduler_class(draw.scheduler)
            pipe.scheduler = cls.from_config(pipe.spec.scheduler, **draw.fields)
        if nudge is not None:
            pipe.task = task.insert(_nudge(nudge), before="place_inputs")
        latents: list[Any] = []
        state: Any = {}
        given = {name: _made(value, pipe.spec) for name, value in draw.inputs.items()}
        with _learned(pipe, draw):
            for event in pipe.stream(**given, task=draw.task, output_type="np"):
                state = event.state
                if event.total > 1 or event.step == "denoise":
                    latents.append(to_numpy(state["samples"][0]).copy())
        images = np.asarray(state["images"], dtype=np.float32)
        return {"latents": np.stack(latents), "images": images}
    finally:
        pipe.scheduler, pipe.task = scheduler, task


@contextmanager
def _learned(pipe: DiffusionPipeline, draw: Draw) -> Iterator[None]:
    """The words of a draw are known meanwhile: two vectors each."""
    encoders = pipe.spec.having(Role.TEXT_ENCODER)
    for token, seed in draw.learned.items():
        random = np.random.Generator(np.random.PCG64(seed))
        for encoder in encoders:
            shape = (2, int(encoder.signature.outputs[0].shape[-1]))
            vectors = random.standard_normal(shape, dtype=np.float32)
            pipe.load_textual_inversion(vectors, token, text_encoder=encoder.name)
    try:
        yield
    finally:
        if draw.learned:
            pipe.unload_textual_inversion(list(draw.learned))


def _made(value: Any, spec: PipelineSpec) -> Any:
    """An input of a draw with pictures in place of their seeds."""
    if isinstance(value, list):
        return [_made(one, spec) for one in value]
    if not isinstance(value, Mapping):
        return value
    for kind, make in _KINDS.items():
        if kind in value:
            random = np.random.Generator(np.random.PCG64(value[kind]))
            return make(random, tuple(value["size"]), spec)
    return {name: _made(one, spec) for name, one in value.items()}


def _picture(random: Any, size: tuple[int, int], spec: PipelineSpec) -> Any:
    from PIL import Image

    return Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))


def _mask(random: Any, size: tuple[int, int], spec: PipelineSpec) -> Any:
    """Half of the height and of the width, somewhere."""
    mask = np.zeros(size, dtype=np.float32)
    top, left = (int(random.integers(0, length // 2 + 1)) for length in size)
    mask[top : top + size[0] // 2, left : left + size[1] // 2] = 1.0
    return mask


def _masks(random: Any, size: tuple[int, int], spec: PipelineSpec) -> Any:
    """Where each of two images counts, float32 [1, 2, H, W]."""
    one = _mask(random, size, spec)
    return np.stack([one, 1.0 - one])[None]


def _depth(random: Any, size: tuple[int, int], spec: PipelineSpec) -> Any:
    return random.random((1, *size), dtype=np.float32)


def _latents(random: Any, size: tuple[int, int], spec: PipelineSpec) -> Any:
    shape = spec.latents.shape(1, *size)
    return random.standard_normal(shape, dtype=np.float32)


_KINDS: Mapping[str, Callable[..., Any]] = {
    "picture": _picture,
    "mask": _mask,
    "masks": _masks,
    "depth": _depth,
    "latents": _latents,
}


def _nudge(seed: int) -> Step:
    """A step that moves every number of the first noise to a neighbour or leaves it."""

    def run(tools: Tools, latents: Array) -> dict[str, Array]:
        array = to_numpy(latents)
        way = np.random.Generator(np.random.PCG64(seed)).integers(-1, 2, size=array.shape)
        moved = np.nextafter(array, np.where(way < 0, -np.inf, np.inf).astype(np.float32))
        return {"latents": np.where(way == 0, array, moved)}

    return Step(name="nudge", run=run, outputs=("latents",))
