"""``perfuse generate``."""

import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from perfuse.cli.common import (
    JSON,
    QUIET,
    TRANSFORM,
    model_of,
    model_options,
    option,
    read_options,
)
from perfuse.cli.settings import Configured
from perfuse.cli.task_options import task_inputs, task_options
from perfuse.cli.watch import Watch, watching
from perfuse.errors import InputError, PerfuseError

if TYPE_CHECKING:
    from PIL.Image import Image

    from perfuse.arrays.metadata import Metadata
    from perfuse.contract.steps import Event
    from perfuse.run.pipeline import DiffusionPipeline

__all__ = ["generate"]

_STDOUT = Path("-")
_BESIDE = "beside the output"


@click.command(cls=Configured)
@click.argument("prompt", required=False)
@model_options
@option("--backend", help="BACKEND[:DEVICE], or one a component: unet=openvino:GPU,torch:cpu.")
@option("--precision", help="float32, float16 or bfloat16.")
@option("--scheduler", help="ddim, euler, dpm++, unipc, … instead of the checkpoint's.")
@task_options
@click.option("--option", "options", multiple=True, help="A backend's switch: compile=true.")
@TRANSFORM
@click.option(
    "--from",
    "origin",
    metavar="PICTURE",
    type=click.Path(path_type=Path),
    help="Draw a PNG of perfuse again; flags beside it win.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("picture.png"),
    show_default=True,
    help="The PNG to write; - for standard output.",
)
@click.option("--no-metadata", is_flag=True, help="Write the picture alone, not how it was made.")
@click.option(
    "--preview",
    metavar="[PATH]",
    is_flag=False,
    flag_value=_BESIDE,
    help="Write the present guess of the picture while it is drawn.",
)
@click.option(
    "--preview-every",
    type=click.IntRange(min=1),
    help="Steps between two previews; by default there are five.",
)
@QUIET
@JSON
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    prompt: str | None,
    origin: Path | None,
    output: Path,
    no_metadata: bool,
    preview: str | None,
    preview_every: int | None,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Draw pictures, from PROMPT where the model takes one."""
    source = ctx.get_parameter_source
    flags = frozenset(name for name in ctx.params if source(name) is ParameterSource.COMMANDLINE)
    again = _read(origin, flags) if origin is not None else None
    _check_output(output, as_json)
    shown = _preview_path(preview, output)
    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        pipe = _opened(given, flags, again)
        inputs = _inputs(pipe, prompt, given, flags, again)
        watch.lap("open")
        events = watch.follow(pipe.task, pipe.stream(**inputs))
        state = (
            _last(events)
            if shown is None
            else _previewed(pipe, events, watch, shown, preview_every)
        )
    images = _wanted(state["images"], flags, again)
    paths = _save(images, output, metadata=not no_metadata)
    if as_json:
        result = _result(pipe, images, paths, state["seeds"], inputs, watch)
        click.echo(json.dumps(result))
        return
    seeds = ", ".join(map(str, state["seeds"]))
    for path in paths:
        click.echo(f"{path}  (seed {seeds})", err=output == _STDOUT)
    if not quiet:
        click.echo(watch.summary(_where(pipe)), err=True)


# --- what is asked for ------------------------------------------------------------------------


def _read(origin: Path, flags: frozenset[str]) -> "Metadata":
    """What a picture was drawn from; what is opened because of it is said."""
    from perfuse.arrays.metadata import read
    from perfuse.report.tables import printable

    again = read(origin)
    if again.unrecorded:
        raise InputError(
            f"{origin} was to be drawn again; it was drawn with {', '.join(again.unrecorded)}, which "
            "a picture cannot hold. Draw it where they are."
        )
    named = {
        "model": again.model,
        "backend": again.backend,
        "options": ",".join(f"{name}={value}" for name, value in again.options.items()),
        "transforms": ",".join(again.transforms),
    }
    said = [f"{name} {value}" for name, value in named.items() if value and name not in flags]
    if said:
        click.echo(f"perfuse: {origin} names {printable('; '.join(said))}.", err=True)
    if again.replaced:
        warnings.warn(
            f"{origin} was drawn with another {', '.join(again.replaced)} than its model has, which "
            "the picture does not hold: expect another picture.",
            stacklevel=2,
        )
    return again


def _opened(
    given: Mapping[str, Any], flags: frozenset[str], again: "Metadata | None"
) -> "DiffusionPipeline":
    """The pipeline: as the picture says where there is one, and a flag does not say otherwise."""
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.schedulers import scheduler_class, scheduler_from_config

    opening = {
        **model_of(given),
        "backend": given["backend"],
        "precision": given["precision"],
        "options": read_options(given["options"]),
        "transforms": given["transforms"],
    }
    if again is not None:
        opening |= {n: v for n, v in _opening(again, flags).items() if n not in flags}
    pipe = DiffusionPipeline.from_pretrained(**opening)
    if again is not None and not {"scheduler", "scheduler_from", "model"} & flags:
        pipe.scheduler = scheduler_from_config(again.scheduler)
    elif given["scheduler"] is not None and (again is None or "scheduler" in flags):
        pipe.scheduler = scheduler_class(given["scheduler"]).from_config(pipe.scheduler.config)
    return pipe


def _opening(again: "Metadata", flags: frozenset[str]) -> dict[str, Any]:
    """What opens the model of a picture; nothing of a model that a flag puts another in place of."""
    same: dict[str, Any] = {
        "backend": again.backend,
        "precision": again.precision,
        "options": again.options,
        "transforms": again.transforms,
    }
    if "model" in flags:
        return same
    return {
        **same,
        "model": None if again.model == "shapes" else again.model,
        "revision": again.revision,
        "variant": again.variant,
        "scheduler_from": again.scheduler,
    }


def _inputs(
    pipe: "DiffusionPipeline",
    prompt: str | None,
    given: Mapping[str, Any],
    flags: frozenset[str],
    again: "Metadata | None",
) -> dict[str, Any]:
    """The inputs of the pipeline's task."""
    if again is None:
        inputs = task_inputs(pipe.task, prompt, given, flags)
    else:
        seeds = list(again.seeds)
        recorded = {**again.inputs, "seed": seeds[0] if len(seeds) == 1 else seeds}
        flagged = {name: value if name in flags else None for name, value in given.items()}
        inputs = recorded | task_inputs(pipe.task, prompt, flagged, flags)
    if "prompt" in pipe.task.inputs and "prompt" not in inputs:
        raise InputError('This model draws from words: perfuse generate "a red circle".')
    return inputs


