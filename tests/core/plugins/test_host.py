"""The plugin host among real distributions, most of them broken."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.distributions import GOOD, Install, good

import perfuse.plugins
from perfuse.errors import (
    BackendError,
    BackendNotFoundError,
    ConfigError,
    DeviceNotFoundError,
    InputError,
    PluginError,
)
from perfuse.plugins import PluginHost, missing_modules
from perfuse.plugins.disabled import read_disabled, switch
from perfuse.plugins.installed import entry_points


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
    "unsayable": (
        "class Odd(Exception):\n def __str__(self): raise ValueError\nraise Odd('x')",
        "Odd",
    ),
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
    "misspelt-first": (
        "from perfuse import hookimpl\n@hookimpl\ndef prefuse_backends(): return []",
        "hook prefuse_backends does not exist",
    ),
    "one-of-two": (  # what is right beside it is not taken either
        "def perfuse_schedulers(): return {'Half': 'a:B'}\ndef perfuse_backend(): return []",
        "hook perfuse_backend does not exist",
    ),
    "default": (
        "from perfuse import hookimpl\n@hookimpl\ndef perfuse_backends(config=7): return []",
        "has a default for its argument 'config', which would never be passed",
    ),
    "many": ("def perfuse_backends(*given): return []", "takes no arguments"),
    "no-function": ("perfuse_backends = []", "hook perfuse_backends is [], not a function"),
    "wrapper": (
        "from perfuse import hookimpl\n@hookimpl(wrapper=True)\ndef perfuse_backends():\n yield",
        "is marked with wrapper",
    ),
    "renamed": (
        "import perfuse\n@perfuse.hookimpl(specname='other')\ndef perfuse_backends(): return []",
        "is marked with specname",
    ),
    "empty": ("x = 1", "it has none of the hooks perfuse_"),
}


def check_faults(host: PluginHost, faults: Mapping[str, tuple[str, str]]) -> None:
    """Each of these plugins is broken, for its own reason, and tells what to do."""
    for row in [row for row in host.rows if row.name in faults]:
        assert row.state == "broken", row
        assert faults[row.name][1] in row.reason
        assert "\n" not in row.reason
        assert row.name in row.remedy
    assert {row.name for row in host.rows} > set(faults)
    assert {"sound", "torch"} <= host.backends().keys()


def test_plugins_that_cannot_be_loaded(install: Install) -> None:
    """All at once, which takes less time."""
    for name, (code, _) in BROKEN.items():
        install(name, code)
    good(install)
    host = PluginHost()
    check_faults(host, BROKEN)
    assert "Half" not in host.schedulers()


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
    "one-text": (
        "return [BackendManifest(name='x', impl='x:X', requires=('torch'))]",
        "requires is 'torch', not a tuple",
    ),
    "number-for-name": ("return [BackendManifest(name=3, impl='x:X')]", "name is 3, not a text"),
    "no-version": (
        "return [BackendManifest(name='x', impl='x:X', api_min='one')]",
        "asks for contract version 'one'; write MAJOR.MINOR",
    ),
}


def test_hooks_that_fail_when_they_are_asked(install: Install) -> None:
    start = "from perfuse import BackendManifest, hookimpl\n@hookimpl\ndef perfuse_backends():\n "
    for name, (body, _) in FAILING.items():
        install(name, start + body)
    good(install)
    host = PluginHost()
    found = host.backends()
    assert all(type(manifest).__name__ == "BackendManifest" for manifest in found.values())
    check_faults(host, FAILING)


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


def test_a_plugin_that_goes_by_the_name_of_core(install: Install) -> None:
    install("perfuse", GOOD.format(name="thief"), dist="thief")
    host = PluginHost()
    assert rows(host)["perfuse"] == ("broken", "another plugin has the same name")
    assert "DDIMScheduler" in host.schedulers()
    assert "thief" not in host.backends()


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


def test_a_plugin_for_several_majors(install: Install) -> None:
    site = good(install)
    with open(site / "sound-1.2.dist-info" / "entry_points.txt", "a") as file:
        file.write("[perfuse.v2]\nsound = plugin_v2\n")
    assert [(row.name, row.state) for row in PluginHost(["sound"]).rows if row.name == "sound"] == [
        ("sound", "loaded")
    ]


def test_only_those_that_are_allowed(install: Install) -> None:
    good(install)
    install("unwanted", "raise AssertionError('imported')")
    host = PluginHost(["sound"])
    assert set(host.backends()) == {"sound"}
    assert rows(host)["unwanted"][0] == "disabled"
    assert rows(host)["torch"][0] == "disabled"
    assert "plugin_unwanted" not in sys.modules


def test_the_second_of_a_name_is_a_row_where_the_first_is_broken(install: Install) -> None:
    install("sound", "raise OSError('gone')", dist="a-first")
    install("sound", GOOD.format(name="sound"), dist="b-second")
    host = PluginHost()
    reasons = sorted(row.reason for row in host.rows if row.name == "sound")
    assert reasons == ["OSError: gone", "another plugin has the same name"]


def test_no_plugin_takes_a_name_of_perfuse_s(install: Install) -> None:
    """However early in the alphabet, or in the path."""
    install("aaa", GOOD.format(name="torch"))
    host = PluginHost()
    assert host.backends()["torch"].impl.startswith("perfuse_torch")
    assert rows(host)["aaa"] == ("broken", "the backend 'torch' is there already, from torch")


def test_what_a_plugin_prints_is_not_what_a_command_prints(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("loud", "print('hello')\ndef perfuse_backends():\n print('again')\n return []")
    host = PluginHost()
    assert host.backends()
    assert rows(host)["loud"] == ("loaded", "")
    assert capsys.readouterr().out == ""


# ── The version of the contract ─────────────────────────────────────────────────────────────────

RANGES = {
    "too-new": ("api_min='1.7'", "it needs contract version 1.7 or later; this perfuse has 1.0"),
    "next-major": ("api_min='2.0'", "it needs contract version 2.0"),
    "too-old": ("api_max='0.9'", "it was made for contract versions up to 0.9"),
}


@pytest.mark.parametrize("name", RANGES)
def test_another_contract_is_said_and_the_class_never_imported(install: Install, name: str) -> None:
    arguments, reason = RANGES[name]
    site = install(
        name,
        "from perfuse import BackendManifest, ExporterManifest\ndef perfuse_backends():\n"
        f" return [BackendManifest(name='other', impl='other_impl:Engine', {arguments}),\n"
        "  BackendManifest(name='same', impl='x:X', api_max='1.4')]\n"
        f"def perfuse_exporters(): return [ExporterManifest(format='o', impl='x:X', {arguments})]\n",
    )
    (site / "other_impl.py").write_text("raise AssertionError('imported')")
    good(install)
    host = PluginHost()
    host.ask_all()
    state, said = rows(host)[name]
    assert state == "incompatible"
    assert reason in said
    assert "other" not in host.backends()
    assert "o" not in host.exporters()
    assert {"same", "sound"} <= set(host.backends())
    with pytest.raises(BackendNotFoundError, match=rf"'other'.*{name} \(incompatible\)"):
        host.backend("other")
    assert "other_impl" not in sys.modules


# ── Conflicts, what is switched off, strictness ─────────────────────────────────────────────────


def test_distributions_that_overwrite_each_other(install: Install) -> None:
    code = GOOD.format(name="both").replace("summary=", 'conflicts=("acme", "acme-gpu"), summary=')
    install("both", code)
    site = good(install)
    (site / "both_impl.py").write_text((site / "sound_impl.py").read_text())
    install("x", GOOD.format(name="x"), dist="acme")
    assert PluginHost().backend("both").devices()
    install("y", GOOD.format(name="y"), dist="acme-gpu")
    host = PluginHost()
    (row,) = [row for row in host.listing()["backends"] if row["backend"] == "both"]
    assert row["state"] == "conflict"
    assert "acme and acme-gpu are installed" in row["reason"]
    assert row["remedy"].startswith("pip uninstall acme acme-gpu")
    with pytest.raises(BackendError, match="'both' was asked for; acme and acme-gpu"):
        host.backend("both")
    assert host.backend("sound").devices()


def installed() -> list[str]:
    return [entry.key for entry in entry_points()]


def test_what_is_switched_off_is_not_imported(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PERFUSE_CONFIG", str(tmp_path / "config"))
    good(install)
    install("bad", "raise AssertionError('imported')", dist="Some_Thing")
    assert switch("some.thing", installed(), on=False) == ["some-thing:bad"]
    host = PluginHost()
    assert rows(host)["bad"] == ("disabled", "it was switched off")
    assert "sound" in host.backends()
    assert "plugin_Some_Thing" not in sys.modules
    assert switch("bad", installed(), on=True) == ["some-thing:bad"]
    assert rows(PluginHost())["bad"][0] == "broken"


def test_what_was_switched_off_can_be_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PERFUSE_CONFIG", str(tmp_path))
    (tmp_path / "plugins.json").write_text('{"disabled": ["gone-dist:gone", "other:thing"]}')
    assert switch("gone", installed(), on=True) == ["gone-dist:gone"]
    assert read_disabled() == {"other:thing"}
    with pytest.raises(InputError, match="'gone' was named; installed: .*torch"):
        switch("gone", installed(), on=False)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"disabled": 3}', '{"disabled": [3]}', "{}", b"\xff\xfe\x00"]
)
def test_a_damaged_file_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | bytes
) -> None:
    monkeypatch.setenv("PERFUSE_CONFIG", str(tmp_path))
    path = tmp_path / "plugins.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match="plugins.json.*Remove it"):
        PluginHost()


def test_strict_names_every_fault(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    good(install)
    install("bad", "raise OSError('libacme.so')")
    install("old", "x = 1", group="perfuse.v0")
    absent = GOOD.format(name="absent").replace("summary=", 'requires=("no_engine",), summary=')
    install("absent", absent)
    monkeypatch.setenv("PERFUSE_STRICT", "1")
    with pytest.raises(PluginError, match="bad of bad 1.2 .*libacme.so.*old of old 1.2") as caught:
        perfuse.plugins.host()
    assert "absent" not in str(caught.value)
    monkeypatch.setenv("PERFUSE_PLUGINS", "sound, absent")
    assert "sound" in perfuse.plugins.host().backends()
    monkeypatch.setenv("PERFUSE_STRICT", "maybe")
    perfuse.plugins.host.cache_clear()
    with pytest.raises(ConfigError, match="PERFUSE_STRICT is 'maybe'"):
        perfuse.plugins.host()


def test_an_allowed_plugin_that_is_not_there_is_a_row(install: Install) -> None:
    good(install, dist="sound-dist")
    host = PluginHost(["Sound.Dist", "sond"])
    assert set(host.backends()) == {"sound"}
    assert rows(host)["sond"] == (
        "not installed",
        "PERFUSE_PLUGINS names it, and no plugin of this name is installed",
    )


@pytest.mark.slow
def test_listing_ten_plugins_imports_no_engine(install: Install) -> None:
    for i in range(10):
        site = good(install, f"sound{i}")
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from perfuse.cli import main\n"
        "try: main()\nexcept SystemExit as exit: assert exit.code == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    for command in (["backends", "--no-devices"], ["backends", "--no-devices", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *command], capture_output=True, text=True, check=True
        )
        assert all(f"sound{i}" in done.stdout for i in range(10))
        loaded = {name.split(".")[0] for name in done.stderr.split()}
        heavy = {"torch", "transformers", "onnx", "onnxruntime", "openvino", "numpy", "PIL"}
        assert not loaded & heavy
        assert not {f"sound{i}_impl" for i in range(10)} & loaded


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
    good(install)
    install("wrong", GOOD.format(name="wrong").replace("wrong_impl:Engine", impl))
    host = PluginHost()
    with pytest.raises(PluginError, match=words) as caught:
        host.backend("wrong")
    assert impl in str(caught.value)
    assert host.backend("sound").name == "sound"


def test_unknown_backend_names_those_that_are_there_and_broken(install: Install) -> None:
    from perfuse.errors import ExportError

    install("library", "raise OSError('libtbb.so.2')")
    host = PluginHost()
    with pytest.raises(BackendNotFoundError, match=r"'warp'.*torch.*library \(OSError: libtbb"):
        host.backend("warp")
    with pytest.raises(ExportError, match="'warp'.*onnx.*openvino"):
        host.exporter("warp")


def test_missing_modules() -> None:
    assert missing_modules(("json", "there_is_no_such_module", "sys")) == [
        "there_is_no_such_module"
    ]
    assert missing_modules(("there_is_no_such_package.part",)) == ["there_is_no_such_package.part"]


def test_a_module_in_a_package_that_is_broken_is_there(install: Install) -> None:
    """What is wrong with it is said by whoever imports it."""
    site = good(install)
    (site / "halfway").mkdir()
    (site / "halfway" / "__init__.py").write_text("raise OSError('libhalf.so')")
    assert missing_modules(("halfway.part",)) == []


def test_in_tree_backends_say_which_format_they_load() -> None:
    """By this a checkpoint finds torch, and an exported folder its engine."""
    found = PluginHost().backends()
    formats = {name: found[name].formats for name in ("torch", "onnxruntime", "openvino")}
    assert formats == {"torch": (), "onnxruntime": ("onnx",), "openvino": ("openvino",)}


@pytest.mark.slow
def test_the_command_line_lists_them_and_lives(install: Install) -> None:
    """In a process of its own, among broken plugins."""
    few = ("import-error", "exits", "panic", "misspelt")
    for name in few:
        install(name, BROKEN[name][0])
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
    for name in few:
        assert listed[name]["state"] == "broken"
        assert listed[name]["reason"]
        assert listed[name]["remedy"]


def test_a_backend_whose_engine_runs_elsewhere(install: Install) -> None:
    """It is told what can be done here: its files be made, and be interpreted."""
    far = GOOD.format(name="far").replace("summary=", 'platforms=("beos",), summary=')
    near = GOOD.format(name="near").replace("summary=", 'interprets="far", summary=')
    install("far", far)
    host = PluginHost()
    (row,) = [row for row in host.listing()["backends"] if row["backend"] == "far"]
    assert (row["state"], row["interpreters"], row["remedy"]) == ("unavailable", [], "")
    assert "runs on beos alone" in row["reason"]
    install("near", near)
    host = PluginHost()
    found = {row["backend"]: row for row in host.listing()["backends"]}
    assert found["far"]["interpreters"] == ["near"]
    assert found["far"]["remedy"].endswith("--backend near")
    assert (found["near"]["interprets"], found["near"]["state"]) == ("far", "available")
    with pytest.raises(BackendError, match="runs on beos alone.*here: --backend near"):
        host.backend("far")


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("return []", DeviceNotFoundError, "its engine lists none"),
        ("return ['cpu']", PluginError, "it listed 'cpu'"),
        ("raise SystemExit(0)", PluginError, "it raised SystemExit: 0"),
        ("raise KeyError('x')", PluginError, "it raised KeyError: 'x'"),
    ],
)
def test_devices_that_cannot_be_listed(
    install: Install, code: str, error: type[Exception], said: str
) -> None:
    good(install, devices=code)
    host = PluginHost(["sound"])
    with pytest.raises(error, match=f"'sound' was asked for its devices; {said}"):
        host.devices("sound")
