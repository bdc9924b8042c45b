"""``perfuse backends`` a second time: what engines answered is kept until something changes."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.distributions import Install, good

from perfuse.cli import main
from perfuse.plugins import kept

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PERFUSE_CACHE", str(folder))
    monkeypatch.setenv("PERFUSE_PLUGINS", "sound")
    return folder


@pytest.fixture
def log(install: Install, tmp_path: Path) -> Path:
    """A backend that writes down each time it is asked for its devices."""
    path = tmp_path / "log"
    good(install, devices=f"with open({str(path)!r}, 'a') as f: f.write('asked ')")
    return path


def asked(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def backends(*arguments: str, command: str = "backends") -> dict[str, Any]:
    result = CliRunner().invoke(main, [command, "--json", *arguments])
    assert result.exit_code in (0, 1), (result.stderr, result.exception)
    rows = json.loads(result.stdout)["backends"]
    found: dict[str, Any] = next(row for row in rows if row["backend"] == "sound")
    return found


@pytest.mark.slow
def test_the_second_time_nobody_is_asked(log: Path) -> None:
    first, second = backends(), backends()
    assert asked(log) == 1
    assert first["devices"] == second["devices"] != []
    assert first.keys() - second.keys() == {"seconds"}
    assert second["found"] <= time.time()
    backends("--refresh")
    assert asked(log) == 2
    backends(command="doctor")  # the doctor always looks
    assert asked(log) == 3
    backends()
    assert asked(log) == 3


@pytest.mark.parametrize(
    "change",
    ["CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "PATH", "SOUND_MODE", "impl", "version", "needs"],
)
def test_asked_again_when_something_changes(
    log: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    backends()
    site = Path(next(path for path in sys.path if path.endswith("site") and "pytest" in path))
    if change == "impl":
        with open(site / "sound_impl.py", "a") as file:
            file.write("\n# edited\n")
    elif change == "version":
        info = site / "sound-1.2.dist-info" / "METADATA"
        info.write_text(info.read_text().replace("1.2", "1.3"))
    elif change == "needs":
        text = (site / "plugin_sound.py").read_text()
        (site / "plugin_sound.py").write_text(
            text.replace("summary", "requires=('json',), summary")
        )
    else:
        monkeypatch.setenv(change, f"/new{os.pathsep}{os.environ.get(change, '')}")
    backends()
    assert asked(log) == 2
    backends()
    assert asked(log) == 2


def test_what_does_not_matter_does_not_count(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backends()
    for name in ("PWD", "SHLVL", "TERM", "COLUMNS", "SSH_TTY", "XDG_SESSION_PATH"):
        monkeypatch.setenv(name, "123")
        backends()
        assert asked(log) == 1


def test_a_driver_or_a_device_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").write_text("")
    monkeypatch.setattr(kept, "_NODES", (f"{tmp_path}/nvidia*",))
    monkeypatch.setattr(kept, "_DRIVERS", (f"{tmp_path}/ld.so.cache",))
    monkeypatch.setattr(kept, "_DRIVER_VERSIONS", (f"{tmp_path}/*/version",))
    seen = [kept.surroundings()]
    (tmp_path / "nvidia1").write_text("")
    seen.append(kept.surroundings())
    (tmp_path / "nvidia1").chmod(0o600)
    seen.append(kept.surroundings())
    (tmp_path / "ld.so.cache").write_text("")
    seen.append(kept.surroundings())
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "version").write_text("1.0")
    seen.append(kept.surroundings())
    (tmp_path / "acme" / "version").write_text("2.0")
    seen.append(kept.surroundings())
    assert all(one != other for one, other in itertools.pairwise(seen))
    assert kept.surroundings() == seen[-1]


@pytest.mark.parametrize(
    ("devices", "state"),
    [
        ("import os; os.abort()", "crashed"),
        ("raise OSError('no driver')", "broken"),
        ("import atexit, os; atexit.register(os._exit, 7)", "crashed"),
    ],
)
def test_what_fails_is_asked_again(install: Install, log: Path, devices: str, state: str) -> None:
    """A crash is not kept, and what was kept before it is not believed any more."""
    backends()
    note = f"open({str(log)!r}, 'a').write('asked ')"
    good_again = (Path(sys.path[0]) / "sound_impl.py").read_text()
    (Path(sys.path[0]) / "sound_impl.py").write_text(
        good_again.replace(
            "        return [Device", f"        {note}; {devices}\n        return [Device"
        )
    )
    before = asked(log)
    for _ in range(2):
        assert backends()["state"] == state
    assert asked(log) > before + 1
    (Path(sys.path[0]) / "sound_impl.py").write_text(good_again)
    assert backends()["state"] == "available"


def test_a_damaged_answer_is_asked_for_again(log: Path, cache: Path) -> None:
    backends()
    (path,) = (cache / "plugins").glob("devices-*.json")
    whole = path.read_text()
    for times, damage in enumerate(
        ("{", "[]", "state", "devices", "device", "control", "output"), 2
    ):
        data = json.loads(whole)
        answer = data["value"]["answer"]
        if damage == "state":
            answer["state"] = "excellent"
        elif damage == "devices":
            answer["devices"] = {}
        elif damage == "device":
            answer["devices"][0]["precisions"] = [32]
        elif damage == "control":
            del answer["devices"][0]["target"]
        elif damage == "output":
            answer["output"] = ["more"]
        path.write_text(damage if damage in ("{", "[]") else json.dumps(data))
        assert backends()["devices"][0]["target"] == "sound:dev"
        assert asked(log) == times


def test_clearing_the_cache_forgets_it(log: Path, cache: Path) -> None:
    backends()
    assert list((cache / "plugins").iterdir())
    assert CliRunner().invoke(main, ["cache", "clear"]).exit_code == 0
    assert not (cache / "plugins").exists()
    backends()
    assert asked(log) == 2


@pytest.mark.slow
def test_no_engine_is_loaded_the_second_time(tmp_path: Path, cache: Path) -> None:
    """In a process of its own: neither an engine nor a plugin of somebody else's."""
    program = (
        "import sys\nfrom perfuse.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "PERFUSE_PLUGINS": "torch,onnxruntime,openvino"}
    for _ in range(2):
        before = os.times().children_user
        done = subprocess.run(
            [sys.executable, "-c", program, "backends"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        spent = os.times().children_user - before
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"torch", "onnxruntime", "openvino", "transformers", "onnx", "numpy"}
    assert "--refresh asks again" in done.stdout
    assert spent < 1.5  # seconds of processor time
