"""The examples in README.md run: Python in this process, command lines in a shell."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser


class ConsoleParser(CodeBlockParser):
    """Runs every line of a ```console block that begins with ``$ perfuse``."""

    def __init__(self) -> None:
        super().__init__(language="console")

    def evaluate(self, example: Example) -> str | None:
        for line in str(example.parsed).splitlines():
            if line.startswith("$ perfuse"):
                done = subprocess.run(
                    line.removeprefix("$ "), shell=True, capture_output=True, text=True
                )
                if done.returncode != 0:
                    return f"{line} ended with {done.returncode}: {done.stderr}"
        return None


@pytest.fixture(scope="module")
def in_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The examples write where they stand."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("readme"))
    yield
    os.chdir(before)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), ConsoleParser()],
    pattern="README.md",
    fixtures=["in_empty_folder"],
).pytest()
