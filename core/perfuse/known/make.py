"""``python -m perfuse.known.make``: makes the graphs that come along; ``--check`` compares them.

No weights are read, nor is there memory for them: the models are built of tensors without content.
What their ``config.json`` say, as far as it is not the default, is in ``configurations.json``: as the
repositories of CompVis, Stability AI, Runway and the authors of latent consistency models have it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from perfuse.contract.component import Component
from perfuse.contract.spec import ComponentSpec
from perfuse.known import GRAPHS
from perfuse.models.registry import describe, fitted
from perfuse.run.graph_sets import GraphSet, contents
from perfuse.run.graphs import add_graph, graph_file
from perfuse.shapes import BUNDLED
from perfuse.sources.checkpoint import Checkpoint, FromCheckpoint
from perfuse.sources.configs_alone import hollow_weights
from perfuse.sources.weights import Hollow

__all__ = ["components", "configurations", "differing", "hollow", "made"]


def components() -> Iterator[tuple[str, Component, str]]:
    """Every component whose graph comes along: what it is of, itself, and the graph's format."""
    for of, component, formats in configurations():
        yield from ((of, component, format) for format in formats)


def configurations() -> Iterator[tuple[str, Component, Sequence[str]]]:
    """Every component that is known: what it is of, itself, and the formats that come along.

    Most of them have no tensors: see `hollow`.
    """
    for of, bundled in BUNDLED.items():
        checkpoint = Checkpoint.open(bundled.folder)
        for name in checkpoint.spec.components:
            yield of, checkpoint.component(name), ("onnx", "openvino")
    known = json.loads((Path(__file__).parent / "configurations.json").read_text("utf-8"))
    for of, said in known["pipelines"].items():
        models = {name: known["models"][model] for name, model in said["models"].items()}
        for spec in _specs(models):
            yield of, _of_nothing(spec), said["formats"]


def _specs(models: Mapping[str, Mapping[str, Any]]) -> list[ComponentSpec]:
    described = [describe(one["class"], name, name, one["config"]) for name, one in models.items()]
    return list(fitted({spec.name: spec for specs in described for spec in specs}).values())


def _of_nothing(spec: ComponentSpec) -> Component:
    """A component without tensors: enough to know what its graph depends on."""
    weights = Hollow(
        folder=Path(spec.folder), files=(), variant=None, shapes={}, fingerprint="", total_bytes=0
    )
    build = FromCheckpoint(spec=spec, weights=weights, precision="float32")
    return Component(spec=spec, build=build)


def hollow(component: Component) -> Component:
    """The component with tensors that have no content, if it has none."""
    build = component.build
    if not isinstance(build, FromCheckpoint) or build.weights.shapes:
        return component
    return replace(component, build=replace(build, weights=hollow_weights(component.spec)))


def made(to: GraphSet, only: str = "") -> Iterator[Path]:
    """Make the graphs that a set lacks, one at a time; those whose name has ``only`` in it."""
    for of, component, format in components():
        path, what = graph_file(component, format, to), f"{of}: {component.name}, {format}"
        if path is None or path.exists() or only not in what:
            continue
        click.echo(what, err=True)
        added = add_graph(hollow(component), format, to, of=of)
        if added is None:
            raise click.ClickException(f"{what}: the exporter could not make it without weights.")
        yield added


def differing(one: Path, other: Path) -> list[str]:
    """The names of the files that two archives have not in common."""
    first, second = contents(one), contents(other)
    return [n for n in sorted({*first, *second}) if first.get(n) != second.get(n)]


@click.command()
@click.option("--only", default="", help='Those whose name has this in it: "refiner: unet, onnx".')
@click.option("--check", is_flag=True, help="Make them anew, and compare.")
def main(only: str, check: bool) -> None:
    """Make the graphs that come along and are not there, and remove what no longer belongs to them."""
    shipped = GraphSet(folder=GRAPHS)
    wanted = {graph_file(one, format, shipped) for _, one, format in components()}
    stale = [path for path in GRAPHS.iterdir() if path not in wanted and "__" not in path.name]
    missing = [path.name for path in wanted if path is not None and not path.is_file()]
    if not check:
        for path in stale:
            path.unlink()
        click.echo(f"{len(list(made(shipped, only)))} graphs made")
        return
    with TemporaryDirectory() as scratch:
        anew = made(GraphSet(folder=Path(scratch)), only)
        others = {path.name: differing(path, GRAPHS / path.name) for path in anew}
    wrong = [f"{name} ({', '.join(files)})" for name, files in others.items() if files]
    wrong += [f"{path.name} (belongs to none)" for path in stale] + missing
    if wrong:
        raise click.ClickException(f"Run python -m perfuse.known.make. Wrong: {'; '.join(wrong)}")
    click.echo(f"{len(others)} graphs are as they were made")


if __name__ == "__main__":
    main()
