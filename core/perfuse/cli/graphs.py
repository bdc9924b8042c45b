"""``perfuse graphs``: the graphs without weights that are known here."""

import json
from typing import Any

import click

from perfuse.cli.common import (
    JSON,
    NO_CHECKER,
    QUIET,
    added_to,
    model_of,
    model_options,
    option,
    parts_of,
    size_text,
    with_model,
)
from perfuse.cli.settings import Configured
from perfuse.cli.watch import watching
from perfuse.errors import InputError

__all__ = ["graphs"]


@click.group()
def graphs() -> None:
    """Graphs without weights: with one, every checkpoint of its configuration starts without torch."""


@graphs.command("list")
@JSON
def graphs_list(as_json: bool) -> None:
    """List the graphs that are known: those that come with perfuse, and those that were added."""
    from perfuse.run.graph_sets import graph_sets

    own, shipped = graph_sets()
    found = [("added", one) for one in own.graphs()]
    found += [("comes along", one) for one in shipped.graphs()]
    if as_json:
        rows = [
            {
                "of": one.of,
                "component": one.component,
                "class": one.class_name,
                "format": one.format,
                "precision": one.precision,
                "bytes": one.size,
                "from": whence,
            }
            for whence, one in found
        ]
        click.echo(json.dumps({"folder": str(own.folder), "graphs": rows}))
        return
    from perfuse.report.console import console, safe

    to, last = console(), ""
    for whence, one in sorted(found, key=lambda pair: (pair[0], pair[1].of, pair[1].component)):
        if one.of != last:
            to.print(safe(f"{one.of} ({whence})"))
            last = one.of
        what = f"{one.component:<16} {one.format:<9} {one.precision:<9}"
        to.print(safe(f"  {what} {size_text(one.size):>8}  {one.class_name}"))


@graphs.command("add", cls=Configured)
@click.argument("given", metavar="[MODEL]", required=False)
@model_options
@click.option(
    "--to", "formats", multiple=True, help="onnx or openvino; by default what can be made."
)
@option("--precision", help="float32, float16 or bfloat16.")
@NO_CHECKER
@QUIET
@JSON
def graphs_add(
    given: str | None,
    formats: tuple[str, ...],
    precision: str | None,
    no_safety_checker: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make the graphs of a MODEL's configuration, for all checkpoints of it; its configs will do."""
    from perfuse.run.graph_sets import own_graphs
    from perfuse.run.graphs import add_graph, apart_formats
    from perfuse.run.pipeline import DiffusionPipeline
    from perfuse.sources.configs_alone import with_or_without_weights
    from perfuse.sources.opening import open_model

    possible = apart_formats()
    if not possible:
        raise InputError(
            "Graphs were to be made; nothing that makes them is installed. Run: pip install "
            "'perfuse[export]'"
        )
    if unknown := [one for one in formats if one not in possible]:
        raise InputError(
            f"--to {' '.join(unknown)} was given; graphs without weights can be made here for "
            f"{', '.join(possible)}."
        )
    model = with_model(options, given)
    added = []
    with watching(show=not quiet) as watch:
        watch.begin("Opening the model")
        pipe = DiffusionPipeline.from_pretrained(
            with_or_without_weights(open_model(**model_of(model))),
            precision=precision,
            offline=model["offline"],
            **added_to(model),
            **parts_of(no_safety_checker),
        )
        watch.lap("open")
        of = pipe.source.model
        for format in formats or possible:
            for name in pipe.spec.components:
                path = add_graph(pipe.component(name), format, own_graphs(), of=of)
                added += [path] if path is not None else []
        watch.lap("write")
    if not added:
        raise InputError(f"{of} has no model whose graph does not depend on its weights.")
    size = sum(path.stat().st_size for path in added)
    if as_json:
        click.echo(json.dumps({"files": [str(path) for path in added], "bytes": size}))
        return
    click.echo(f"{own_graphs().folder}  ({len(added)} graphs, {size_text(size)})")
