"""What plugins declare: read in a process of its own, once, and again when something changes."""

import importlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.distributions import GOOD, Install, good

from perfuse.errors import PluginError
from perfuse.plugins import PluginHost, allowance
from perfuse.plugins.installed import PluginRow

#: Leaves a line in a file each time the plugin's code runs, with the process that runs it.
NOTED = "import os\nwith open({log!r}, 'a') as f: f.write(f'{{os.getpid()}}\\n')\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PERFUSE_CACHE", str(folder))
    return folder


def noted(install: Install, log: Path, name: str = "sound", code: str = "") -> Path:
    site = good(install, name)
    text = NOTED.format(log=str(log)) + code + GOOD.format(name=name)
    (site / f"plugin_{name}.py").write_text(text, "utf-8")
    return site


def runs(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def row(host: PluginHost, name: str) -> PluginRow:
    (found,) = [row for row in host.rows if row.name == name]
    return found


def test_read_once_elsewhere_and_imported_when_asked_for(install: Install, tmp_path: Path) -> None:
    log = tmp_path / "log"
    noted(install, log)
    for _ in range(3):
        host = PluginHost(["sound"])
        assert host.backends()["sound"].summary == "good"
    assert len(runs(log)) == 1
    assert os.getpid() not in runs(log)
    assert not {"plugin_sound", "sound_impl"} & sys.modules.keys()
    assert host.backend("sound").name == "sound"
    assert "sound_impl" in sys.modules
    assert "plugin_sound" not in sys.modules  # its manifests are known


def test_everything_that_can_be_declared_comes_back_as_it_was(install: Install) -> None:
    """Through a process and a file, and equal to what the plugin made."""
    code = """
from perfuse import *

PIPELINE = PipelineManifest(
    class_name="Mine", tasks={"draw": "m:T"}, needs=("unet",), scheduler="DDIMScheduler",
    defaults={"steps": 4, "scale": 1.5, "sizes": (1, 2), "names": ["a", None, True]},
    corrects={"clip_sample": False})
BACKEND = BackendManifest(name="mine", impl="m:B", formats=("f",), requires=["json"], api_max="1.9")
READER = ReaderManifest(name="mine", impl="m:R", patterns=("*/a é",), indexed=True)
TRANSFORM = TransformManifest(name="mine", impl="m:X", summary="line\\n\\x1b[31m")
ARCHITECTURE = Architecture(class_name="Net", describe="m:d", build="m:b")
EXPORTER = ExporterManifest(format="f", impl="m:E")
def perfuse_pipelines(): return [PIPELINE]
def perfuse_backends(): yield BACKEND
def perfuse_readers(): return (READER,)
def perfuse_transforms(): return [TRANSFORM]
def perfuse_architectures(): return [ARCHITECTURE]
def perfuse_exporters(): return [EXPORTER]
def perfuse_schedulers(): return {"MyScheduler": "m:S"}
"""
    install("mine", code)
    made = vars(importlib.import_module("plugin_mine"))
    for _ in range(2):  # from the process, then from the file
        host = PluginHost(["mine"])
        host.ask_all()
        assert row(host, "mine").state == "loaded", row(host, "mine")
        assert host.pipelines()["Mine"] == made["PIPELINE"]
        assert host.backends()["mine"] == made["BACKEND"]
        assert host.readers()["mine"] == made["READER"]
        assert host.transforms()["mine"] == made["TRANSFORM"]
        assert host.architectures()["Net"] == made["ARCHITECTURE"]
        assert host.exporters()["f"] == made["EXPORTER"]
        assert host.schedulers()["MyScheduler"] == "m:S"


def test_what_is_no_plain_data_is_a_fault(install: Install) -> None:
    install(
        "odd",
        "from perfuse import *\ndef perfuse_pipelines(): return [PipelineManifest(class_name='P', "
        "tasks={'draw': 'm:T'}, needs=(), defaults={'f': print})]",
    )
    host = PluginHost(["odd"])
    assert "P" not in host.pipelines()
    assert row(host, "odd").state == "broken"
    assert "holds <built-in function print>; a manifest is plain data" in row(host, "odd").reason


def test_annotations_that_are_texts_are_checked_too() -> None:
    """``from __future__ import annotations`` hides no type from the check."""
    from tests.core.plugins.annotated import Texts

    from perfuse.contract.hooks import check_fields

    check_fields(Texts())
    for field, value in [("name", 3), ("requires", "torch"), ("indexed", 1), ("last", 2)]:
        with pytest.raises(PluginError, match=f"whose {field} is {value!r}, not "):
            check_fields(Texts(**{field: value}))  # type: ignore[arg-type]


def test_an_edited_file_is_read_again(install: Install, tmp_path: Path) -> None:
    site = good(install)
    assert PluginHost(["sound"]).backends()["sound"].summary == "good"
    text = GOOD.format(name="sound").replace('"good"', '"better still"')
    (site / "plugin_sound.py").write_text(text, "utf-8")
    assert PluginHost(["sound"]).backends()["sound"].summary == "better still"


def test_an_edited_file_that_the_plugin_imports_is_read_again(install: Install) -> None:
    site = install("part", "from perfuse_part.words import perfuse_backends")
    package = site / "perfuse_part"
    package.mkdir()
    (package / "__init__.py").write_text("")
    text = (
        "from perfuse import BackendManifest\n"
        "def perfuse_backends(): return [BackendManifest(name='part', impl='a:B', summary={!r})]"
    )
    (package / "words.py").write_text(text.format("one"))
    assert PluginHost(["part"]).backends()["part"].summary == "one"
    (package / "words.py").write_text(text.format("the second"))
    assert PluginHost(["part"]).backends()["part"].summary == "the second"


def test_another_version_is_read_again(install: Install, tmp_path: Path) -> None:
    log = tmp_path / "log"
    site = noted(install, log)
    PluginHost(["sound"])
    info = site / "sound-1.2.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("1.2", "1.3"))
    assert row(PluginHost(["sound"]), "sound").version == "1.3"
    assert len(runs(log)) == 2


def test_a_damaged_record_is_made_anew(install: Install, tmp_path: Path, cache: Path) -> None:
    log = tmp_path / "log"
    noted(install, log)
    PluginHost(["sound"])
    (path,) = (cache / "plugins").iterdir()
    whole = path.read_text()
    texts = ["", "{", "[]", "{}", '{"format": "perfuse-plugin-record 1"}']
    words = ["value", "class", "foreign", "fields", "answers", "changes", "future"]
    for times, text in enumerate([*texts, *(damaged(json.loads(whole), one) for one in words)], 2):
        path.write_text(text)
        assert set(PluginHost(["sound"]).backends()) == {"sound"}
        assert len(runs(log)) == times
    path.unlink()
    path.mkdir()
    assert set(PluginHost(["sound"]).backends()) == {"sound"}


def damaged(data: Any, how: str) -> str:
    """A record of a plugin, with something in it that cannot be."""
    manifest = data["value"]["answers"]["perfuse_backends"]["tuple"][0]
    if how == "value":
        data["value"] = None
    elif how == "class":
        manifest["class"] = "os:system"
    elif how == "foreign":
        manifest["class"] = "perfuse.errors:InputError"
    elif how == "fields":
        manifest["fields"]["name"] = 3
    elif how == "answers":
        data["value"]["answers"]["perfuse_backends"] = {"tuple": ["text"]}
    elif how == "changes":
        data["value"]["changes"] = 3
    elif how == "future":
        data["written"] = time.time() + 1e6
    return json.dumps(data)


@pytest.mark.parametrize("what", ["file", "unwritable", "forbidden"])
def test_a_cache_that_cannot_be_written(
    install: Install, tmp_path: Path, cache: Path, what: str
) -> None:
    """Nothing fails; where there can be no cache at all, a temporary one serves this process."""
    log = tmp_path / "log"
    noted(install, log)
    if what == "file":
        cache.write_text("a file")
    elif what == "unwritable":
        cache.mkdir()
        (cache / "plugins").write_text("a file")
    else:
        cache.mkdir(mode=0o500)
    for _ in range(2):
        assert set(PluginHost(["sound"]).backends()) == {"sound"}
    assert len(runs(log)) == (2 if what == "unwritable" else 1)


def test_several_processes_at_once(install: Install, cache: Path) -> None:
    site = good(install)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from perfuse.plugins import PluginHost\nprint(*PluginHost(['sound']).backends())"
    )
    with ThreadPoolExecutor(4) as pool:
        started = [
            pool.submit(
                subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True
            )
            for _ in range(4)
        ]
    assert [done.result().stdout for done in started] == ["sound\n"] * 4
    assert [path.suffix for path in (cache / "plugins").iterdir()] == [".json"]


