"""What long work reports: its beginning, its end, what is inside, and nothing to nobody."""

import subprocess
import sys

import pytest

from perfuse.progress import Progress, reporting, say, working


def test_work_inside_work() -> None:
    heard: list[Progress] = []
    with (
        reporting(heard.append),
        working("prepare", "Preparing unet", subject="unet"),
        working("export", "Exporting unet", subject="unet", done=1, total=3),
    ):
        say("Capturing")
    assert [(p.stage, p.message, p.seconds is None) for p in heard] == [
        ("prepare", "Preparing unet", True),
        ("export", "Exporting unet", True),
        ("", "Capturing", True),
        ("export", "Exporting unet", False),
        ("prepare", "Preparing unet", False),
    ]
    before, after = heard[1], heard[3]
    assert (before.done, before.total, after.done, after.total) == (1, 3, 2, 3)
    inner, outer = heard[3].seconds, heard[4].seconds
    assert inner is not None
    assert outer is not None
    assert 0 <= inner <= outer


def test_what_fails_is_not_reported_as_done() -> None:
    heard: list[Progress] = []
    with (
        pytest.raises(ValueError, match="no"),
        reporting(heard.append),
        working("export", "Exporting unet"),
    ):
        raise ValueError("no")
    assert [p.seconds for p in heard] == [None]


def test_nobody_listens_outside_of_the_block() -> None:
    heard: list[Progress] = []
    with reporting(heard.append):
        pass
    say("gone")
    with working("export", "gone"):
        pass
    assert heard == []


def test_it_imports_nothing_heavy() -> None:
    program = "import sys, perfuse.progress\nassert 'numpy' not in sys.modules, 'numpy'"
    subprocess.run([sys.executable, "-c", program], check=True)
