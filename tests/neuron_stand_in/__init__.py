"""A stand-in for the Neuron SDK, which is not on PyPI: what surrounds it can be tested with this.

It traces with ``torch.jit.trace`` and runs on the CPU. It is no interpreter of a Neuron program, and
what passes with it has not been executed.
"""

import importlib
import sys
from pathlib import Path

import pytest

from perfuse_exporters.neuron import sdk

_HERE = Path(__file__).parent


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, cores: int = 2, version: str = "0.0+stand.in"
) -> None:
    """Put the stand-in where the SDK would be, on a machine of so many cores."""
    site = folder / "neuron-site"
    for name in ("torch-neuronx", "neuronx-cc"):
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(text, "utf-8")
    devices = folder / "neuron-devices"
    for core in range(cores):
        (devices / f"neuron{core // 2}" / f"neuron_core{core % 2}").mkdir(parents=True)
    monkeypatch.setattr(sdk, "DEVICES", devices)
    for path in (site, _HERE):
        monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PATH", str(_HERE / "bin"), prepend=":")
    for name in ("torch_neuronx", "neuronxcc", "libneuronxla"):
        monkeypatch.setitem(sys.modules, name, None)  # so that it is gone after the test
        del sys.modules[name]
    for variable in ("NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES"):
        monkeypatch.delenv(variable, raising=False)
    importlib.invalidate_caches()
