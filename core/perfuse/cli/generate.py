"""``perfuse generate``."""

import dataclasses
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from perfuse.cli import bridged as through_diffusers
from perfuse.cli.common import (
    ARGUMENT,
    BRIDGED,
    FILE,
    IP_ADAPTER,
    JSON,
    LORA,
    NO_CHECKER,
    QUIET,
    TRANSFORM,
    added_to,
    load_ip_adapters,
    load_loras,
    model_of,
    model_options,
    option,
    parts_of,
    preset_options,
    read_options,
)
from perfuse.cli.settings import Configured
from perfuse.cli.task_options import TaskOption, fitting, task_options
from perfuse.cli.watch import Watch, watching
from perfuse.errors import InputError, NotNativeError, PerfuseError
from perfuse.report.console import safe, say
from perfuse.shapes import BUNDLED
from perfuse.sources.files import check_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from perfuse.arrays.metadata import Metadata
    from perfuse.contract.steps import Event, Task
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.schedulers import Scheduler

__all__ = ["generate"]

_STDOUT = Path("-")
_BESIDE = "beside the output"


class _Generate(Configured):
    """A command with the options of all tasks; of plugins' tasks only if one of theirs is given."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        at = next(i for i, one in enumerate(own) if one.name == "options")
        return [*own[:at], *(one.made() for one in _options(ctx)), *own[at:]]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {flag for one in self.get_params(ctx) for flag in (*one.opts, *one.secondary_opts)}
        asked = {arg.partition("=")[0] for arg in args if arg.startswith("--") and arg != "--"}
        ctx.meta[_PLUGINS] = not asked <= known
        return super().parse_args(ctx, args)


_PLUGINS = "perfuse.plugins"


def _options(ctx: click.Context) -> tuple[TaskOption, ...]:
    return task_options(plugins=ctx.meta.get(_PLUGINS, False))


@click.command(cls=_Generate)
@click.argument("prompt", required=False)
@model_options
@option("--backend", help="BACKEND[:DEVICE], or one a component: unet=openvino:GPU,torch:cpu.")
@option("--precision", help="float32, float16 or bfloat16.")
@option("--scheduler", help="ddim, euler, dpm++, unipc, … instead of the checkpoint's.")
@click.option("--option", "options", multiple=True, help="A backend's switch: compile=true.")
@TRANSFORM
@preset_options
@LORA
@IP_ADAPTER
@click.option(
    "--lora-folder",
    type=FILE,
    help="Read <lora:NAME:0.8> in the prompt, and take the files from this folder.",
)
@NO_CHECKER
@click.option(
    "--embedding",
    "embeddings",
    metavar="FILE[:TOKEN]",
    multiple=True,
    help="A textual inversion, and its word in the prompt.",
)
@click.option(
    "--from",
    "origin",
    metavar="PICTURE",
    type=FILE,
    help="Draw a PNG of perfuse again; flags beside it win.",
)
@click.option(
    "--output",
    type=FILE,
    default=Path("picture.png"),
    show_default=True,
    help="The PNG to write; - for standard output.",
)
@option(
    "--memory", help="Keep the weights of no more components than this takes: 6GB, low or auto."
)
@click.option("--vae-tiling", is_flag=True, help="Decode and encode large pictures in tiles.")
@click.option("--vae-slicing", is_flag=True, help="Decode and encode pictures one by one.")
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
@click.option(
    "--preview-vae",
    metavar="MODEL",
    help="Draw previews by a small autoencoder, such as TAESD: its folder or Hub id.",
)
@BRIDGED
@ARGUMENT
@click.option("--fps", type=click.IntRange(min=1), default=8, help="Pictures a second of a video.")
@QUIET
@JSON
@click.pass_context
def generate(ctx: click.Context, /, **given: Any) -> None:
    """Draw pictures, from PROMPT where the model takes one."""
    source = ctx.get_parameter_source
    flags = frozenset(name for name in ctx.params if source(name) is ParameterSource.COMMANDLINE)
    if not through_diffusers.runs_bridged(given):
        try:
            _generate(ctx, flags, **given)
            return
        except NotNativeError:
            if given["origin"] is not None or not through_diffusers.has_diffusers():
                raise
    through_diffusers.generate(given, flags, _options(ctx), usual="output" not in flags)


def _generate(
    ctx: click.Context,
    flags: frozenset[str],
    *,
    prompt: str | None,
    origin: Path | None,
    output: Path,
    no_metadata: bool,
    preview: str | None,
    preview_every: int | None,
    preview_vae: str | None,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Draw with models of perfuse's own.

    Raises:
        NotNativeError: the model is of a class that has none.
    """
    prompt, given["loras"] = _tagged(prompt, given)
    again = _read(origin, flags) if origin is not None else None
    _check_output(output, as_json)
    if preview is None and preview_vae is not None:
        preview = _BESIDE
    shown = _preview_path(preview, output)
    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        pipe = _opened(given, flags, again)
        through_diffusers.check_native(given)
        task, inputs = _inputs(pipe, prompt, given, flags, _options(ctx), again)
        watch.lap("open")
        draw = _drawing(pipe, task, preview_vae, given["offline"]) if shown is not None else None
        events = watch.follow(task, pipe.stream(task=task.name, **inputs))
        if draw is not None and shown is not None:
            events = _previewed(draw, task, events, watch, shown, preview_every)
        state: Mapping[str, Any] = {}
        for event in events:
            state = event.state
    images = _wanted(state["images"], flags, again)
    paths = _save(images, output, metadata=not no_metadata)
    if as_json:
        result = _result(pipe, images, paths, state, inputs, watch)
        click.echo(json.dumps(result))
        return
    seeds = ", ".join(map(str, state["seeds"]))
    for path in paths:
        say(f"{path}  (seed {seeds})", err=output == _STDOUT)
    if not quiet:
        say(watch.summary(_where(pipe)), err=True)


