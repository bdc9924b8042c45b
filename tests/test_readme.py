"""Every example in README.md runs."""

from pathlib import Path

import pytest
from tests.examples import run_examples

pytestmark = [pytest.mark.export, pytest.mark.slow]

README = Path(__file__).parent.parent / "README.md"


def test_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_examples(README, tmp_path, monkeypatch) >= 3
