"""``perfuse calibrate``."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perfuse.cli.common import FILE, JSON, QUIET, Number, check_own_parts, model_of, model_options
from perfuse.cli.settings import Configured
from perfuse.cli.usual import usual_prompts
from perfuse.cli.watch import watching
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.report.console import say
from perfuse.sources.files import shown

if TYPE_CHECKING:
    from perfuse.contract.source import Source

__all__ = ["calibrate"]

#: What to draw with a model that nothing is known of.


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
@click.option("--guidance", type=Number(), help="The guidance scale; the model's own by default.")
@click.option(
    "--limit",
    type=Number(min=0, min_open=True),
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
    **model: Any,
) -> None:
    """Draw a few pictures on the reference, and measure what fewer bits cost each layer.

    The file goes into `--transform storage:scheme=w8a8,component=unet,calibration=FILE`.
    """
    host().backend("torch")  # what it measures with
    from perfuse.run.calibrating import calibrate as measure
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.run.precisions import schemes_of
    from perfuse.sources.calibrations import write_calibrations
    from perfuse.sources.opening import open_model

    check_own_parts(model, "calibrate")
    schemes = schemes_of(asked)
    _check_free(output)
    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        source = open_model(**model_of(model))
        pipe = DiffusionPipeline.from_pretrained(source, backend="torch:cpu")
        scale: dict[str, object] = {} if guidance is None else {"guidance_scale": guidance}
        inputs = [{"prompt": one, **scale} for one in prompts or _usual(source)] or [scale]
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
    """Raise ``InputError`` where something is that calibrate did not write, or no folder for it."""
    from perfuse.errors import PerfuseError
    from perfuse.sources.calibrations import read_calibrations
    from perfuse.sources.files import check_folder

    check_folder("--output", path)
    if not os.path.lexists(path):
        return
    try:
        read_calibrations(str(path))
    except PerfuseError as exc:
        raise InputError(
            f"{shown(path)} was to be written; it is there, and no calibration. Name another file, "
            "or move it away."
        ) from exc


def _usual(source: "Source") -> tuple[str, ...]:
    """What to draw where nothing was said: of the bundled models' captions those that nothing is judged by."""
    import numpy as np

    from perfuse.shapes import BUNDLED
    from perfuse.shapes.grammar import sample

    if source.model not in BUNDLED:
        return usual_prompts(source)

    rng = np.random.default_rng(0)
    return tuple(sample(rng).caption() for _ in range(8))
