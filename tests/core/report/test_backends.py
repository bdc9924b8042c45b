"""What ``perfuse backends`` prints for a person: lines that fit, reasons in full, nothing obeyed."""

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from tests.distributions import Install, good

from perfuse.report.backends import print_backends, print_examined
from perfuse.report.console import safe


def row(name: str, **given: Any) -> dict[str, Any]:
    return {
        "backend": name,
        "state": "available",
        "reason": "",
        "remedy": "",
        "summary": "an engine",
        "exports": [name],
        "interprets": "",
        "interpreters": [],
        "plugin": name,
        "distribution": f"perfuse-{name}",
        "version": "1.0",
        "devices": [],
        **given,
    }


def device(target: str, description: str = "a device") -> dict[str, Any]:
    return {"target": target, "description": description, "precisions": ["float32", "float16"]}


LONG = "https://pip.repos.example.com/a/very/long/address/that/nobody/can/break/in/two/" + "x" * 30


def printed(
    rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], function: Any = print_backends
) -> list[str]:
    function(rows)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_line_a_target_then_the_reasons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    reason = (
        "its engine is not installed, and this sentence is long enough to need three lines " * 2
    )
    remedy = f"pip install acme --extra-index-url {LONG}"
    rows = [
        row("one", devices=[device("one:0", "x" * 200), device("one:1", "漢字" * 60)]),
        row("two", state="not installed", reason=reason, remedy=remedy, exports=[]),
    ]
    lines = printed(rows, capsys)
    assert [line.split()[0] for line in lines[:4]] == ["target", "one:0", "one:1", "two"]
    from rich.cells import cell_len

    assert all(cell_len(line) <= width for line in lines if LONG not in line)
    assert sum(LONG in line for line in lines) == 1  # whole, to be copied
    below = " ".join(" ".join(lines[4:]).split())
    assert f"two (perfuse-two 1.0): {' '.join(reason.split())}" in below
    assert "pip install acme" in below


def test_in_a_pipe_nothing_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed([row("one", devices=[device("one:0", "x" * 200)])], capsys)
    assert lines[1].endswith("x" * 200 + " (float32, float16)")


def test_one_reason_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    off = {"state": "disabled", "reason": "it was switched off", "remedy": "switch it on"}
    lines = printed([row("a", **off), row("b", **off), row("c")], capsys)
    assert lines[-2:] == ["a, b: it was switched off", "  switch it on"]


def test_what_is_kept_says_how_old_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    ages = {5: "5 s", 600: "10 min", 7300: "2 h", 200_000: "2 d"}
    for seconds, words in ages.items():
        found = time.time() - seconds - 0.5
        lines = printed([row("a", devices=[device("a:0")], found=found)], capsys)
        assert lines[-1] == f"Devices as found {words} ago; --refresh asks again."


def test_a_missing_engine_is_named_with_the_extra_that_brings_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = {"reason": "acme is not installed", "remedy": "pip install 'perfuse[acme]'"}
    lines = printed([row("acme", state="not installed", **missing)], capsys)
    assert "  pip install 'perfuse[acme]'" in lines


EVIL = "[/red] [bold]b[/] :smile: \x1b[31m\x07\r\n\u202e\udcff end"


@pytest.mark.parametrize("function", [print_backends, print_examined])
def test_nothing_of_somebody_else_s_is_obeyed(
    capsys: pytest.CaptureFixture[str], function: Any
) -> None:
    evil = dict.fromkeys(("backend", "state", "reason", "remedy", "summary"), EVIL)
    evil |= {"distribution": EVIL, "version": EVIL, "engines": {EVIL: EVIL}, "output": [EVIL]}
    target = device(EVIL, EVIL) | {"precisions": [EVIL]}
    rows = [row("a", **evil), row("b", **evil, devices=[target], supports={EVIL: {EVIL: EVIL}})]
    text = "\n".join(printed(rows, capsys, function))
    shown = r"[/red] [bold]b[/] :smile: \x1b[31m\x07\r\n\u202e\udcff end"
    assert shown in " ".join(text.split())
    assert all(c.isprintable() or c == "\n" for c in text)


def test_spaces_of_other_widths_stay() -> None:
    spaced = "31\u202f%, 80\xa0dB, 红\u3000圆"
    assert safe(spaced) == spaced and safe("\u2028\u200b") == r"\u2028\u200b"


@pytest.mark.parametrize("command", ["backends", "doctor"])
def test_a_terminal_without_the_characters(install: Install, command: str) -> None:
    """A question mark, not a traceback."""
    site = good(
        install, "sound", devices="return [Device(name='dev', description='Gerät ×2 漢字')]"
    )
    done = subprocess.run(
        [sys.executable, "-m", "perfuse.cli", command],
        env={
            **os.environ,
            "PYTHONPATH": str(site),
            "PERFUSE_PLUGINS": "sound",
            "PYTHONIOENCODING": "ascii",
            "LC_ALL": "C",
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Ger?t ?2 ??" in done.stdout
