"""What listing ten plugins takes over starting Python: their manifests are imported, no engine is.

The plugins are ten distributions in a temporary folder, each with a backend and an exporter; those of
the environment are found and left alone.
"""

import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from sidebyside import Row, command, compare, in_turns, run_process

COUNT = 10
PLUGIN = '''"""A plugin."""

from perfuse import BackendManifest, ExporterManifest, hookimpl


@hookimpl
def perfuse_backends():
    return [BackendManifest(name="{name}", impl="{name}.backend:Engine", requires=("json",))]


@hookimpl
def perfuse_exporters():
    return [ExporterManifest(format="{name}", impl="{name}.exporter:Exporter")]
'''


def measure(options: Namespace) -> list[Row]:
    rounds = options.rounds or (10 if options.quick else 50)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        names = [_install(Path(folder), i) for i in range(COUNT)]
        os.environ["PYTHONPATH"] = folder
        os.environ["PERFUSE_PLUGINS"] = ",".join(names)
        return [
            _row("perfuse backends --no-devices --json", rounds),
            _row("perfuse plugin list --json", rounds),
        ]


def _install(folder: Path, number: int) -> str:
    """A distribution with one plugin, as pip leaves it."""
    name = f"bench_plugin_{number}"
    (folder / f"{name}.py").write_text(PLUGIN.format(name=name), encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[perfuse.v1]\n{name} = {name}\n", encoding="utf-8")
    return name


def _row(line: str, rounds: int) -> Row:
    script, *arguments = line.split()
    listing = [Path(sys.executable).with_name(script), *arguments]
    sides = {
        "listing": lambda: run_process(listing),
        "nothing": lambda: run_process([sys.executable, "-c", "pass"]),
    }
    in_turns(2, sides)  # bytecode and the files' pages
    found = in_turns(rounds, sides)
    row = compare(line, found["listing"], found["nothing"], unit="s", against="`pass`")
    extra = row.ours - (row.theirs or 0.0)
    return Row(
        what=f"Listing {COUNT} plugins, `{line}`",
        ours=row.ours,
        theirs=row.theirs,
        unit="s",
        against="`pass`",
        figure=max(extra, 0.0),
        figure_unit="s",
        target=0.15,
        note="The figure is what the command takes over a process that does nothing.",
    )


if __name__ == "__main__":
    command(measure, __doc__)
