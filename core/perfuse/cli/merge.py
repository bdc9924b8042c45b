"""``perfuse merge``."""

import json
from pathlib import Path
from typing import Any

import click

from perfuse.cli.common import (
    FILE,
    JSON,
    LORA,
    QUIET,
    load_loras,
    model_of,
    model_options,
    option,
    size_text,
)
from perfuse.cli.settings import Configured
from perfuse.cli.watch import watching
from perfuse.errors import InputError
from perfuse.report.console import say

__all__ = ["merge"]


@click.command(cls=Configured)
@model_options
@LORA
@click.option("--output", type=FILE, required=True, help="A new folder.")
@option("--precision", help="float32, float16 or bfloat16.")
@QUIET
@JSON
def merge(
    loras: tuple[str, ...],
    output: Path,
    precision: str | None,
    quiet: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Write a checkpoint with LoRAs in its weights, which Diffusers and perfuse open."""
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.sources.opening import open_model

    if not loras:
        raise InputError(
            "Nothing was given to merge: --lora FILE:WEIGHT, several times for several."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} holds other files. Name a new folder: --output.")
    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        source = open_model(**model_of(model))
        pipe = DiffusionPipeline.from_pretrained(
            source, backend="torch:cpu", precision=precision, offline=model["offline"]
        )
        watch.lap("open")
        watch.begin("Merging")
        load_loras(pipe, loras)
        pipe.fuse_lora()
        pipe.save_pretrained(output)
        watch.lap("write")
    sizes = [path.stat().st_size for path in output.rglob("*") if path.is_file()]
    if as_json:
        result = {"folder": str(output), "files": len(sizes), "bytes": sum(sizes)}
        click.echo(json.dumps({**result, "seconds": watch.seconds()}))
        return
    say(f"{output}  ({len(sizes)} files, {size_text(sum(sizes))})")