# --- drawing ----------------------------------------------------------------------------------


def _last(events: "Iterable[Event]") -> Mapping[str, Any]:
    state: Mapping[str, Any] = {}
    for event in events:
        state = event.state
    return state


def _previewed(
    pipe: "DiffusionPipeline",
    events: "Iterable[Event]",
    watch: Watch,
    path: Path,
    every: int | None,
) -> Mapping[str, Any]:
    """The same, with the present guess of the pictures in a file, from time to time."""
    from perfuse.run.preview import decoded, guesses

    state: Mapping[str, Any] = {}
    writable = True
    for event, guess in guesses(pipe.task, events):
        state = event.state
        between = every if every is not None else math.ceil(event.total / 5)
        if guess is not None and writable and event.done % between == 0:
            writable = _write_preview(decoded(pipe.task, pipe, state, guess), path)
            watch.lap("preview")
    return state


def _write_preview(images: "list[Image]", path: Path) -> bool:
    """Put pictures side by side into a file; whether that could be done."""
    from PIL import Image

    from perfuse.arrays.pictures import save_png

    widths = [image.width for image in images]
    sheet = Image.new(images[0].mode, (sum(widths), images[0].height))
    for i, image in enumerate(images):
        sheet.paste(image, (sum(widths[:i]), 0))
    try:
        save_png(sheet, path)
    except InputError as exc:  # the pictures themselves may yet be written
        warnings.warn(f"There are no more previews: {exc}", stacklevel=2)
        return False
    return True


# --- where it goes ----------------------------------------------------------------------------


