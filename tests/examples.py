"""Runs what a page shows, its Python and its ``$ perfuse`` lines, in one process.

A block with a file's name behind its language is a file: ``python acme.py``. Its modules and the entry
points of its ``pyproject.toml`` are installed before the first example runs.

``python tests/examples.py PAGE`` runs a page in the folder that it is called from.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

__all__ = ["check_examples"]

_FILE = re.compile(r"^```\w+ +(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class _ConsoleParser(CodeBlockParser):
    """Runs the lines of a console block that begin with ``$ perfuse``; no shell reads them."""

    def __init__(self) -> None:
        super().__init__(language="console")

    def evaluate(self, example: Example) -> str | None:
        lines = str(example.parsed).replace("\\\n", "").splitlines()
        for line in lines:
            if line.startswith("$ perfuse") and (status := _status(line.removeprefix("$ "))):
                return f"{line} ended with {status}"
        return None


def _status(command: str) -> object:
    """Run a command line in this process, where most of what it needs is imported."""
    from perfuse.cli import main as perfuse
    from perfuse.plugins import host

    host.cache_clear()  # a command before may have changed what is installed
    try:
        perfuse.main(shlex.split(command, comments=True)[1:], prog_name="perfuse")
    except SystemExit as exc:
        return exc.code
    return None


def check_examples(page: Path, folder: Path) -> None:
    """Run every example of a page in a folder, where they may write.

    Raises:
        AssertionError: one of them failed, or there is none.
    """
    site = folder / "site"
    site.mkdir()
    install(page, site)
    scripts = Path(sys.executable).parent
    variables = {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, __file__, str(page)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def install(page: Path, site: Path) -> None:
    """Write a page's modules into a folder, and its entry points as pip would."""
    files = dict(_FILE.findall(page.read_text("utf-8")))
    for name, text in files.items():
        if name.endswith(".py"):
            (site / name).write_text(text, "utf-8")
    if "pyproject.toml" not in files:
        return
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", "utf-8"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")


def main(page: Path) -> None:
    """Run the examples, one after the other."""
    document = Sybil(parsers=[PythonCodeBlockParser(), _ConsoleParser()]).parse(page)
    examples = list(document.examples())
    assert examples, f"{page} has no example"
    for example in examples:
        example.evaluate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
