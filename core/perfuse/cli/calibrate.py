"""``perfuse calibrate``."""

import json
import os
from pathlib import Path
from typing import Any

import click

from perfuse.cli.common import FILE, JSON, QUIET, model_of, model_options
from perfuse.cli.settings import Configured
from perfuse.cli.watch import watching
from perfuse.errors import InputError
from perfuse.report.console import say
from perfuse.sources.files import shown

__all__ = ["calibrate"]

#: What to draw with a model that nothing is known of.
_PROMPTS = (
    "a photograph of a cat on a wooden chair",
    "a mountain lake at sunrise",
    "a portrait of an old man in a red coat, oil on canvas",
    "a busy street at night in the rain",
)


@click.command(cls=Configured)
@model_options
@click.option(
    "--precision",
    "asked",
    required=True,
    help="Components with the schemes to measure: unet=w8a8, or unet=int4,text_encoder=int8.",
)
@click.option("--output", type=FILE, required=True, help="The file to write.")
@click.option("--prompt", "prompts", multiple=True, help="What to draw; several for several.")
@click.option("--steps", type=int, default=8, show_default=True)
@click.option("--guidance", type=float, help="The guidance scale; the model's own by default.")
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    default=0.05,
    show_default=True,
    help="What predictions may lose, as a part of theirs; the worst layers stay as they are.",
)
@QUIET
@JSON
def calibrate(
    asked: str,
    output: Path,
    prompts: tuple[str, ...],
    steps: int,
    guidance: float | None,
    limit: float,
    quiet: bool,
    as_json: bool,
    controlnet: tuple[str, ...],
    adapter: tuple[str, ...],
    **model: Any,
) -> None:
    """Draw a few pictures on the reference, and measure what fewer bits cost each layer.

    The file goes into `--transform storage:scheme=w8a8,component=unet,calibration=FILE`.
    """
    from perfuse.run.calibrating import calibrate as measure
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.run.precisions import schemes_of
    from perfuse.sources.calibrations import write_calibrations
    from perfuse.sources.opening import open_model

    if controlnet or adapter:
        raise InputError("--controlnet and --adapter were given; calibrate draws without.")
    schemes = schemes_of(asked)
    _check_free(output)
    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        source = open_model(**model_of(model))
        pipe = DiffusionPipeline.from_pretrained(source, backend="torch:cpu")
        scale = {} if guidance is None else {"guidance_scale": guidance}
        chosen = prompts if prompts else _usual(source.model == "shapes")
        inputs = [{"prompt": one, **scale} for one in chosen]
        found = measure(pipe, schemes, inputs, steps=steps, limit=limit)
    write_calibrations(found, output)
    if as_json:
        plain = {
            name: {
                **{n: getattr(one, n) for n in ("scheme", "kept", "error", "prompts", "steps")},
                "file": str(output),
            }
            for name, one in found.items()
        }
        click.echo(json.dumps(plain))
        return
    for name, one in found.items():
        say(
            f"{name}: predictions in {one.scheme} lose {100 * one.error:.2g} %; {len(one.kept)} layers "
            "stay as they are"
        )
    say(str(output))


def _check_free(path: Path) -> None:
    """Raise ``InputError`` where something is that calibrate did not write."""
    from perfuse.errors import PerfuseError
    from perfuse.sources.calibrations import read_calibrations

    if not os.path.lexists(path):
        return
    try:
        read_calibrations(str(path))
    except PerfuseError as exc:
        raise InputError(
            f"{shown(path)} was to be written; it is there, and no calibration. Name another file, "
            "or move it away."
        ) from exc


def _usual(bundled: bool) -> tuple[str, ...]:
    """What to draw where nothing was said: captions of the kind that the bundled model knows."""
    if not bundled:
        return _PROMPTS
    import numpy as np

    from perfuse.shapes.grammar import sample

    rng = np.random.default_rng(0)
    return tuple(sample(rng).caption() for _ in range(8))
