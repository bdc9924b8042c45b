"""The plugin host among real distributions, most of them broken."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perfuse.plugins import PluginHost, missing_modules

Install = Callable[..., Path]

GOOD = """
from perfuse import BackendManifest, ExporterManifest, hookimpl

@hookimpl
def perfuse_backends():
    return [BackendManifest(name={name!r}, impl="{name}_impl:Engine", summary="good")]

@hookimpl
def perfuse_exporters():
    return [ExporterManifest(format={name!r}, impl="{name}_impl:Writer")]
"""
ENGINE = """
from perfuse import Backend, Device, Exporter, Support, SupportLevel

class Engine(Backend):
    name = "{name}"
    def devices(self):
        return [Device(name="dev", description="a device")]
    def supports(self, request):
        return Support(level=SupportLevel.FULL)
    def prepare(self, component, target, store):
        raise NotImplementedError

class Writer(Exporter):
    format = "{name}"
    def export(self, component, folder):
        raise NotImplementedError

class Other:
    pass

class Fails(Engine):
    def __init__(self):
        raise OSError("libdevice.so: cannot open")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one entry point, as pip would: a module and its dist-info."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def install(
        name: str, code: str, *, group: str = "perfuse.v1", dist: str | None = None
    ) -> Path:
        module = f"plugin_{(dist or name).replace('-', '_')}"
        (site / f"{module}.py").write_text(code, "utf-8")
        info = site / f"{(dist or name).replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {dist or name}\nVersion: 1.2\n", "utf-8"
        )
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n", "utf-8")
        monkeypatch.delitem(sys.modules, module, raising=False)
        return site

    return install


def good(install: Install, name: str = "sound", **settings: str) -> Path:
    site = install(name, GOOD.format(name=name), **settings)
    (site / f"{name}_impl.py").write_text(ENGINE.format(name=name), "utf-8")
    return site


def rows(host: PluginHost) -> dict[str, tuple[str, str]]:
    return {row.name: (row.state, row.reason) for row in host.rows}


def test_a_good_plugin(install: Install) -> None:
    good(install)
    host = PluginHost()
    (row,) = [row for row in host.rows if row.name == "sound"]
    assert (row.state, row.distribution, row.version) == ("loaded", "sound", "1.2")
    assert host.backends()["sound"].summary == "good"
    assert [device.name for device in host.backend("sound").devices()] == ["dev"]
    assert host.exporter("sound").format == "sound"


