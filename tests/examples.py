"""Runs what a page shows: its Python in this process, its ``$ perfuse`` lines in a shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

__all__ = ["run_examples"]


class _ConsoleParser(CodeBlockParser):
    """Runs the lines of a console block that begin with ``$ perfuse``."""

    def __init__(self) -> None:
        super().__init__(language="console")

    def evaluate(self, example: Example) -> str | None:
        lines = str(example.parsed).replace("\\\n", "").splitlines()
        for line in lines:
            if line.startswith("$ perfuse"):
                command = line.removeprefix("$ ")
                done = subprocess.run(
                    command, shell=True, capture_output=True, text=True, check=False
                )
                if done.returncode != 0:
                    return f"{command} ended with {done.returncode}: {done.stderr}"
        return None


def run_examples(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run every example of a page in a folder, where they may write. Returns how many there are.

    Raises:
        SybilFailure: one of them failed.
    """
    monkeypatch.chdir(folder)
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    document = Sybil(parsers=[PythonCodeBlockParser(), _ConsoleParser()]).parse(page)
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)