# --- inputs -----------------------------------------------------------------------------------


def _read(origin: Path, flags: frozenset[str]) -> "Metadata":
    """A picture's metadata; prints what will be opened because of it."""
    from perfuse.arrays.metadata import read

    again = read(origin)
    named = [f"model {again.model}"] if "model" not in flags else []
    if "backend" not in flags:
        options = "".join(f", {name}={value}" for name, value in again.options.items())
        named.append(f"backend {again.backend}{options if 'options' not in flags else ''}")
    if again.transforms and "transforms" not in flags:
        named.append(f"transforms {', '.join(again.transforms)}")
    if again.loras and "loras" not in flags:
        named.append(f"LoRAs {', '.join(str(one['file']) for one in again.loras)}")
    if named:
        say(f"perfuse: {origin} names {'; '.join(named)}.", err=True)
    if other := [one for one in again.replaced if one not in flags]:
        warnings.warn(
            f"{safe(origin)} was drawn with another {safe(', '.join(other))} than its model "
            "has, which the picture does not hold: expect another picture.",
            stacklevel=2,
        )
    return again


def _opened(
    given: Mapping[str, Any], flags: frozenset[str], again: "Metadata | None"
) -> "DiffusionPipeline":
    """The pipeline, from the picture's metadata if there is any, overridden by flags."""
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.run.presets import preset
    from perfuse.schedulers import scheduler_class
    from perfuse.sources.opening import open_model

    opening = {
        **model_of(given),
        **added_to(given),
        "backend": given["backend"],
        "precision": given["precision"],
        "options": read_options(given["options"]),
        "transforms": given["transforms"],
        **parts_of(given["no_safety_checker"]),
    }
    if again is not None:
        opening |= {n: v for n, v in _opening(again, flags).items() if n not in flags}
    scheduler = _scheduler(again) if again is not None and not flags & _OTHERS else None
    source = open_model(**model_of(opening))
    settings = {name: value for name, value in opening.items() if name not in model_of(opening)}
    if given["preset"] is not None:
        chosen = preset(given["preset"], source.spec)
        settings["transforms"] = (*chosen, *settings["transforms"])
    added_with = {name: opening[name] for name in ("variant", "offline")}  # to components added
    pipe = DiffusionPipeline.from_pretrained(source, **added_with, **settings)
    for text in given["embeddings"]:
        file, token = _embedding(text)
        pipe.load_textual_inversion(file, token=token)
    load_ip_adapters(pipe, given["ip_adapters"])
    if given["loras"] or again is None:
        load_loras(pipe, given["loras"])
    else:
        _load_again(pipe, again)
    pipe.keep_within(given["memory"])
    pipe.vae_tiling, pipe.vae_slicing = given["vae_tiling"], given["vae_slicing"]
    if scheduler is not None:
        pipe.scheduler = scheduler
    elif given["scheduler"] is not None and (again is None or "scheduler" in flags):
        pipe.scheduler = scheduler_class(given["scheduler"]).from_config(pipe.scheduler.config)
    return pipe


