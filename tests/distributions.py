"""Real distributions with plugins, installed into a folder of the test."""

from collections.abc import Callable
from pathlib import Path

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
        {devices}
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


def write_distribution(
    site: Path, name: str, code: str, *, group: str = "perfuse.v1", dist: str | None = None
) -> str:
    """Write a distribution with one entry point, as pip would; return the name of its module."""
    module = f"plugin_{(dist or name).replace('-', '_')}"
    (site / f"{module}.py").write_text(code, "utf-8")
    info = site / f"{(dist or name).replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {dist or name}\nVersion: 1.2\n", "utf-8"
    )
    where = module if group.startswith("perfuse.v") else f"{module}:command"
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {where}\n", "utf-8")
    return module


def good(install: Install, name: str = "sound", *, devices: str = "", **settings: str) -> Path:
    """Install a plugin with a backend and an exporter; ``devices`` is code of its ``devices()``."""
    site = install(name, GOOD.format(name=name), **settings)
    (site / f"{name}_impl.py").write_text(ENGINE.format(name=name, devices=devices), "utf-8")
    return site
