"""An engine that takes one size a program runs every size of a checkpoint."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from perfuse import (
    ArtifactStore,
    Backend,
    Component,
    Device,
    DiffusionPipeline,
    Program,
    Request,
    Support,
    SupportLevel,
    Target,
)
from perfuse.errors import ExecutionError, InputError, UnsupportedError
from perfuse.plugins import PluginHost
from perfuse.progress import Progress, reporting
from perfuse.run.per_size import PerSize

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]

GIVEN: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}


class OneSize(Backend):
    """PyTorch as an engine would be that compiles one size, in float32."""

    name: ClassVar[str] = "torch"

    def __init__(self) -> None:
        from perfuse_torch.backend import Torch

        self._torch = Torch()
        self.made: list[tuple[str, dict[str, int]]] = []
        self.open: list[tuple[str, dict[str, int]]] = []

    def devices(self) -> Sequence[Device]:
        return self._torch.devices()

    def supports(self, request: Request) -> Support:
        if set(request.component.signature.dims) - set(request.static):
            return Support(level=SupportLevel.UNSUPPORTED, reason="it compiles one size.")
        if request.precision != "float32":
            return Support(level=SupportLevel.UNSUPPORTED, reason="it computes in float32.")
        return Support(level=SupportLevel.FULL)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        assert not set(component.spec.signature.dims) - set(component.static)
        one = (component.name, dict(component.static))
        program = self._torch.prepare(component, target, store)
        self.made.append(one)
        self.open.append(one)
        close = program.close

        def closing() -> None:
            self.open.remove(one)
            close()

        program.close = closing  # type: ignore[method-assign]
        return program


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> OneSize:
    backend = OneSize()
    monkeypatch.setattr(PluginHost, "backend", lambda self, name: backend)
    return backend


@pytest.fixture
def pipe(checkpoint: Make, engine: OneSize) -> Iterator[DiffusionPipeline]:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"), backend="torch:cpu")
    yield pipe
    pipe.close()
    assert engine.open == []


@pytest.fixture(scope="module")
def symbolic(checkpoint: Make) -> DiffusionPipeline:
    """The same on PyTorch itself, prepared before any test puts another engine in its place."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"), backend="torch:cpu")
    for name in pipe.spec.components:
        pipe.program(name)
    return pipe


def same(one: Any, other: Any) -> bool:
    """Whether pictures agree: the loop's arithmetic is numpy's in one, PyTorch's in the other."""
    return one.shape == other.shape and bool(np.abs(one - other).max() < 1e-5)


def unet_sizes(engine: OneSize) -> list[tuple[int, int, int]]:
    return [
        (dims["batch"], dims["latent_height"], dims["latent_width"])
        for name, dims in engine.made
        if name == "unet"
    ]


def unet_inputs(batch: int, height: int = 8, width: int = 8, sequence: int = 77) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "sample": rng.standard_normal((batch, 4, height, width)).astype(np.float32),
        "timestep": np.full(batch, 10.5, np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, sequence, 32)).astype(np.float32),
    }


def test_a_picture(pipe: DiffusionPipeline, symbolic: DiffusionPipeline, engine: OneSize) -> None:
    heard: list[Progress] = []
    with reporting(heard.append):
        images = pipe("a red circle", **GIVEN).images
    said = [p.message for p in heard if p.seconds is None and " for " in p.message]
    assert same(images, symbolic("a red circle", **GIVEN).images)
    assert engine.made == [
        ("text_encoder", {"batch": 1, "sequence": 77}),
        ("unet", {"batch": 2, "latent_height": 8, "latent_width": 8, "sequence": 77}),
        ("vae_decoder", {"batch": 1, "latent_height": 8, "latent_width": 8}),
    ]
    assert "Preparing unet for batch 2, latent_height 8, latent_width 8, sequence 77" in said
    assert len(said) == 3


@pytest.mark.slow
def test_other_sizes_and_batches(
    pipe: DiffusionPipeline, symbolic: DiffusionPipeline, engine: OneSize
) -> None:
    for given in (
        {"height": 16, "width": 32},
        {"guidance_scale": 1.0},
        {"prompt": ["red", "blue", "green"]},
        {"prompt_embeds": np.ones((1, 50, 32), np.float32), "guidance_scale": 1.0},
    ):
        inputs = {**GIVEN, **({} if "prompt_embeds" in given else {"prompt": "red"}), **given}
        assert same(pipe(**inputs).images, symbolic(**inputs).images), given
    assert unet_sizes(engine) == [(2, 8, 16), (1, 8, 8), (6, 8, 8), (1, 8, 8)]


def test_the_last_sizes_are_kept(pipe: DiffusionPipeline, engine: OneSize) -> None:
    unet = pipe.program("unet")
    assert isinstance(unet, PerSize)
    assert engine.made == []  # nothing before a size is known
    for batch in (1, 2, 1, 3, 1, 2):
        unet(**unet_inputs(batch))
        assert len(engine.open) <= 2
    assert [batch for batch, _, _ in unet_sizes(engine)] == [1, 2, 3, 2]
    assert [dims["batch"] for _, dims in engine.open] == [1, 2]