# ── Plugins that fail ───────────────────────────────────────────────────────────────────────────


def test_one_that_hangs_is_waited_for_once(install: Install, tmp_path: Path) -> None:
    log = tmp_path / "log"
    site = noted(install, log, "hangs", "import time; time.sleep(3600)\n")
    good(install)
    host = PluginHost(["hangs", "sound"], timeout=3)
    assert row(host, "hangs").state == "crashed"
    assert row(host, "hangs").reason.startswith("timeout: no end after 3 s, while importing it")
    again = PluginHost(["hangs", "sound"])  # with a minute for it, which is not spent
    assert row(again, "hangs") == row(host, "hangs")
    assert set(again.backends()) == {"sound"}
    assert len(runs(log)) == 1
    (site / "plugin_hangs.py").write_text(GOOD.format(name="hangs"))
    assert set(PluginHost(["hangs", "sound"]).backends()) == {"hangs", "sound"}


def test_time_in_which_others_have_the_processor_does_not_count(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin is no slower for a machine that is busy."""
    site = good(install)
    code = f"import time; time.sleep(2)\n{GOOD.format(name='sound')}"
    (site / "plugin_sound.py").write_text(code, "utf-8")
    monkeypatch.setattr(allowance, "delay", lambda process: time.monotonic())  # it only waits
    assert row(PluginHost(["sound"], timeout=0.5), "sound").state == "loaded"


def test_the_system_tells_how_long_a_process_waited() -> None:
    """Two that share a processor: each has waited for about as long as the other ran."""
    if not os.path.exists("/proc/self/schedstat"):
        pytest.skip("this system does not tell")
    code = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        allowed = allowance.Allowance(busy[0].pid, 60.0)
        until = time.monotonic() + 60
        while allowance.delay(busy[0].pid) < 0.2 and time.monotonic() < until:
            time.sleep(0.05)
        assert allowance.delay(busy[0].pid) >= 0.2
        assert allowed.left() > 0
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert allowance.delay(busy[0].pid) == 0


@pytest.mark.parametrize("seconds", [math.inf, 1e300])
def test_a_limit_that_never_ends_can_be_waited_for(seconds: float) -> None:
    left = allowance.Allowance("self", seconds).left()
    assert left > 1e9
    assert threading.Lock().acquire(timeout=left)


def test_one_that_was_broken_and_is_mended_is_read_again(install: Install) -> None:
    """Whichever of its files it was, or one that was not there."""
    site = install("mended", "from perfuse_mended.part import perfuse_backends")
    entry = site / "mended-1.2.dist-info" / "entry_points.txt"
    entry.write_text("[perfuse.v1]\nmended = perfuse_mended.plugin\n")
    package = site / "perfuse_mended"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text("from .part import perfuse_backends")
    reasons = []
    for text in (None, "import nowhere", "def perfuse_backends(): return []"):
        if text is not None:
            (package / "part.py").write_text(text)
        found = [row(PluginHost(["mended"]), "mended") for _ in range(2)]
        assert found[0] == found[1]
        reasons.append(found[0].reason)
    assert "perfuse_mended.part" in reasons[0]
    assert "'nowhere'" in reasons[1]
    assert reasons[2] == ""


def test_where_no_process_can_be_started(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a frozen program, say: what is somebody else's is a row, the rest is there."""
    good(install)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    host = PluginHost(["sound", "torch"])
    assert set(host.backends()) == {"torch"}
    assert "no process could be started: No such file" in row(host, "sound").reason


def test_what_was_missing_may_have_come(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is not kept when a distribution, a variable or a file is another."""
    log = tmp_path / "log"
    site = noted(install, log, "needy", "import os, needed\n")
    assert row(PluginHost(["needy"]), "needy").reason == (
        "ModuleNotFoundError: No module named 'needed'"
    )
    PluginHost(["needy"])
    assert len(runs(log)) == 1
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    PluginHost(["needy"])
    assert len(runs(log)) == 2
    PluginHost(["needy"], again="failed")  # what `perfuse backends` does
    assert len(runs(log)) == 3
    (site / "needed.py").write_text("")
    assert row(PluginHost(["needy"]), "needy").state == "loaded"


def test_strict_refuses_what_is_kept_as_broken(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    import perfuse.plugins

    install("bad", "raise OSError('libacme.so')")
    PluginHost(["bad"])
    monkeypatch.setenv("PERFUSE_STRICT", "1")
    monkeypatch.setenv("PERFUSE_PLUGINS", "bad")
    with pytest.raises(PluginError, match=r"bad of bad 1.2 \(broken: OSError: libacme.so"):
        perfuse.plugins.host()


def test_who_is_not_allowed_is_not_read(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    noted(install, log, "unwanted")
    good(install)
    PluginHost(["sound"])
    from perfuse.plugins.disabled import switch

    monkeypatch.setenv("PERFUSE_CONFIG", str(tmp_path / "config"))
    switch("unwanted", ["unwanted:unwanted"], on=False)
    assert row(PluginHost(), "unwanted").state == "disabled"
    assert runs(log) == []


def test_core_brings_its_own_through_the_same_hooks() -> None:
    from perfuse import builtin

    host = PluginHost([])
    assert list(host.architectures().values()) == list(builtin.perfuse_architectures())
    assert {"UNet2DConditionModel", "AutoencoderKL"} <= host.architectures().keys()
    assert host.schedulers()["DDIMScheduler"] == "perfuse.schedulers.ddim:DDIMScheduler"
    assert "StableDiffusionPipeline" in host.pipelines()
    assert host.backends() == {}


def test_core_s_own_are_there_or_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails now and then, as where memory is short, leaves no host without them."""
    from perfuse import builtin

    def fail() -> None:
        raise MemoryError

    host = PluginHost([])
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "perfuse_transforms", fail)
        with pytest.raises(PluginError, match="perfuse_transforms raised MemoryError"):
            host.transforms()
    assert "deepcache" in host.transforms()
    monkeypatch.setattr(builtin.pkgutil, "iter_modules", lambda places: iter(()))
    with pytest.raises(PluginError, match="no module of perfuse.families"):
        host.pipelines()


def test_core_s_are_found_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with ``ARCHITECTURES`` and a file with ``PIPELINES`` need no list."""
    from perfuse import builtin

    package = tmp_path / "found_here"
    for name in ("b_folder", "a_folder", "empty"):
        (package / name).mkdir(parents=True)
        text = "" if name == "empty" else f"ARCHITECTURES = ({name!r},)"
        (package / name / "__init__.py").write_text(text)
    (package / "__init__.py").write_text("")
    (package / "file.py").write_text("ARCHITECTURES = PIPELINES = ('file',)")
    monkeypatch.syspath_prepend(tmp_path)
    found = builtin._gathered("found_here", "ARCHITECTURES", packages=True)
    assert list(found) == ["a_folder", "b_folder"]
    assert list(builtin._gathered("found_here", "PIPELINES", packages=False)) == ["file"]
    assert list(builtin._gathered("perfuse.nowhere", "PIPELINES", packages=False)) == []
