"""What Neuron's compiler is given, interpreted on XLA's CPU client, held against the reference.

The component of a DDPM is asked in float32. The other models, pictures and halves take longer: ``make
conformance``; the backend of perfuse-xla, which runs the same kind of program, is asked for them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("jax")

from perfuse.backend import Component, Program, Request, Target
from perfuse.errors import DeviceNotFoundError, InputError, UnsupportedError
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.store import ArtifactStore
from perfuse_conformance import BackendConformance
from perfuse_interpreters.neuron import NeuronInterpreter

pytestmark = pytest.mark.export

FAST: dict[str, str] = {"optimization": "0"}  # most of the time is XLA's compiler's


class TestUnconditional(BackendConformance):
    backend = "neuron-interpreter"
    model = "random-ddpm"
    level = "L1"
    precisions = ("float32",)
    options: ClassVar = FAST


@pytest.fixture(scope="module")
def unet(checkpoint: Callable[[str], Path]) -> Component:
    found = Checkpoint.open(checkpoint("tiny")).component("unet")
    return dataclasses.replace(found, static={"batch": 1, "height": 8, "width": 8})


def prepared(component: Component, device: str | None = None, **options: Any) -> Program:
    target = Target(backend="neuron-interpreter", device=device, options=options)
    return NeuronInterpreter().prepare(component, target, ArtifactStore.default())


def test_a_precision_is_a_cast(unet: Component) -> None:
    """float32 weights always; the products' operands are what the precision says."""
    given = {"sample": np.ones((1, 3, 8, 8), np.float32), "timestep": np.ones(1, np.float32)}
    found = {}
    for precision, auto_cast in (("float32", "none"), ("bfloat16", "matmult")):
        program = prepared(dataclasses.replace(unet, precision=precision))
        report = program.report()
        assert report.precision == precision
        assert report.details["precision"] == "float32"
        assert report.details["auto_cast"] == auto_cast
        assert report.details["operators"] == "neuron"
        assert report.details["interprets"] == "neuron"
        found[precision] = program(**given)["out_sample"]
    assert 1e-4 < np.abs(found["bfloat16"] - found["float32"]).max() < 0.1
    wide = prepared(dataclasses.replace(unet, precision="bfloat16"), auto_cast="none")
    assert wide.report().precision == "float32"
    assert (wide(**given)["out_sample"] == found["float32"]).all()


def test_what_it_refuses(unet: Component) -> None:
    with pytest.raises(DeviceNotFoundError, match="the backend neuron, on an instance"):
        prepared(unet, device="nc:0")
    with pytest.raises(InputError, match="it takes none, matmult, all"):
        prepared(unet, auto_cast="some")
    exported = dataclasses.replace(unet, files={"stablehlo": Path("model.stablehlo")})
    with pytest.raises(InputError, match="written into it when it was exported"):
        prepared(exported, auto_cast="all")
    with pytest.raises(UnsupportedError, match="needs that of height, width"):
        prepared(dataclasses.replace(unet, static={"batch": 1}))
    request = Request(component=unet.spec, precision="float7", static=unet.static)
    assert not NeuronInterpreter().supports(request).works
