"""Every example in README.md runs: Python in this process, ``$ perfuse`` lines in a shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

pytestmark = [pytest.mark.export, pytest.mark.slow]

README = Path(__file__).parent.parent / "README.md"


class ConsoleParser(CodeBlockParser):
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


def test_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # they write where they stand
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    document = Sybil(parsers=[PythonCodeBlockParser(), ConsoleParser()]).parse(README)
    examples = list(document.examples())
    assert len(examples) >= 3
    for example in examples:
        example.evaluate()
