"""``perfuse export``."""

import json
from pathlib import Path
from typing import Any

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
    read_options,
    size_text,
)
from perfuse.cli.settings import Configured
from perfuse.cli.watch import watching
from perfuse.errors import InputError, NotNativeError
from perfuse.report.console import say

__all__ = ["export"]


@click.command(cls=Configured)
@model_options
@click.option("--to", "format", required=True, help="onnx, openvino, or another exporter's format.")
@click.option("--output", type=FILE, required=True, help="A new folder.")
@option("--precision", help="float32 or float16.")
@option("--height", type=int, help="Fix the height in pixels; by default any size.")
@option("--width", type=int, help="Fix the width in pixels.")
@TRANSFORM
@LORA
@IP_ADAPTER
@NO_CHECKER
@click.option("--batch", type=int, help="Fix the batch size of every component.")
@click.option("--size", "sizes", multiple=True, help="HEIGHTxWIDTH, several times for several.")
@click.option("--option", "switches", multiple=True, help="An exporter's switch: palettize=6.")
@click.option("--dialect", help="Whose names and layout: apple. The same as --option dialect=….")
@BRIDGED
@ARGUMENT
@QUIET
@JSON
@click.pass_context
def export(ctx: click.Context, /, **given: Any) -> None:
    """Write a model in an engine's format, to run without torch.

    A bridged pipeline is drawn with once, and written with the graphs that this made; it needs torch
    and Diffusers where it runs.
    """
    if not through_diffusers.runs_bridged(given):
        try:
            _export(**given)
            return
        except NotNativeError:
            if not through_diffusers.has_diffusers():
                raise
    source = ctx.get_parameter_source
    flags = frozenset(name for name in ctx.params if source(name) is ParameterSource.COMMANDLINE)
    folder = through_diffusers.export(given, flags)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    if given["as_json"]:
        result = {"folder": str(folder), "run": "bridged", "files": len(sizes)}
        click.echo(json.dumps({**result, "bytes": sum(sizes)}))
        return
    say(f"{folder}  ({len(sizes)} files, {size_text(sum(sizes))})")


def _export(
    *,
    format: str,
    output: Path,
    precision: str | None,
    height: int | None,
    width: int | None,
    transforms: tuple[str, ...],
    loras: tuple[str, ...],
    ip_adapters: tuple[str, ...],
    no_safety_checker: bool,
    batch: int | None,
    sizes: tuple[str, ...],
    switches: tuple[str, ...],
    dialect: str | None,
    quiet: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Export models of perfuse's own.

    Raises:
        NotNativeError: the model is of a class that has none.
    """
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.sources.manifest import Manifest
    from perfuse.sources.opening import open_model

    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        pipe = DiffusionPipeline.from_pretrained(
            open_model(**model_of(model)),
            variant=model["variant"],
            offline=model["offline"],
            **added_to(model),
            precision=precision,
            transforms=transforms,
            **parts_of(no_safety_checker),
        )
        through_diffusers.check_native(model)
        load_ip_adapters(pipe, ip_adapters)
        load_loras(pipe, loras)
        watch.lap("open")
        watch.begin(f"Exporting to {format}")
        folder = pipe.export(
            output,
            to=format,
            height=height,
            width=width,
            batch=batch,
            sizes=[_read_size(size) for size in sizes],
            options=read_options(switches) | ({"dialect": dialect} if dialect else {}),
        )
        watch.lap("write")
    files = Manifest.read(folder).files
    size = sum(int(entry["size"]) for entry in files.values())
    if as_json:
        result = {"folder": str(output), "files": len(files), "bytes": size}
        click.echo(json.dumps({**result, "seconds": watch.seconds()}))
        return
    say(f"{output}  ({len(files)} files, {size_text(size)})")
    if not quiet:
        say(watch.summary(), err=True)


def _read_size(text: str) -> tuple[int, int]:
    height, by, width = text.lower().partition("x")
    if not by or not height.isdecimal() or not width.isdecimal():
        raise InputError(f"--size {text!r} was given; a size is written HEIGHTxWIDTH: 512x768.")
    return int(height), int(width)