BROKEN = {
    "import-error": ("import there_is_no_such_module", "there_is_no_such_module"),
    "library": ("raise OSError('libtbb.so.2: cannot open')", "OSError: libtbb.so.2"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "syntax": ("def broken(:\n", "SyntaxError"),
    "panic": (  # what Rust extensions raise is no Exception
        "class PanicException(BaseException): pass\nraise PanicException('unwrap')",
        "PanicException: unwrap",
    ),
    "no-message": ("raise ValueError", "ValueError"),
    "lines": ("raise ValueError('first\\nsecond')", "ValueError: first"),
    "signature": (
        "from perfuse import hookimpl\n@hookimpl\ndef perfuse_backends(config): return []",
        "takes no arguments, this one takes ['config']",
    ),
    "misspelt": (
        "from perfuse import hookimpl\n@hookimpl\ndef perfuse_backend(): return []",
        "hook perfuse_backend does not exist; hooks: ",
    ),
    "misspelt-unmarked": ("def perfuse_beckends(): return []", "hook perfuse_beckends"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_plugin_that_cannot_be_loaded(install: Install, name: str) -> None:
    code, reason = BROKEN[name]
    install(name, code)
    good(install)
    host = PluginHost()
    state, said = rows(host)[name]
    assert state == "broken"
    assert reason in said
    assert "\n" not in said
    (row,) = [row for row in host.rows if row.name == name]
    assert name in row.remedy
    assert "sound" in host.backends()
    assert "torch" in host.backends()


FAILING = {
    "raises": ("raise RuntimeError('no driver')", "RuntimeError: no driver"),
    "raises-nothing": ("raise RuntimeError", "RuntimeError"),
    "exits": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "none": ("return None", "None"),
    "number": ("return 3", "3"),
    "text": ("return 'openvino'", "'o"),
    "one": ("return BackendManifest(name='x', impl='x:X')", "BackendManifest"),
    "dicts": ("return [{'name': 'x'}]", "{'name': 'x'}"),
    "yields": ("yield 3", "3"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_hook_that_fails_when_it_is_asked(install: Install, name: str) -> None:
    body, reason = FAILING[name]
    code = f"from perfuse import BackendManifest, hookimpl\n@hookimpl\ndef perfuse_backends():\n {body}"
    install(name, code)
    good(install)
    host = PluginHost()
    found = host.backends()
    assert "sound" in found
    assert "torch" in found
    assert all(type(manifest).__name__ == "BackendManifest" for manifest in found.values())
    state, said = rows(host)[name]
    assert state == "broken"
    assert reason in said
    assert "\n" not in said


def test_schedulers_of_a_broken_plugin(install: Install) -> None:
    install("wrong", "def perfuse_schedulers(): return 3")
    install("odd", "def perfuse_schedulers(): return {'Mine': 7}")
    install("fine", "def perfuse_schedulers(): return {'MyScheduler': 'plugin_fine:MyScheduler'}")
    host = PluginHost()
    found = host.schedulers()
    assert found["MyScheduler"] == "plugin_fine:MyScheduler"
    assert "DDIMScheduler" in found
    assert "Mine" not in found
    assert rows(host)["wrong"][0] == rows(host)["odd"][0] == "broken"


def test_a_plugin_does_not_take_the_name_of_core_s(install: Install) -> None:
    install("thief", "def perfuse_schedulers(): return {'DDIMScheduler': 'plugin_thief:Bad'}")
    assert PluginHost().schedulers()["DDIMScheduler"].startswith("perfuse.schedulers")


def test_two_plugins_of_one_name(install: Install) -> None:
    good(install, "sound")
    install("sound", GOOD.format(name="sound"), dist="second-sound")
    host = PluginHost()
    states = [row.state for row in host.rows if row.name == "sound"]
    assert sorted(states) == ["broken", "loaded"]
    (row,) = [row for row in host.rows if row.name == "sound" and row.state == "broken"]
    assert "same name" in row.reason
    assert "sound" in host.backends()


def test_two_backends_of_one_name_are_said(install: Install) -> None:
    """The first keeps the name; the second is not taken in silence."""
    good(install, "sound")
    install("zz-late", GOOD.format(name="sound"))
    host = PluginHost()
    assert host.backends()["sound"].impl == "sound_impl:Engine"
    (late,) = [row for row in host.rows if row.name in ("sound", "zz-late") and row.reason]
    assert late.state == "broken"
    assert "'sound'" in late.reason


def test_another_major_is_listed_and_never_imported(install: Install) -> None:
    install("future", "raise AssertionError('imported')", group="perfuse.v2")
    host = PluginHost()
    state, reason = rows(host)["future"]
    assert state == "incompatible"
    assert "perfuse.v2" in reason
    assert "plugin_future" not in sys.modules


def test_only_those_that_are_allowed(install: Install) -> None:
    good(install)
    install("unwanted", "raise AssertionError('imported')")
    host = PluginHost(["sound"])
    assert set(host.backends()) == {"sound"}
    assert rows(host)["unwanted"][0] == "disabled"
    assert rows(host)["torch"][0] == "disabled"
    assert "plugin_unwanted" not in sys.modules


# ── Classes that manifests name ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("impl", "words"),
    [
        ("no_such_module:Engine", "no_such_module"),
        ("sound_impl:Missing", "Missing"),
        ("sound_impl:Other", "not a Backend"),
        ("sound_impl:Fails", "OSError: libdevice.so"),
        ("sound_impl", "sound_impl"),
        ("sound_impl:Writer", "not a Backend"),
    ],
)
def test_a_backend_that_cannot_be_made(install: Install, impl: str, words: str) -> None:
    from perfuse.errors import PluginError

    good(install)
    install("wrong", GOOD.format(name="wrong").replace("wrong_impl:Engine", impl))
    host = PluginHost()
    with pytest.raises(PluginError, match=words) as caught:
        host.backend("wrong")
    assert impl in str(caught.value)
    assert host.backend("sound").name == "sound"


def test_unknown_backend_names_those_that_are_there_and_broken(install: Install) -> None:
    from perfuse.errors import BackendNotFoundError, ExportError

    install("library", "raise OSError('libtbb.so.2')")
    host = PluginHost()
    with pytest.raises(BackendNotFoundError, match=r"'warp'.*torch.*library \(OSError: libtbb"):
        host.backend("warp")
    with pytest.raises(ExportError, match="'warp'.*onnx, openvino"):
        host.exporter("warp")


def test_missing_modules() -> None:
    assert missing_modules(("json", "there_is_no_such_module", "sys")) == [
        "there_is_no_such_module"
    ]
    assert missing_modules(("there_is_no_such_package.part",)) == ["there_is_no_such_package.part"]


def test_in_tree_backends_say_which_format_they_load() -> None:
    """By this a checkpoint finds torch, and an exported folder its engine."""
    found = PluginHost().backends()
    formats = {name: found[name].formats for name in ("torch", "onnxruntime", "openvino")}
    assert formats == {"torch": (), "onnxruntime": ("onnx",), "openvino": ("openvino",)}


def test_the_command_line_lists_them_and_lives(install: Install) -> None:
    """In a process of its own, with every broken plugin installed at once."""
    for name, (code, _) in BROKEN.items():
        site = install(name, code)
    site = good(install)
    program = f"import sys; sys.path.insert(0, {str(site)!r})\nfrom perfuse.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, "backends", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {row["backend"]: row for row in json.loads(done.stdout)["backends"]}
    assert listed["sound"]["state"] == "available"
    assert listed["sound"]["devices"][0]["target"] == "sound:dev"
    for name in BROKEN:
        assert listed[name]["state"] == "broken"
        assert listed[name]["reason"]
        assert listed[name]["remedy"]