def _tagged(prompt: str | None, given: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The prompt without the LoRAs that it names, and ``--lora`` with these."""
    folder = given["lora_folder"]
    if folder is None or prompt is None:
        return prompt, given["loras"]
    from perfuse.sources.adapters.tags import read_tags

    prompt, tags = read_tags(prompt, folder)
    return prompt, (*given["loras"], *(f"{file}:{weight}" for file, weight in tags))


def _load_again(pipe: "DiffusionPipeline", again: "Metadata") -> None:
    """Load a picture's LoRAs, and say so if a file is another one now."""
    load_loras(pipe, [f"{one['file']}:{one['weight']}" for one in again.loras])
    found = [one["fingerprint"] for one in pipe.loras.recorded(1.0)]
    for one, now in zip(again.loras, found, strict=True):
        if one["fingerprint"] != now:
            warnings.warn(
                f"{safe(one['file'])} is not the LoRA that the picture was drawn with: expect "
                "another picture.",
                stacklevel=2,
            )


def _embedding(text: str) -> tuple[str, str | None]:
    """The file and the word of ``FILE[:TOKEN]``."""
    file, colon, token = text.rpartition(":")
    if not colon or not token or Path(text).exists() or len(file) < 2:  # one letter is a drive
        return text, None
    return file, token


def _opening(again: "Metadata", flags: frozenset[str]) -> dict[str, Any]:
    """The arguments that open a picture's model, without those that a flag overrides."""
    same: dict[str, Any] = {"precision": again.precision, "transforms": again.transforms}
    if "backend" not in flags:  # options belong to a backend
        same |= {"backend": again.backend, "options": again.options}
    if "model" not in flags:
        bundled = BUNDLED.get(again.model)  # whatever folder of that name is here
        model = again.model if bundled is None else bundled.folder
        same |= {"model": model, "revision": again.revision, "variant": again.variant}
    if not flags & _OTHERS:
        same |= {"scheduler_from": again.scheduler}
    return same


#: The flags that override a picture's scheduler.
_OTHERS = frozenset({"scheduler", "scheduler_from", "model"})


def _scheduler(again: "Metadata") -> "Scheduler":
    """The scheduler in a picture's metadata, which is untrusted."""
    from perfuse.schedulers import scheduler_from_config

    wrong = (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, MemoryError)
    try:
        return scheduler_from_config(again.scheduler)
    except (PerfuseError, *wrong) as exc:
        raise InputError(
            f"The picture was to be drawn again; its scheduler cannot be used: {safe(exc)} Name "
            "another: --scheduler NAME."
        ) from exc


def _inputs(
    pipe: "DiffusionPipeline",
    prompt: str | None,
    given: Mapping[str, Any],
    flags: frozenset[str],
    options: tuple[TaskOption, ...],
    again: "Metadata | None",
) -> "tuple[Task, dict[str, Any]]":
    """The task to run, and its inputs."""
    if again is None:
        task, inputs = fitting(pipe.tasks, prompt, given, flags, options=options)
    else:
        seeds = list(again.seeds)
        seed = {"seed": seeds[0] if len(seeds) == 1 else seeds} if seeds else {}
        task, inputs = fitting(
            pipe.tasks,
            prompt,
            {name: value for name, value in given.items() if name in flags},
            flags,
            options=options,
            recorded={**again.inputs, **seed},
            usual=again.task,
        )
        _check_recorded(task, {**inputs, **dict.fromkeys(flags)}, again)
    words = task.inputs.get("prompt")
    if words is not None and words.default is None and "prompt" not in inputs:
        raise InputError('This model draws from words: perfuse generate "a red circle".')
    return task, inputs


def _check_recorded(task: "Task", given: Mapping[str, Any], again: "Metadata") -> None:
    """Raise ``InputError`` for metadata that the task cannot take, or that nothing is given for."""
    lost = [name for name in again.unrecorded if name not in given]
    if lost:
        raise InputError(
            f"The picture was to be drawn again; it was drawn with {', '.join(lost)}, which a "
            "picture cannot hold. Give that too, or draw it where it is."
        )
    for name, value in again.inputs.items():
        one = task.inputs.get(name)
        if one is None and task.name == again.task:
            raise InputError(
                f"The picture was to be drawn again; it was given {safe(name)}, and {task.name} "
                f"takes {', '.join(task.inputs)}. Use the perfuse that wrote it."
            )
        # Strings, and lists of numbers such as timesteps; a task checks its numbers itself.
        values = value if isinstance(value, list) else [value]
        kind = str if one is not None and one.kind is str else int | float
        listed = one is not None and one.kind is None
        if not all(isinstance(v, kind) for v in values) or (listed and value is not values):
            raise InputError(
                f"The picture was to be drawn again; its {safe(name)} is {value!r}, which is of "
                "another type. Use the perfuse that wrote it."
            )


# --- running ----------------------------------------------------------------------------------


#: An event and the clean sample that it predicts, to pictures.
_Draw = Callable[["Event", Any], "list[Image]"]


def _drawing(
    pipe: "DiffusionPipeline", task: "Task", vae: str | None, offline: bool | None
) -> _Draw:
    """What draws previews: the small autoencoder that was named, or the pipeline's own."""
    from perfuse.run import preview

    decoder = preview.preview_decoder(pipe, vae, offline=offline) if vae is not None else None

    def draw(event: "Event", latents: Any) -> "list[Image]":
        images: list[Image] = preview.decoded(pipe, task, event, latents, decoder)
        return images

    return draw


def _previewed(
    draw: _Draw,
    task: "Task",
    events: "Iterable[Event]",
    watch: Watch,
    path: Path,
    every: int | None,
) -> "Iterator[Event]":
    """Pass on the events; every few steps, write a preview of the pictures to a file."""
    from perfuse.run.preview import guess

    writable = True
    for event in events:
        between = every if every is not None else math.ceil(event.total / 5)
        latents = guess(task, event) if writable and event.done % between == 0 else None
        if latents is not None:
            writable = _write_preview(draw(event, latents), path)
            watch.lap("preview")
        yield event


def _write_preview(images: "list[Image]", path: Path) -> bool:
    """Write pictures side by side into one file; return whether it worked."""
    from PIL import Image

    from perfuse.arrays.pictures import save_png

    widths = [image.width for image in images]
    sheet = Image.new(images[0].mode, (sum(widths), images[0].height))
    for i, image in enumerate(images):
        sheet.paste(image, (sum(widths[:i]), 0))
    try:
        save_png(sheet, path)
    except InputError as exc:  # the final pictures may still be written
        warnings.warn(f"There are no more previews: {exc}", stacklevel=2)
        return False
    return True


# --- output files -----------------------------------------------------------------------------


def _check_output(output: Path, as_json: bool) -> None:
    """Fail before the work, not after it, if the picture cannot be written."""
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
    check_folder(flag, path)
    if os.path.isdir(path):
        raise InputError(f"{flag} {path} is a folder; name a file in it, such as a.png.")
    if os.path.lexists(path) and not _is_replaceable(path):
        raise InputError(
            f"{flag} {path} was asked for; what is there is not a picture, and stays. Name another "
            "file."
        )


def _is_replaceable(path: Path) -> bool:
    """Whether an existing file is a picture or empty, so that it may be replaced."""
    from perfuse.arrays.reading import picture_file

    try:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            return True
        with picture_file(path):
            return True
    except (InputError, OSError):
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
    """The pictures to write: all, or with ``--from`` only the one that the file was."""
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
    except InputError as exc:  # the path was checked before the work, so the disk failed
        raise PerfuseError(str(exc)) from exc


def _numbered(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(count)]


# --- messages ---------------------------------------------------------------------------------


def _where(pipe: "DiffusionPipeline") -> dict[str, str]:
    """Component to its target and what really ran it: device, precision, engine."""
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
    state: Mapping[str, Any],
    inputs: Mapping[str, Any],
    watch: Watch,
) -> dict[str, Any]:
    """What ``--json`` prints."""
    from perfuse.arrays.metadata import of

    noted = [of(image) for image in images]
    reports = {name: program.report() for name, program in pipe.programs().items()}
    return {
        "pictures": [str(path) for path in paths],
        "seeds": list(state["seeds"]),
        "nsfw_content_detected": state.get("nsfw_content_detected"),
        "model": noted[0].model,
        "prompt": inputs.get("prompt"),
        "approximate": list(pipe.approximate),
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
