"""The graph of each real configuration, in full depth and width, made without its weights.

Each is a process of its own, so that what it takes is its own, and one that fails ends no other. What
comes out is counted: operators by kind, bytes, among them those of numbers that the graph itself holds.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from sidebyside import Row, command, say

from perfuse import Checkpoint
from perfuse.backend import Component
from perfuse.contract.spec import ComponentSpec, Role
from perfuse.run.graph_sets import GraphSet
from perfuse.run.graphs import graph_file
from perfuse.sources.checkpoint import FromCheckpoint
from perfuse.sources.configs_alone import hollow_weights
from perfuse_conformance.checkpoints import REAL, write_configs

_MB, _GB = 1e6, 1e9
FORMATS = ("onnx", "openvino")
#: In this order: what matters most comes first.
_ROLES = (Role.DENOISER, Role.TEXT_ENCODER)
#: So many kinds of operators are named, the most frequent ones.
_NAMED = 6

#: What the child runs: it makes one graph, and tells what it is.
_CHILD = """
import json, sys, time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from perfuse import Checkpoint
from perfuse.backend import Component
from perfuse.memory import peak_memory
from perfuse.run.lowering import lowered
from perfuse.sources.checkpoint import FromCheckpoint
from perfuse.sources.configs_alone import hollow_weights

source, name, format, folder = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
spec = Checkpoint.open(source).spec.components[name]
hollow = hollow_weights(spec)
build = FromCheckpoint(spec=spec, weights=hollow, precision="float32")
component = Component(spec=spec, build=build)
began = time.perf_counter(), time.process_time()
main, weights = lowered(component, format, lambda e: e.export_graph(component, folder))
took = [now - then for now, then in zip((time.perf_counter(), time.process_time()), began)]
peak = peak_memory()
if format == "onnx":
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(main).graph
    kinds = Counter(node.op_type for node in graph.node if node.op_type != "Constant")
    tensors = [*graph.initializer]
    tensors += [a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute]
    held = sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors)
else:
    kinds = Counter(layer.get("type") for layer in ElementTree.parse(main).iter("layer"))
    for kind in ("Const", "Parameter", "Result"):
        kinds.pop(kind, None)
    held = main.with_suffix(".bin").stat().st_size
size = sum(file.stat().st_size for file in folder.iterdir())
print(json.dumps({"seconds": took[0], "processor": took[1], "peak": peak, "kinds": dict(kinds),
                  "held": held, "size": size, "weights": len(weights.constants),
                  "parameters": hollow.parameters}))
"""


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--case", choices=REAL, help="one checkpoint; all by default")
    parser.add_argument("--component", help="one component of each")
    parser.add_argument("--format", choices=FORMATS, help="one format")


def measure(options: Namespace) -> list[Row]:
    cases = [options.case] if options.case else list(REAL[:1] if options.quick else REAL)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        for case in cases:
            for spec in _own(Path(scratch), case):
                if options.component in (None, spec.name):
                    for format in (options.format,) if options.format else FORMATS:
                        rows.append(_made(case, Path(scratch) / case, spec.name, format))
    return rows


def _own(scratch: Path, case: str) -> list[ComponentSpec]:
    """The components that no earlier checkpoint has in the same way."""
    known = {
        name: Checkpoint.open(write_configs(scratch / name, name)).spec.components.values()
        for name in REAL[: REAL.index(case) + 1]
    }
    own = known.pop(case)
    earlier = [_face(one) for specs in known.values() for one in specs]
    found = [one for one in own if _face(one) not in earlier]
    return sorted(found, key=lambda one: (*_ROLES, one.role).index(one.role))


def _face(spec: ComponentSpec) -> str:
    """What a graph in the cache would be called: the same for all that have the same."""
    spec = replace(spec, name=str(spec.role))  # one may be the second of a pipeline
    build = FromCheckpoint(spec=spec, weights=hollow_weights(spec), precision="float32")
    file = graph_file(Component(spec=spec, build=build), FORMATS[0], GraphSet(folder=Path()))
    assert file is not None  # each of these can be had without its weights
    return file.name


def _made(case: str, folder: Path, name: str, format: str) -> Row:
    what = f"Graph of {case}'s {name} for {format}"
    say(what)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        child = [sys.executable, "-c", _CHILD, str(folder), name, format, output]
        done = subprocess.run(child, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        return Row(what=what, ours=0.0, unit="MB", figure=0.0, note=f"Not made: {said}")
    found = json.loads(done.stdout.splitlines()[-1])
    kinds = sorted(found["kinds"].items(), key=lambda pair: -pair[1])
    named = ", ".join(f"{count} {kind}" for kind, count in kinds[:_NAMED])
    return Row(
        what=what,
        ours=found["size"] / _MB,
        theirs=4 * found["parameters"] / _MB,
        unit="MB",
        against="float32 weights",
        figure=found["processor"],
        figure_unit="s",
        note=f"{sum(found['kinds'].values())} operators of {len(kinds)} kinds: {named}, …; "
        f"{found['held'] / _MB:.2f} MB of numbers, {found['weights']} weights; "
        f"{found['seconds']:.0f} s by the clock, {found['peak'] / _GB:.2f} GB at most.",
    )


if __name__ == "__main__":
    command(measure, __doc__, options)
