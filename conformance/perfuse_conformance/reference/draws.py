"""Draws one picture with a pipeline and records the result of every step."""

from typing import Any

import numpy as np

from perfuse import Step, Tools
from perfuse.arrays import to_numpy
from perfuse.run import DiffusionPipeline
from perfuse.schedulers import scheduler_class
from perfuse.spec import Array
from perfuse_conformance.cases.catalogue import Arrays, Draw

__all__ = ["run_draw"]


def run_draw(pipe: DiffusionPipeline, draw: Draw, *, nudge: int | None = None) -> Arrays:
    """Draw, and return ``latents`` [steps, B, C, h, w] and ``images`` [B, H, W, C] in [0, 1].

    Args:
        pipe: The pipeline; its scheduler and task are left as they were found.
        draw: What to draw.
        nudge: A seed, to change the first noise in its last bits.
    """
    scheduler, task = pipe.scheduler, pipe.task
    try:
        if draw.scheduler is not None:
            cls = scheduler_class(draw.scheduler)
            pipe.scheduler = cls.from_config(pipe.spec.scheduler, **draw.fields)
        if nudge is not None:
            pipe.task = task.insert(_nudge(nudge), before="place_inputs")
        latents: list[Any] = []
        state: Any = {}
        for event in pipe.stream(**_with_pictures(draw), output_type="np"):
            state = event.state
            if event.total > 1 or event.step == "denoise":
                latents.append(to_numpy(state["samples"][0]).copy())
        images = np.asarray(state["images"], dtype=np.float32)
        return {"latents": np.stack(latents), "images": images}
    finally:
        pipe.scheduler, pipe.task = scheduler, task


def _with_pictures(draw: Draw) -> dict[str, Any]:
    """The inputs of a draw, with random pictures in place of their seeds."""
    inputs = dict(draw.inputs)
    if "image" in inputs:
        made = [_picture(one, inputs["height"], inputs["width"]) for one in inputs["image"]]
        inputs["image"] = made if len(made) > 1 else made[0]
    return inputs


def _picture(seed: int, height: int, width: int) -> Any:
    random = np.random.Generator(np.random.PCG64(seed))
    return random.random((height, width, 3), dtype=np.float32)


def _nudge(seed: int) -> Step:
    """A step that moves every number of the first noise to a neighbour or leaves it."""

    def run(tools: Tools, latents: Array) -> dict[str, Array]:
        array = to_numpy(latents)
        way = np.random.Generator(np.random.PCG64(seed)).integers(-1, 2, size=array.shape)
        moved = np.nextafter(array, np.where(way < 0, -np.inf, np.inf).astype(np.float32))
        return {"latents": np.where(way == 0, array, moved)}

    return Step(name="nudge", run=run, outputs=("latents",))
