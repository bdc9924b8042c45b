"""Every example in README.md runs."""

from pathlib import Path

import pytest
from tests.examples import check_examples

pytestmark = [pytest.mark.export, pytest.mark.slow]

README = Path(__file__).parent.parent / "README.md"


def test_examples_of_the_readme_run(tmp_path: Path) -> None:
    check_examples(README, tmp_path)
