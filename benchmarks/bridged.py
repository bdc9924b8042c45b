"""A pipeline of Diffusers whose modules run on an engine, beside the same engine native and beside Diffusers.

Three figures: what the bridge adds to a denoising step beyond what perfuse's own loop does, as a part of
the step, with a step taken to be what lies between the ends of two; the first picture in one step, from an
open pipeline and an empty cache, where the bridge asks PyTorch once as well to compare the answers; and a
step beside PyTorch's.
"""

import argparse
import gc
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import models
from engines import watching
from overhead import PROMPT
from sidebyside import Row, command, compare, in_turns, say


@dataclass(frozen=True, kw_only=True)
class Case:
    """A size of model to measure with."""

    checkpoint: Callable[..., Path]
    #: The engines, with the precisions to run it in.
    engines: tuple[tuple[str, str], ...]
    #: Whether memory holds all three ways at once; else each is measured after the other.
    together: bool = True
    #: The side of a picture; that of the model where it is ``None``.
    side: int | None = None
    #: Times that each draws.
    rounds: int = 3


CASES = {
    "sd15": Case(
        checkpoint=models.sd15, engines=(("onnxruntime", "float32"), ("openvino", "float32"))
    ),
    # Its weights are 7 GB in bfloat16: a way to draw has them up to twice, and a machine has 24 GB.
    "sdxl": Case(
        checkpoint=models.sdxl,
        engines=(("openvino", "bfloat16"),),
        together=False,
        side=512,
        rounds=1,
    ),
}


@dataclass
class Side:
    """A way to draw with the model: open, and then a number of steps at a time."""

    open: Callable[[], Any]
    #: Of a picture; the model's own where it is ``None``.
    side: int | None
    pipe: Any = None
    #: Seconds of a step, and those of them outside the engine, for each picture so far.
    steps: list[float] = field(default_factory=list)
    hosts: list[float] = field(default_factory=list)

    def first(self) -> float:
        """Seconds from the open pipeline to the end of a picture's only step."""
        self.pipe = self.open()
        began = time.perf_counter()
        _draw(self.pipe, 1, lambda: None, self.side)
        took = time.perf_counter() - began
        self.close()  # the next one has the memory to itself
        return took

    def close(self) -> None:
        """Let go of the pipeline, and of what its engine holds."""
        if hasattr(self.pipe, "perfuse"):
            self.pipe.perfuse.restore()
        self.pipe = None
        gc.collect()

    def draw(self, engine: str, steps: int) -> None:
        """Take steps, and keep what each took from the end of the first on."""
        if self.pipe is None:
            self.pipe = self.open()
            _draw(self.pipe, 1, lambda: None, self.side)
        with watching(engine) as watch:
            ends: list[float] = []

            def ended() -> None:
                if not ends:
                    watch.forget()
                ends.append(time.perf_counter())
                inside.append(watch.seconds)

            inside: list[float] = []
            _draw(self.pipe, steps, ended, self.side)
        took, within = ends[-1] - ends[0], inside[-1]
        self.steps.append(took / (steps - 1))
        self.hosts.append((took - within) / (steps - 1))


def measure(options: Namespace) -> list[Row]:
    case = CASES[options.case]
    model = case.checkpoint(options.work, quick=options.quick)
    name = "the middle model" if options.quick else f"an {options.case}-sized model"
    if options.quick:
        case = replace(case, side=None)
    elif case.side is not None:
        name += f" at {case.side}×{case.side}"
    case = replace(case, rounds=options.rounds or case.rounds)
    rows = []
    for engine, precision in case.engines:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            rows += _engine(name, model, engine, precision, case, Path(folder))
        gc.collect()
    return rows


def _engine(
    name: str, model: Path, engine: str, precision: str, case: Case, folder: Path
) -> list[Row]:
    import diffusers
    import torch

    import perfuse

    diffusers.utils.logging.disable_progress_bar()
    keep = {"cache": "false"} if engine == "openvino" else {}
    dtype = getattr(torch, precision)

    def native(checkpoint: Path = model) -> Any:
        store = perfuse.ArtifactStore(folder / "native")
        return perfuse.DiffusionPipeline.from_pretrained(
            checkpoint,
            backend=engine,
            precision=precision,
            store=store,
            options=keep,
            bridged=False,
        )

    def eager(checkpoint: Path = model) -> Any:
        pipe = diffusers.DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def bridged(checkpoint: Path = model) -> Any:
        store = perfuse.ArtifactStore(folder / "bridged")
        return perfuse.accelerate(eager(checkpoint), engine, store=store, options=keep, strict=True)

    say(f"{name} on {engine} in {precision}")
    for opened in (native, bridged):  # what is imported at a first use is no part of this
        _draw(opened(models.shapes(None)), 1, lambda: None, None)
    ways = {"native": native, "bridged": bridged, "diffusers": eager}
    sides = {key: Side(way, case.side) for key, way in ways.items()}
    first = {key: side.first() for key, side in sides.items()}
    say("first pictures: " + ", ".join(f"{key} {took:.1f} s" for key, took in first.items()))
    for keys in [list(sides)] if case.together else [[key] for key in sides]:
        in_turns(case.rounds, {key: _drawing(key, sides[key], engine) for key in keys})
        for key in keys:
            sides[key].close()
    ours, theirs = sides["bridged"], sides["native"]
    step = statistics.median(theirs.steps)
    added = statistics.median(ours.hosts) - statistics.median(theirs.hosts)
    what = f"{name}, bridged on {engine} in {precision}"
    return [
        Row(
            what=f"Outside the engine in a step, {what}",
            ours=1000 * statistics.median(ours.hosts),
            theirs=1000 * statistics.median(theirs.hosts),
            unit="ms",
            against="native",
            figure=100 * added / step,
            figure_unit="%",
            target=1.0,
            note="The figure is the difference as a part of a native step.",
        ),
        compare(f"A step, {what}", ours.steps, theirs.steps, unit="ms", against="native"),
        compare(
            f"A step, {what}",
            ours.steps,
            sides["diffusers"].steps,
            unit="ms",
            against="Diffusers on torch",
        ),
        Row(
            what=f"First picture in one step with an empty cache, {what}",
            ours=first["bridged"],
            theirs=first["native"],
            unit="s",
            against="native",
            figure=first["bridged"] / first["native"],
            target=1.3,
        ),
    ]


def _drawing(key: str, side: Side, engine: str) -> Callable[[], None]:
    return lambda: side.draw("torch" if key == "diffusers" else engine, 3)


def _draw(pipe: Any, steps: int, ended: Callable[[], None], side: int | None) -> None:
    """A picture's latents; the callback is Diffusers' and perfuse's alike."""
    import torch

    def stepped(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        ended()
        return tensors

    pipe(
        PROMPT,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="latent",
        height=side,
        width=side,
        callback_on_step_end=stepped,
    )


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", choices=CASES, default="sd15", help="the model's size")


if __name__ == "__main__":
    command(measure, __doc__, _more)
