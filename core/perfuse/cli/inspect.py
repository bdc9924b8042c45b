"""``perfuse inspect``."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from perfuse.cli import bridged as through_diffusers
from perfuse.cli.common import (
    BRIDGED,
    FILE,
    JSON,
    added_to,
    model_of,
    model_options,
    option,
    with_model,
)
from perfuse.cli.settings import Configured
from perfuse.cli.watch import watching
from perfuse.errors import NotNativeError

if TYPE_CHECKING:
    from perfuse.contract.source import Source

__all__ = ["inspect"]


@click.command(cls=Configured)
@click.argument("given", metavar="[MODEL|PICTURE]", required=False, type=FILE)
@model_options
@click.option("--verify", is_flag=True, help="Check the SHA-256 of every exported file.")
@click.option("--for", "target", help="Report what a target would say; it need not be here.")
@option("--precision", help="With --for: float32, float16 or bfloat16.")
@option("--height", type=int, help="With --for: the height in pixels, fixed.")
@option("--width", type=int, help="With --for: the width in pixels, fixed.")
@click.option("--batch", type=int, help="With --for: the batch, fixed.")
@click.option(
    "--memory",
    is_flag=False,
    flag_value="auto",
    help="What to keep of the weights at a time: 6GB, low or auto, which it is without a value; "
    "with --for, the device's.",
)
@option("--backend", help="With --memory: where it would run.")
@BRIDGED
@JSON
@click.pass_context
def inspect(
    ctx: click.Context,
    /,
    given: Path | None,
    verify: bool,
    target: str | None,
    precision: str | None,
    height: int | None,
    width: int | None,
    batch: int | None,
    memory: str | None,
    backend: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Print a MODEL's spec: components, signatures, sizes, schedule, tasks. Loads no weights.

    Of a checkpoint whose weights are not there, count them from the configs, and say what would fit.

    With --for, say what a target would make of each component, without the target; exit with 1 if
    one would not run. Of a PICTURE, print what it was drawn from and with.
    """
    from perfuse.report.tables import print_bridged, print_spec
    from perfuse.sources.configs_alone import ConfigsAlone, with_or_without_weights
    from perfuse.sources.opening import open_model
    from perfuse.sources.plain import to_plain

    if given is not None and _is_picture(given):
        _inspect_picture(given, as_json)
        return
    model = with_model(options, str(given) if given is not None else None)
    source = None
    if not through_diffusers.runs_bridged(model):
        try:
            source = open_model(**model_of(model))
        except NotNativeError:
            if target is not None or not through_diffusers.has_diffusers():
                raise
    if source is not None:
        source = with_or_without_weights(source)
    else:
        found = through_diffusers.inspect_model(model)
        if as_json:
            click.echo(json.dumps(found))
        else:
            print_bridged(found)
        return
    if added := added_to(model):
        from perfuse.run.adding import with_added

        source, _ = with_added(source, added, variant=model["variant"], offline=model["offline"])
    if verify:
        source.verify()
    if target is not None:
        asked = {"precision": precision, "height": height, "width": width, "batch": batch}
        ctx.exit(_inspect_for(source, target, memory, as_json, asked))
    if memory is not None:
        _inspect_memory(source, memory, precision, backend, as_json)
        return
    if as_json:
        data = {
            "model": source.model,
            "run": "native",
            **to_plain(source.spec),
            "weight_bytes": dict(source.weight_bytes()),
        }
        if source.layout is not None:
            data["layout"] = source.layout
        if isinstance(source, ConfigsAlone):
            data["parameters"] = source.parameters()
        if source.exported():
            data["exported"] = to_plain(source.exported())
        click.echo(json.dumps(data))
        return
    print_spec(source)


def _inspect_memory(
    source: "Source", memory: str, precision: str | None, backend: str | None, as_json: bool
) -> None:
    """Print what a pipeline would keep of its weights within so much memory."""
    from perfuse.run.pipeline import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(source, precision=precision, backend=backend)
    found = pipe.residency
    budget, together = found.budget(memory), list[str]()
    rows = []
    for stage in found.stages:
        for name in stage:
            gone = found.released(together, name, budget)
            together = [one for one in together if one not in gone] + [name]
        rooms = {name: found.room(name, budget) for name in stage}
        rows.append(
            {
                "runs": stage,
                "in_memory": list(together),
                "bytes": found.of(together, budget),
                "in_pieces": {name: room for name, room in rooms.items() if room is not None},
            }
        )
    if as_json:
        sizes = {"weights": dict(found.sizes), "whole": found.whole, "least": found.least}
        click.echo(json.dumps({"model": source.model, **sizes, "budget": budget, "plan": rows}))
        return
    from perfuse.report.tables import print_memory

    print_memory(source.model, found.whole, found.least, budget, rows)


def _inspect_for(
    source: "Source",
    text: str,
    memory: str | None,
    as_json: bool,
    asked: Mapping[str, Any],
) -> int:
    """Print the portability report; 1 where a component would not run."""
    from perfuse.contract.target import Target
    from perfuse.memory import read_size
    from perfuse.report.portability import limits_of, report, verdicts

    target = Target.parse(text)
    name, limits = limits_of(target)
    executed = limits.executed if limits is not None else ""
    room = read_size(memory) if memory is not None else None
    with watching(show=True):
        findings = report(source, target, memory=room, **asked)
    found = verdicts(findings)
    if as_json:
        result = {
            "model": source.model,
            "target": name,
            "executed": executed,
            "verdicts": found,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        click.echo(json.dumps(result))
    else:
        from perfuse.report.tables import print_findings

        print_findings(source.model, name, findings, executed)
    return int("does not run" in found.values())


def _is_picture(given: Path) -> bool:
    """Whether it is a picture's file, and no model's folder, file or Hub id."""
    suffix = given.suffix.lower()
    if suffix in (".png", ".jpg", ".jpeg", ".webp"):
        return True
    return given.is_file() and suffix not in (".safetensors", ".gguf", ".ckpt")


def _inspect_picture(path: Path, as_json: bool) -> None:
    """Print what a picture was drawn from and with."""
    from perfuse.arrays.metadata import read

    metadata = read(path)
    if as_json:
        click.echo(json.dumps({"file": str(path), **dataclasses.asdict(metadata)}))
        return
    from perfuse.report.tables import print_metadata

    print_metadata(str(path), metadata)
