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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
from engines import watching
from overhead import PROMPT
from sidebyside import Row, command, compare, in_turns, say

#: For each size: how its checkpoint is made, and the engines with the precisions to run it in.
CASES: dict[str, tuple[Callable[..., Path], tuple[tuple[str, str], ...]]] = {
    "sd15": (models.sd15, (("onnxruntime", "float32"), ("openvino", "float32"))),
    "sdxl": (models.sdxl, (("openvino", "bfloat16"),)),
}


@dataclass
class Side:
    """A way to draw with the model: open, and then a number of steps at a time."""

    open: Callable[[], Any]
    pipe: Any = None
    #: Seconds of a step, and those of them outside the engine, for each picture so far.
    steps: list[float] = field(default_factory=list)
    hosts: list[float] = field(default_factory=list)

    def first(self) -> float:
        """Seconds from the open pipeline to the end of a picture's only step."""
        self.pipe = self.open()
        began = time.perf_counter()
        _draw(self.pipe, 1, lambda: None)
        return time.perf_counter() - began

    def draw(self, engine: str, steps: int) -> None:
        """Take steps, and keep what each took from the end of the first on."""
        with watching(engine) as watch:
            ends: list[float] = []

            def ended() -> None:
                if not ends:
                    watch.forget()
                ends.append(time.perf_counter())
                inside.append(watch.seconds)

            inside: list[float] = []
            _draw(self.pipe, steps, ended)
        took, within = ends[-1] - ends[0], inside[-1]
        self.steps.append(took / (steps - 1))
        self.hosts.append((took - within) / (steps - 1))


def measure(options: Namespace) -> list[Row]:
    checkpoint, engines = CASES[options.case]
    model = checkpoint(options.work, quick=options.quick)
    name = "the middle model" if options.quick else f"an {options.case}-sized model"
    rounds = options.rounds or 3
    rows = []
    for engine, precision in engines:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            rows += _engine(name, model, engine, precision, rounds, Path(folder))
        gc.collect()
    return rows


def _engine(
    name: str, model: Path, engine: str, precision: str, rounds: int, folder: Path
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
        _draw(opened(models.shapes(None)), 1, lambda: None)
    sides = {"native": Side(native), "bridged": Side(bridged), "diffusers": Side(eager)}
    first = {key: side.first() for key, side in sides.items()}
    say("first pictures: " + ", ".join(f"{key} {took:.1f} s" for key, took in first.items()))
    in_turns(rounds, {key: _drawing(key, side, engine) for key, side in sides.items()})
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


def _draw(pipe: Any, steps: int, ended: Callable[[], None]) -> None:
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
        callback_on_step_end=stepped,
    )


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", choices=CASES, default="sd15", help="the model's size")


if __name__ == "__main__":
    command(measure, __doc__, _more)