def test_the_report(pipe: DiffusionPipeline, engine: OneSize) -> None:
    unet = pipe.program("unet")
    assert isinstance(unet, PerSize)
    assert unet.report().details["sizes"] == [
        {"batch": 1, "latent_height": 8, "latent_width": 8, "sequence": 77}
    ]
    unet(**unet_inputs(2, height=16, sequence=5))
    report = unet.report()
    assert (report.device, report.precision) == ("cpu", "float32")
    assert report.details["compile"] is False
    assert report.details["sizes"][-1] == {
        "batch": 2,
        "latent_height": 16,
        "latent_width": 8,
        "sequence": 5,
    }
    assert unet.torch_device == "cpu"
    assert len(engine.made) == 2


def test_a_wrong_size_is_refused_before_anything_is_made(
    pipe: DiffusionPipeline, engine: OneSize
) -> None:
    vae, unet = pipe.program("vae_encoder"), pipe.program("unet")
    text = pipe.program("text_encoder")
    with pytest.raises(InputError, match="vae_encoder takes height in multiples of 2; got 15"):
        vae(sample=np.ones((1, 3, 15, 16), np.float32))
    with pytest.raises(InputError, match="sequence of at most 77; got 78"):
        text(input_ids=np.ones((1, 78), np.int64))
    with pytest.raises(InputError, match="unet takes sample of shape"):
        unet(**{**unet_inputs(1), "sample": np.ones((2, 3, 8, 8), np.float32)})
    assert engine.made == []


def test_an_engine_that_cannot_take_a_size_says_so(pipe: DiffusionPipeline) -> None:
    unet = pipe.program("unet")

    def refuse(component: Component) -> Program:
        raise ExecutionError(f"batch {component.static['batch']} does not fit")

    unet(**unet_inputs(1))
    unet._make = refuse  # type: ignore[attr-defined]
    with pytest.raises(ExecutionError, match="batch 2 does not fit"):
        unet(**unet_inputs(2))
    unet(**unet_inputs(1))  # what was there is there still


def test_close(pipe: DiffusionPipeline, engine: OneSize) -> None:
    unet = pipe.program("unet")
    unet(**unet_inputs(1))
    unet.close()
    unet.close()
    assert engine.open == []
    with pytest.raises(ExecutionError, match="unet was closed"):
        unet(**unet_inputs(1))
    with pytest.raises(ExecutionError, match="unet was closed"):
        unet.report()


def test_a_module_that_was_put_in_place(
    pipe: DiffusionPipeline, symbolic: DiffusionPipeline, engine: OneSize
) -> None:
    before = pipe("red", **GIVEN).images
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.5)
    assert np.abs(pipe("red", **GIVEN).images - before).max() > 1e-3
    assert ("unet", engine.made[1][1]) == engine.made[-1]


def test_neither_any_size_nor_one(checkpoint: Make, engine: OneSize) -> None:
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("sd1"), backend="torch:cpu", precision="float16"
    )
    with pytest.raises(UnsupportedError) as found:
        pipe.program("unet")
    assert "it compiles one size." in str(found.value)
    assert "it computes in float32." in str(found.value)
    assert "float16" in str(found.value)


def test_the_same_reason_is_said_once(
    checkpoint: Make, engine: OneSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    no = Support(level=SupportLevel.UNSUPPORTED, reason="it has no arithmetic.")
    monkeypatch.setattr(engine, "supports", lambda request: no)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("ddpm"), backend="torch:cpu")
    with pytest.raises(UnsupportedError) as found:
        pipe.program("unet")
    assert str(found.value).count("it has no arithmetic.") == 1


def test_not_yet_is_asked_again_too(
    checkpoint: Make, engine: OneSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []

    def supports(request: Request) -> Support:
        asked.append(dict(request.static))
        level = SupportLevel.CONDITIONAL if request.static else SupportLevel.NOT_IMPLEMENTED
        return Support(level=level, reason="sizes must be fixed.")

    monkeypatch.setattr(engine, "supports", supports)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("ddpm"), backend="torch:cpu")
    images = pipe(batch_size=2, **GIVEN).images
    assert images.shape == (2, 16, 16, 3)
    assert asked == [{}, {"batch": 1, "height": 16, "width": 16}]
    assert engine.made == [("unet", {"batch": 2, "height": 16, "width": 16})]
    pipe.close()


def test_an_export_for_any_size_cannot_be_compiled_again(
    checkpoint: Make, engine: OneSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("ddpm"), backend="torch:cpu")
    plain = pipe.component

    def exported(name: str, **given: Any) -> Component:
        return dataclasses.replace(plain(name, **given), build=None)

    monkeypatch.setattr(type(pipe), "component", lambda self, name, **given: exported(name))
    with pytest.raises(
        UnsupportedError, match="was exported for any size.*compiles one size.*Export"
    ):
        pipe.program("unet")
