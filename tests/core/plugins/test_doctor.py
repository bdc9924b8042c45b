"""``perfuse backends`` and ``perfuse doctor`` among real distributions that hang, die and shout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.distributions import GOOD, Install, good

from perfuse.cli import main

SEGFAULT = "import ctypes; ctypes.string_at(0)"
#: What each engine does when it is asked for its devices, and what is to be said of it.
ENGINES = {
    "segv": (SEGFAULT, "crashed", "SIGSEGV, while asking for its devices"),
    "aborts": ("import os; os.abort()", "crashed", "SIGABRT, while asking for its devices"),
    "leaves": ("import os; os._exit(3)", "crashed", "exit status 3, while asking"),
    "leaves-well": ("import os; os._exit(0)", "crashed", "ended without an answer, while asking"),
    "ends-badly": (
        "import atexit, os; atexit.register(os._exit, 7)",
        "crashed",
        "exit status 7, while ending",
    ),
    "raises": ("raise OSError('no driver')", "broken", "OSError: no driver"),
    "exits": ("raise SystemExit(4)", "broken", "SystemExit: 4"),
    "none": ("return []", "unavailable", "its engine lists no device"),
    "odd": ("return ['cpu']", "broken", "AttributeError"),
    "shouts": ("import os; print('{'); os.write(1, b'raw'); os.write(2, b'more')", "available", ""),
}


def perfuse(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def examined(*arguments: object, plugins: str, status: int) -> dict[str, dict[str, Any]]:
    """The rows by backend, of a command that prints one JSON object and nothing else."""
    result = perfuse(*arguments, "--json", PERFUSE_PLUGINS=plugins)
    assert result.exit_code == status, (result.stderr, result.exception)
    assert result.stdout.count("\n") == 1
    rows = json.loads(result.stdout)["backends"]
    return {row["backend"]: row for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["doctor", "backends"])
def test_what_engines_do_is_a_row(install: Install, command: str) -> None:
    """All of them are installed at once, and the good one between them is seen."""
    for name, (code, _, _) in ENGINES.items():
        good(install, name.replace("-", "_"), devices=code)
    good(install, "sound")
    names = ",".join(["sound", *(name.replace("-", "_") for name in ENGINES)])
    rows = examined(command, plugins=names, status=1 if command == "doctor" else 0)
    assert rows["sound"]["state"] == "available"
    assert rows["sound"]["devices"] == [
        {"target": "sound:dev", "description": "a device", "precisions": ["float32"]}
    ]
    for name, (_, state, reason) in ENGINES.items():
        row = rows[name.replace("-", "_")]
        assert row["state"] == state, row
        assert reason in row["reason"]
        assert row["distribution"] == name.replace("-", "_")
        assert row["version"] == "1.2"
        if state in ("crashed", "broken"):
            assert f"perfuse plugin disable {row['plugin']}" in row["remedy"]
    assert not [name for name in sys.modules if name.startswith("plugin_")]
    if command == "doctor":
        assert rows["sound"]["supports"] == {"sound:dev": {"float32": "full"}}
        assert rows["sound"]["seconds"] > 0
        assert any("Segmentation fault" in line for line in rows["segv"]["output"])
        assert any("devices" in line for line in rows["segv"]["output"])  # the frame it died in
        assert any("no driver" in line for line in rows["raises"]["output"])


@pytest.mark.slow
def test_plugins_that_die_when_they_are_imported(install: Install) -> None:
    install("segv", SEGFAULT)
    install("leaves", "import os; os._exit(0)")
    install("asked", f"def perfuse_exporters(): {SEGFAULT}")
    install("broken", "import there_is_no_such_module")
    good(install, "sound")
    for command in ("doctor", "backends"):
        rows = examined(
            command,
            plugins="segv,leaves,asked,broken,sound",
            status=1 if command == "doctor" else 0,
        )
        assert rows["sound"]["state"] == "available"
        assert rows["broken"]["state"] == "broken"
        for name, reason in (("segv", "SIGSEGV"), ("asked", "SIGSEGV"), ("leaves", "without an")):
            assert rows[name]["state"] == "crashed"
            assert reason in rows[name]["reason"]
            assert (rows[name]["distribution"], rows[name]["version"]) == (name, "1.2")
            assert rows[name]["remedy"].startswith(f"perfuse plugin disable {name}")


@pytest.mark.slow
def test_what_hangs_is_ended(install: Install) -> None:
    install("hangs", "import time; time.sleep(3600)")
    good(install, "stuck", devices="import time; time.sleep(3600)")
    rows = examined("doctor", "--timeout", 8, plugins="hangs,stuck", status=1)
    for name, step in (("hangs", "importing it"), ("stuck", "asking for its devices")):
        assert rows[name]["state"] == "crashed"
        assert "timeout: no end after 8 s, while " + step in rows[name]["reason"]


def test_a_plugin_that_dies_can_be_switched_off(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By commands that do not import it."""
    site = install("segv", SEGFAULT)
    good(install, "sound")
    monkeypatch.setenv("PERFUSE_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("PERFUSE_PLUGINS", "segv,sound")
    monkeypatch.setenv("PYTHONPATH", str(site))
    command = [sys.executable, "-m", "perfuse.cli"]
    listing = [*command, "backends", "--no-devices", "--json"]
    done = subprocess.run(listing, check=True, capture_output=True, text=True)
    rows = {row["backend"]: row["state"] for row in json.loads(done.stdout)["backends"]}
    assert (rows["segv"], rows["sound"]) == ("crashed", "available")
    subprocess.run([*command, "plugin", "disable", "segv"], check=True)
    done = subprocess.run(listing, check=True, capture_output=True, text=True)
    rows = {row["backend"]: row["state"] for row in json.loads(done.stdout)["backends"]}
    assert (rows["segv"], rows["sound"]) == ("disabled", "available")
    subprocess.run([*command, "plugin", "enable", "segv"], check=True)
    done = subprocess.run(listing, check=True, capture_output=True, text=True)
    assert '"state": "crashed"' in done.stdout


def test_only_the_backends_that_are_named(install: Install) -> None:
    good(install, "sound")
    good(install, "segv", devices=SEGFAULT)
    named = ("doctor", "--backend", "sound")
    assert set(examined(*named, plugins="sound,segv", status=0)) == {"sound"}
    result = perfuse("doctor", "--backend", "sond", PERFUSE_PLUGINS="sound")
    assert result.exit_code == 2
    assert "'sond' was asked for; found: sound" in result.stderr


def test_what_is_wrong_without_a_crash(install: Install) -> None:
    """An engine that is not installed is no fault; two that spoil each other are told."""
    absent = GOOD.format(name="absent").replace("summary=", 'requires=("no_engine",), summary=')
    install("absent", absent)
    clash = 'conflicts=("absent", "clash"), summary='
    install("clash", GOOD.format(name="clash").replace("summary=", clash))
    rows = examined("doctor", plugins="absent,clash", status=0)
    assert rows["absent"]["state"] == "not installed"
    assert rows["clash"]["state"] == "conflict"
    result = perfuse("doctor", "--json", PERFUSE_PLUGINS="absent,clash", PERFUSE_STRICT="1")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["backends"]
    assert "clash of clash 1.2 (conflict" in result.stderr
    strict = {"PERFUSE_PLUGINS": "absent,clash", "PERFUSE_STRICT": "1"}
    for option in ("--devices", "--no-devices"):
        result = perfuse("backends", option, **strict)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert "clash of clash 1.2 (conflict" in line


def test_for_a_person(install: Install) -> None:
    good(install, "sound")
    good(install, "segv", devices=SEGFAULT)
    result = perfuse("doctor", PERFUSE_PLUGINS="sound,segv")
    assert result.exit_code == 1
    assert "sound  available  sound 1.2" in result.stdout
    assert "sound:dev: a device\n    float32 full" in result.stdout
    assert "segv  crashed  segv 1.2" in result.stdout
    assert "│ Fatal Python error: Segmentation fault" in result.stdout


def test_no_file_is_left_behind(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """No core file where it was called, no temporary folder."""
    site = good(install, "segv", devices=SEGFAULT)
    here, temporary = site.parent / "here", site.parent / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-m", "perfuse.cli", "doctor"],
        env={**environment, "PERFUSE_PLUGINS": "segv"},
        check=False,
    )
    assert done.returncode == 1
    assert list(here.iterdir()) == []
    assert list(temporary.iterdir()) == []


LINE = "perfuse: interrupted; nothing half done was kept.\n"
#: Tests that were started in the background have the interrupt ignored, and so would a child.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from perfuse.cli import main
main()
"""


def test_who_gives_up_waiting_leaves_no_process(install: Install, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid()))"
    site = good(install, "stuck", devices=f"{code}; time.sleep(3600)")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "doctor"],
        env={**os.environ, "PYTHONPATH": str(site), "PERFUSE_PLUGINS": "stuck"},
        stderr=subprocess.PIPE,
    )
    while not (note.exists() and note.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == LINE.encode()
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


#: Sends itself Ctrl-C at a given operation, the first time that it comes to it.
AT_A_MOMENT = """
import os, signal, sys
event, words = sys.argv.pop(1), sys.argv.pop(1)
done = []

def watch(what, arguments):
    if what == event and words in str(arguments) and not done:
        done.append(what)
        os.kill(os.getpid(), signal.SIGINT)

from perfuse.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(watch)
main()
"""


@pytest.mark.parametrize("command", ["backends", "doctor"])
@pytest.mark.parametrize(
    ("event", "words"),
    [
        ("import", "perfuse.plugins.doctor"),
        ("open", "builtin."),
        ("open", "perfuse_torch"),
        ("import", "concurrent.futures"),
        ("subprocess.Popen", "declare"),
        ("subprocess.Popen", "thorough"),
        ("os.rename", "partial"),
        ("import", "rich.console"),
    ],
)
def test_an_interrupt_at_any_moment(
    install: Install, tmp_path: Path, command: str, event: str, words: str
) -> None:
    """One line and status 130, and nobody is left who runs on."""
    note, temporary = tmp_path / "pids", tmp_path / "temporary"
    temporary.mkdir()
    code = f"import os, time; open({str(note)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(0.5)"
    site = good(install, "slow", devices=code)
    done = subprocess.run(
        [sys.executable, "-c", AT_A_MOMENT, event, words, command],
        env={
            **os.environ,
            "PYTHONPATH": str(site),
            "PERFUSE_PLUGINS": "slow,torch" if "torch" in words else "slow",
            "PERFUSE_CACHE": str(tmp_path / "cache"),
            "TMPDIR": str(temporary),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, LINE)
    assert done.stdout == ""
    assert list(temporary.iterdir()) == []
    for pid in note.read_text().split() if note.exists() else ():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.slow
def test_the_engines_of_this_environment() -> None:
    pytest.importorskip("torch")
    rows = examined("doctor", "--backend", "torch", plugins="torch", status=0)
    assert rows["torch"]["state"] == "available"
    assert rows["torch"]["engines"]["torch"].startswith("2.")
    assert rows["torch"]["supports"]["torch:cpu"]["float32"] == "full"