def _check_output(output: Path, as_json: bool) -> None:
    """Say before the work, not after it, that the picture cannot be written."""
    if output != _STDOUT:
        _check_writable("--output", output)
    elif as_json:
        raise InputError("--output - and --json were given; both write to standard output.")
    elif sys.stdout.isatty():
        raise InputError(
            "--output - was given; standard output is a terminal. Name a file, or another command: "
            "perfuse generate … --output - | display"
        )


def _check_writable(flag: str, path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{flag} {path} was asked for; there is no folder {folder}. Make it.")
    if path.is_dir():
        raise InputError(f"{flag} {path} is a folder; name a file in it, such as a.png.")
    if path.exists() and not _is_replaceable(path):
        raise InputError(
            f"{flag} {path} was asked for; what is there is not a picture, and stays. Name another "
            "file."
        )


def _is_replaceable(path: Path) -> bool:
    """Whether it is a picture, or an empty file."""
    from PIL import Image

    if not path.is_file():
        return False  # a device or a pipe
    try:
        if path.stat().st_size == 0:
            return True
        with Image.open(path):
            return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _preview_path(asked: str | None, output: Path) -> Path | None:
    if asked is None:
        return None
    if asked == _BESIDE and output == _STDOUT:
        raise InputError("--preview was given with --output -; name its file: --preview=a.png.")
    path = output.with_name(f"{output.stem}.preview.png") if asked == _BESIDE else Path(asked)
    if path.suffix.lower() != ".png":
        raise InputError(
            f"--preview {asked!r} was given; a preview is a PNG: --preview=a.png. Where the words "
            "follow that are to be drawn, put them before it."
        )
    if path == output:
        raise InputError(f"--preview and --output are both {path}; name two files.")
    _check_writable("--preview", path)
    return path


def _wanted(
    images: "list[Image]", flags: frozenset[str], again: "Metadata | None"
) -> "list[Image]":
    """All pictures; of a call that drew several, the one that is drawn again."""
    if again is None or again.pictures != len(images) or "num_images" in flags:
        return images
    return [images[again.picture]]


def _save(images: "list[Image]", output: Path, *, metadata: bool) -> list[Path]:
    from perfuse.arrays.pictures import png_bytes, save_pngs

    if output == _STDOUT:
        if len(images) > 1:
            raise InputError(
                f"--output - was given and {len(images)} pictures were drawn; standard output takes "
                "one. Name a file: each gets its number."
            )
        stream = sys.stdout.buffer
        stream.write(png_bytes(images[0], metadata=metadata))
        stream.flush()
        return [output]
    paths = _numbered(output, len(images))
    for path in paths:
        _check_writable("--output", path)
    try:
        return save_pngs(images, paths, metadata=metadata)
    except InputError as exc:  # the line was checked before the work: now it is the disk
        raise PerfuseError(str(exc)) from exc


def _numbered(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(count)]


# --- what is said of it -----------------------------------------------------------------------


def _where(pipe: "DiffusionPipeline") -> dict[str, str]:
    """For each component that ran: the target that was asked for, and what ran it."""
    found = {}
    for name, program in pipe.programs().items():
        report = program.report()
        also = f", partly on {', '.join(report.fallbacks)}" if report.fallbacks else ""
        text = f"{report.device}, {report.precision}, {report.engine}{also}"
        found[name] = f"{pipe.target(name)} ({text})"
    return found


def _result(
    pipe: "DiffusionPipeline",
    images: "list[Image]",
    paths: list[Path],
    seeds: Iterable[int],
    inputs: Mapping[str, Any],
    watch: Watch,
) -> dict[str, Any]:
    """What ``--json`` prints."""
    from perfuse.arrays.metadata import of

    noted = [of(image) for image in images]
    reports = {name: program.report() for name, program in pipe.programs().items()}
    return {
        "pictures": [str(path) for path in paths],
        "seeds": list(seeds),
        "model": noted[0].model,
        "prompt": inputs.get("prompt"),
        "components": {
            name: {
                "target": str(pipe.target(name)),
                "device": report.device,
                "precision": report.precision,
                "engine": report.engine,
                "fallbacks": list(report.fallbacks),
            }
            for name, report in reports.items()
        },
        "seconds": watch.seconds(),
        "metadata": [dataclasses.asdict(one) for one in noted],
    }
