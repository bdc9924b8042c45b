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
    check_own_parts,
    load_loras,
    model_of,
    model_options,
    option,
    size_text,
    weighted,
)
from perfuse.cli.settings import Configured
from perfuse.cli.watch import watching
from perfuse.errors import InputError
from perfuse.report.console import say

__all__ = ["merge"]


@click.command(cls=Configured)
@model_options
@LORA
@click.option(
    "--with",
    "fine_tunes",
    metavar="MODEL:WEIGHT",
    multiple=True,
    help="A fine-tune of the same model, and its share of the weights; several times for several.",
)
@click.option(
    "--minus", metavar="MODEL", help="Of each --with, count what it has learned beyond this one."
)
@click.option("--to", "format", help="Write an export in this format, not a checkpoint: onnx.")
@click.option("--output", type=FILE, required=True, help="A new folder.")
@option("--precision", help="float32, float16 or bfloat16.")
@QUIET
@JSON
def merge(
    loras: tuple[str, ...],
    fine_tunes: tuple[str, ...],
    minus: str | None,
    format: str | None,
    output: Path,
    precision: str | None,
    quiet: bool,
    as_json: bool,
    **model: Any,
) -> None:
    """Write a checkpoint, or an export, with LoRAs and fine-tunes in its weights.

    A fine-tune of share w makes (1 - w) a + w b of each weight of the denoiser and the text encoders;
    with --minus it makes a + w (b - c). The autoencoder stays the model's.
    """
    from perfuse.run.merging import load_fine_tune
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.sources.opening import open_model

    check_own_parts(model, "merge")
    if minus is not None and not fine_tunes:
        raise InputError(f"--minus {minus} was given without --with MODEL:WEIGHT.")
    if not loras and not fine_tunes:
        raise InputError(
            "Nothing was given to merge: --lora FILE:WEIGHT or --with MODEL:WEIGHT, several times for "
            "several."
        )
    shares = [_share(text) for text in fine_tunes]
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} holds other files. Name a new folder: --output.")
    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        source = open_model(**model_of(model))
        pipe = DiffusionPipeline.from_pretrained(
            source, backend="torch:cpu", precision=precision, offline=model["offline"]
        )
        others = [open_model(one, offline=model["offline"]) for one, _ in shares]
        before = open_model(minus, offline=model["offline"]) if minus is not None else None
        watch.lap("open")
        watch.begin("Merging")
        weights = {}
        for number, ((_, share), other) in enumerate(zip(shares, others, strict=True)):
            name = f"with_{number}"
            load_fine_tune(pipe, other, name=name, minus=before)
            weights[name] = share
        weights |= load_loras(pipe, loras)
        pipe.set_adapters(list(weights), list(weights.values()))
        pipe.fuse_lora()
        if format is None:
            pipe.save_pretrained(output)
        else:
            pipe.export(output, to=format)
        watch.lap("write")
    sizes = [path.stat().st_size for path in output.rglob("*") if path.is_file()]
    if as_json:
        result = {"folder": str(output), "files": len(sizes), "bytes": sum(sizes)}
        click.echo(json.dumps({**result, "seconds": watch.seconds()}))
        return
    say(f"{output}  ({len(sizes)} files, {size_text(sum(sizes))})")


def _share(text: str) -> tuple[str, float]:
    """The model and the number of ``MODEL:WEIGHT``."""
    model, share = weighted("--with", text)
    if model == text:
        raise InputError(f"--with {text} was given without its share: --with {text}:0.5.")
    return model, share
