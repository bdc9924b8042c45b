"""``perfuse tune``."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perfuse.cli.common import FILE, JSON, QUIET, Number, check_own_parts, model_of, model_options
from perfuse.cli.settings import SETTINGS, Configured
from perfuse.cli.usual import usual_prompts
from perfuse.cli.watch import watching
from perfuse.errors import InputError
from perfuse.report.console import say

if TYPE_CHECKING:
    from perfuse.run.tuning import Found, Point

__all__ = ["tune"]

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_HEAD = "# Written by perfuse tune.\n"


@click.command(cls=Configured)
@model_options
@click.option(
    "--backend",
    "backends",
    multiple=True,
    help="A target to try, the reference first; several for several. By default all that are here.",
)
@click.option("--time", "duration", help="How long to look: 90s, 5m, 1h.")
@click.option("--prompt", "prompts", multiple=True, help="What to draw; several for several.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option(
    "--quality",
    type=Number(0, 1),
    default=0.95,
    show_default=True,
    help="The least mean SSIM with the pictures of the first target in float32.",
)
@click.option(
    "--output", type=FILE, default=SETTINGS, show_default=True, help="Where to write the choice."
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="A PNG or SVG of time against quality."
)
@QUIET
@JSON
def tune(
    backends: tuple[str, ...],
    duration: str | None,
    prompts: tuple[str, ...],
    steps: int,
    quality: float,
    output: Path,
    plot: Path | None,
    quiet: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Look for the fastest way to draw on this machine that loses little, and write it down.

    Targets, precisions, threads and transforms are tried, in this order. What is written to
    perfuse.toml holds for all later commands in that folder and those below it.
    """
    from perfuse.report.bench import check_plot
    from perfuse.report.tune import print_points, save_points
    from perfuse.run.tuning import backends_for
    from perfuse.run.tuning import tune as look
    from perfuse.shapes import BUNDLED
    from perfuse.sources.opening import open_model

    check_own_parts(model, "tune")
    seconds = _seconds(duration)
    _check_free(output)
    if plot is not None:
        check_plot(plot)
    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        source = open_model(**model_of(model))
        # A large model has no time for more than one.
        usual = usual_prompts(source)[: None if source.model in BUNDLED else 1]
        inputs = [{"prompt": one} for one in prompts or usual] or [{}]
        found = look(
            source,
            backends or backends_for(source),
            inputs,
            steps=steps,
            seconds=seconds,
            least=quality,
        )
    _write(found.chosen, model_of(model), output)
    if plot is not None:
        save_points(found, plot)
    if as_json:
        click.echo(json.dumps(_plain(found, output)))
        return
    print_points(found)
    say(f"{output}: {found.chosen.name}")


def _seconds(text: str | None) -> float:
    """The seconds of ``5m``.

    Raises:
        InputError: it is no time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text or "")
    if match is None or not float(match[1]) > 0:
        given = "no --time" if text is None else f"--time {text}"
        raise InputError(f"perfuse tune was given {given}; say how long to look: 90s, 5m or 1h.")
    return float(match[1]) * _SECONDS[match[2]]


def _check_free(path: Path) -> None:
    """Raise ``InputError`` where something is that tune did not write, or no folder for it."""
    from perfuse.sources.files import check_folder, read_text

    check_folder("--output", path)
    if path.exists() and not read_text(path, error=InputError).startswith(_HEAD):
        raise InputError(
            f"{path} was to be written; it is there, and not of perfuse tune. Name another file, "
            "--output FILE, or move it away."
        )


def _write(point: "Point", model: Mapping[str, Any], path: Path) -> None:
    """Write a point as the settings of later commands."""
    from perfuse.sources.files import write_file

    named = {name: value for name, value in model.items() if value is not None}
    settings: dict[str, Any] = {
        **{name: named[name] for name in ("model", "revision", "variant") if name in named},
        "backend": point.backend,
        "precision": point.precision,
        "transforms": list(point.transforms),
        "options": [f"{name}={value}" for name, value in point.options.items()],
    }
    # JSON's texts and lists of texts are TOML's.
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items() if value]
    write_file(path, f"{_HEAD}[pipeline]\n{''.join(lines)}", error=InputError)


def _plain(found: "Found", path: Path) -> dict[str, Any]:
    points = [
        {**dataclasses.asdict(point), **dataclasses.asdict(row)}
        for point, row in found.rows.items()
    ]
    return {
        "chosen": dataclasses.asdict(found.chosen),
        "file": str(path),
        "points": points,
        "refused": {point.name: why for point, why in found.refused.items()},
    }
