"""Forty plugins that do what none should, installed at once: whoever does not use them is not affected."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.core.plugins.hostile import CHANGING, DECLARING, DYING, ENGINE, LOADED, USED
from tests.distributions import GOOD, Install, good

from perfuse.cli import main
from perfuse.plugins import PluginHost
from perfuse.plugins.state import State

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and forks of POSIX")

Make = Callable[[str], Path]

DECLARED = "from perfuse import BackendManifest\ndef perfuse_backends():\n {}"
HANGS = "import time; time.sleep(3600)"
#: Of each kind some, which CI installs.
FEW = ("exits_well", "segv", "removes", "forges", "endless", "million", "strict", "stays", "markup")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSE_CACHE", str(tmp_path / "cache"))


def install_all(install: Install, names: Iterable[str]) -> Path:
    """Install hostile plugins by name, and a good one; returns where they are."""
    codes = {"hangs": HANGS, **{name: code for name, (code, _, _) in DYING.items()}}
    codes |= {name: DECLARED.format(body) for name, (body, _) in DECLARING.items()} | LOADED
    codes |= {name: GOOD.format(name=name) for name in USED}
    site = good(install)
    for name in names:
        install(name, codes[name])
        if name in USED or name in LOADED:
            how = USED[name][0] if name in USED else "pass"
            code = ENGINE.replace("NAME", name).replace("HOW", how)
            (site / f"{name}_impl.py").write_text(code, "utf-8")
    return site


def perfuse(*arguments: object) -> Result:
    environment = {"PERFUSE_TRACEBACK": "1"}
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def check_listed(rows: list[dict[str, Any]], names: Iterable[str]) -> None:
    """Each has the state that it should have, and says why."""
    found = {row["name"]: row for row in rows}
    assert found["sound"]["state"] == "loaded"
    wrong = [found[name] for name in names if not is_said(found[name])]
    assert wrong == []


def is_said(row: dict[str, Any]) -> bool:
    """Whether a row says what a hostile plugin is."""
    name, state, reason = row["name"], row["state"], row["reason"]
    if name in LOADED or name in USED:
        return bool(state == "loaded")
    if name in DECLARING:
        return state == "broken" and DECLARING[name][1] in reason and len(reason) < 3000
    wanted, said = ("crashed", "timeout") if name == "hangs" else DYING[name][1:]
    right = state == wanted if wanted else state != "loaded"
    return right and said in reason and len(reason) < 3000


def draw(checkpoint: Make, output: Path, backend: str) -> Result:
    given = ("--model", checkpoint("tiny"), "--steps", 1, "--seed", 4, "--output", output)
    return perfuse("generate", "--backend", backend, "--no-metadata", *given)


def check_unaffected(checkpoint: Make, tmp_path: Path, before: State) -> None:
    """Drawing with torch gives the same picture in the same process."""
    output = tmp_path / "picture.png"
    result = draw(checkpoint, output, "torch:cpu")
    assert result.exit_code == 0, result.output
    assert not [name for name in sys.modules if name.startswith("plugin_")]
    now = State.now()
    changed = [name for name in before.changed(now) if not name.startswith("the variable")]
    assert changed == []
    assert output.is_file()


def test_a_few(install: Install, checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert draw(checkpoint, tmp_path / "first.png", "torch:cpu").exit_code == 0
    install_all(install, [*FEW, "gives_none"])
    before = State.now()
    listed = perfuse("backends", "--no-devices", "--json")
    assert listed.exit_code == 0
    check_listed(json.loads(listed.stdout)["plugins"], FEW)
    shown = perfuse("backends", "--no-devices").stdout
    assert all(c.isprintable() or c == "\n" for c in shown)
    check_unaffected(checkpoint, tmp_path, before)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "picture.png").read_bytes()
    check_refused(checkpoint, tmp_path, "gives_none")
    check_refused(checkpoint, tmp_path, "segv")


def check_refused(checkpoint: Make, tmp_path: Path, name: str) -> None:
    """Asked for by name, it is an error that says what is wrong, and there is no picture."""
    output = tmp_path / "refused.png"
    result = draw(checkpoint, output, f"{name}:dev")
    assert result.exit_code in (1, 2), (name, result.output)
    *_, line = result.stderr.splitlines()
    assert name in line, line
    assert name not in USED or USED[name][1] in line, line
    assert not output.exists()


@pytest.mark.exhaustive
def test_all(install: Install, checkpoint: Make, tmp_path: Path) -> None:
    """Listing and drawing with torch as if there were none of them; each in use is an error."""
    pytest.importorskip("torch")
    names = ["hangs", *DYING, *DECLARING, *LOADED, *USED]
    assert len(names) >= 40
    assert draw(checkpoint, tmp_path / "first.png", "torch:cpu").exit_code == 0
    install_all(install, names)
    before = State.now()
    PluginHost(["hangs"], timeout=5)  # is remembered
    PluginHost()
    began = time.monotonic()
    again = PluginHost()
    assert time.monotonic() - began < 2  # whatever is installed
    again.ask_all()
    check_listed([vars(row) for row in again.rows], names)
    check_unaffected(checkpoint, tmp_path, before)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "picture.png").read_bytes()
    wrong = []
    for name in {"hangs", *DYING, *DECLARING, *USED} - {"thief"}:
        try:
            check_refused(checkpoint, tmp_path, name)
        except AssertionError as exc:
            wrong.append(str(exc))
    assert wrong == []


@pytest.mark.exhaustive
def test_the_doctor_names_what_they_change(install: Install) -> None:
    install_all(install, CHANGING)
    result = perfuse("doctor", "--json")
    rows = {row["backend"]: row for row in json.loads(result.stdout)["backends"]}
    for name, (_, change) in CHANGING.items():
        if change:
            assert any(change in one for one in rows[name]["changes"]), (name, rows[name])


def test_the_doctor_names_what_a_plugin_changes(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is imported, and when its backend is asked; nothing of one that changes nothing."""
    install_all(install, ["strict"])
    good(install, "later", devices="import os; os.environ['LATER'] = '1'")
    install("bare", "import os; os.chdir('/')\ndef perfuse_schedulers(): return {'Bare': 'a:B'}")
    monkeypatch.setenv("PERFUSE_PLUGINS", "sound,strict,later,bare")
    result = perfuse("doctor")
    assert result.exit_code == 0, result.output
    assert "changes in the process: the warnings that are shown" in result.stdout
    assert "changes in the process: the variable LATER" in result.stdout
    assert "bare  bare 1.2\n  changes in the process: the working folder" in result.stdout
    assert result.stdout.count("changes") == 3, result.stdout


def test_a_thread_that_is_left_is_not_waited_for(
    install: Install, checkpoint: Make, tmp_path: Path
) -> None:
    how = (
        "def call(self, x):\n"
        "        import threading, time\n"
        "        threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "        return {'out_sample': 0 * x}"
    )
    site = install("lasting", GOOD.format(name="lasting"))
    code = ENGINE.replace("NAME", "lasting").replace("HOW", how)
    (site / "lasting_impl.py").write_text(code, "utf-8")
    given = ("--model", checkpoint("tiny"), "--steps", 1, "--output", tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-m", "perfuse.cli", "generate", "--backend", "lasting:dev"]
        + [str(one) for one in given],
        env={**os.environ, "PYTHONPATH": str(site), "PERFUSE_PLUGINS": "lasting"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a.png" in done.stdout
    assert (tmp_path / "a.png").is_file()
