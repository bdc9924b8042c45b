"""``perfuse bench``."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perfuse.cli.common import (
    JSON,
    QUIET,
    Number,
    added_to,
    check_own_parts,
    model_of,
    model_options,
    option,
    read_options,
)
from perfuse.cli.settings import Configured
from perfuse.cli.usual import usual_prompts
from perfuse.cli.watch import watching
from perfuse.errors import InputError
from perfuse.memory import check_memory

if TYPE_CHECKING:
    from perfuse.contract.source import Source
    from perfuse.run.bench import Drawing

__all__ = ["bench"]

#: What is kept of a picture at least, in bytes: its inputs, its time, and three numbers of quality.
_KEPT = 192


@click.command(cls=Configured)
@model_options
@option("--backend", help="BACKEND[:DEVICE], or one a component: unet=openvino:GPU,torch:cpu.")
@option("--precision", help="float32, float16 or bfloat16.")
@click.option("--option", "options", multiple=True, help="A backend's switch: compile=true.")
@click.option(
    "--transform",
    "ways",
    multiple=True,
    help='One way to draw; several transforms of one way in quotes: "deepcache freeu".',
)
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--guidance", type=Number(), help="The guidance scale; the model's own by default.")
@click.option("--prompt", "prompts", multiple=True, help="What to draw; several for several.")
@click.option(
    "--captions",
    type=click.IntRange(min=1),
    help="How many of the held-out captions to draw with a bundled model; 100 by default.",
)
@click.option("--pictures", type=click.IntRange(min=1), help="How many; 4 by default.")
@click.option("--memory", is_flag=True, help="The memory of each way, in a process of its own.")
@option("--clip", help="A CLIP model, a folder or a name on the Hub, that scores the pictures.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="A PNG or SVG of time against quality."
)
@QUIET
@JSON
def bench(
    backend: str | None,
    precision: str | None,
    options: tuple[str, ...],
    ways: tuple[str, ...],
    steps: int,
    guidance: float | None,
    prompts: tuple[str, ...],
    captions: int | None,
    pictures: int | None,
    memory: bool,
    clip: str | None,
    plot: Path | None,
    quiet: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Measure transforms against the plain pipeline, and against fewer steps in the same time."""
    from perfuse.report.bench import check_plot, print_rows, save_plot
    from perfuse.run.bench import check_installed, compare
    from perfuse.run.clip_score import ClipScore
    from perfuse.sources.opening import open_model

    check_own_parts(model, "bench", but="vae")
    check_installed()
    if plot is not None:
        check_plot(plot)
    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        source = open_model(**model_of(model))
        settings = {
            "pretrained_model_name_or_path": source,
            "backend": backend,
            "precision": precision,
            "options": read_options(options),
            "offline": model["offline"],
            **added_to(model),
        }
        drawing = _drawing(source, prompts, captions, pictures, guidance)
        rows = compare(
            settings,
            [text.split() for text in ways],
            drawing,
            steps=steps,
            memory=memory,
            clip=None if clip is None else ClipScore(clip, offline=bool(model["offline"])),
        )
    if plot is not None:
        save_plot(rows, plot)
    if as_json:
        found = [dataclasses.asdict(row) for row in rows]
        click.echo(json.dumps({"model": source.model, "backend": backend, "rows": found}))
        return
    print_rows(rows)


def _drawing(
    source: "Source",
    prompts: tuple[str, ...],
    captions: int | None,
    pictures: int | None,
    guidance: float | None,
) -> "Drawing":
    """What is drawn: held-out captions of a bundled model, or prompts where a model takes them.

    Raises:
        InputError: captions were asked for, and cannot be judged; or so many pictures that there is
            no room for what is measured of each.
    """
    from perfuse.run.bench import Drawing
    from perfuse.shapes import BUNDLED
    from perfuse.shapes.grammar import held_out

    bundled = source.model in BUNDLED
    if captions is not None and (not bundled or prompts or pictures is not None):
        raise InputError(
            "--captions was given; they are of the bundled models, and take the place of --prompt and "
            "--pictures."
        )
    scale: dict[str, object] = {} if guidance is None else {"guidance_scale": guidance}
    if bundled and not prompts and pictures is None:
        known = held_out()
        count = captions if captions is not None else 100
        if count > len(known):
            raise InputError(f"--captions {count} was given; there are {len(known)}.")
        scenes = known[:count]
        return Drawing(
            inputs=[{"prompt": scene.caption(), **scale} for scene in scenes], scenes=scenes
        )
    count = pictures if pictures is not None else max(4, len(prompts))
    check_memory(count * _KEPT, f"--pictures {count}")
    chosen = prompts or usual_prompts(source)
    each = [{"prompt": prompt, **scale} for prompt in chosen] or [scale]
    return Drawing(inputs=[each[i % len(each)] for i in range(count)])
