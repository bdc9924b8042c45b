"""Diffusers' own pipelines on an engine: the same pictures, and a report of what ran where."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse import ArtifactStore
from perfuse.errors import BackendError, InputError, UnsupportedError

pytestmark = pytest.mark.export

Make = Callable[[str], Path]


def seeded(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


class OneStep(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """A pipeline of the user's own, as the documentation writes its first one."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self) -> Any:
        size = self.unet.config.sample_size
        image = torch.randn((1, self.unet.config.in_channels, size, size), generator=seeded())
        output = self.unet(image, 1).sample
        return self.scheduler.step(output, 1, image, generator=seeded(1)).prev_sample


def test_a_pipeline_of_one_s_own(checkpoint: Make, tmp_path: Path) -> None:
    plain = diffusers.DDPMPipeline.from_pretrained(checkpoint("tiny"))
    pipe = OneStep(plain.unet, plain.scheduler)
    expected = pipe()
    same = perfuse.accelerate(pipe, "onnxruntime", store=ArtifactStore(tmp_path))
    assert same is pipe and isinstance(pipe, OneStep) and type(pipe).__name__ == "OneStep"
    assert torch.allclose(pipe(), expected, atol=1e-5)
    (row,) = pipe.perfuse.report()
    assert (row.name, row.class_name, row.target) == ("unet", "UNet2DModel", "onnxruntime")
    assert (row.calls, row.torch_calls) == (1, 0) and row.difference < 1e-5
    assert "unet (UNet2DModel): onnxruntime: 1 calls" in str(pipe.perfuse)


def test_what_is_no_number_is_not_believed(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at a later call either: the call is torch's, and the report says why."""
    from perfuse.run.guarded import GuardedProgram

    plain = diffusers.DDPMPipeline.from_pretrained(checkpoint("tiny"))
    pipe = OneStep(plain.unet, plain.scheduler)
    perfuse.accelerate(pipe, "onnxruntime", store=ArtifactStore(tmp_path))
    expected = pipe()
    call = GuardedProgram.__call__

    def spoiled(self: Any, **inputs: Any) -> Any:
        return {name: array * np.float32("nan") for name, array in call(self, **inputs).items()}

    monkeypatch.setattr(GuardedProgram, "__call__", spoiled)
    assert torch.allclose(pipe(), expected, atol=1e-5)
    (row,) = pipe.perfuse.report()
    assert (row.calls, row.torch_calls) == (1, 1)
    assert "returned NaN or infinity" in str(pipe.perfuse)


@pytest.mark.exhaustive
def test_a_replaced_component_runs_on_the_engine_too(checkpoint: Make, tmp_path: Path) -> None:
    pipe = diffusers.DDPMPipeline.from_pretrained(checkpoint("tiny"))
    pipe.set_progress_bar_config(disable=True)
    other = diffusers.UNet2DModel.from_config(pipe.unet.config).eval()

    def draw() -> Any:
        return pipe(num_inference_steps=2, generator=seeded(), output_type="np").images

    perfuse.accelerate(
        pipe, "openvino" if has_openvino() else "onnxruntime", store=ArtifactStore(tmp_path)
    )
    first = draw()
    pipe.unet = other
    second = draw()
    (row,) = pipe.perfuse.report()
    assert (row.calls, row.torch_calls) == (2, 0)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    third = draw()
    pipe.perfuse.restore()
    assert np.abs(draw() - third).max() < 1e-4
    assert np.abs(first - second).max() > 1e-2 and np.abs(second - third).max() > 1e-3


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_saved_for_another_machine(
    engine: str, checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = diffusers.DDPMPipeline.from_pretrained(checkpoint("tiny"))
    pipe.set_progress_bar_config(disable=True)

    def draw(pipe: Any, batch: int) -> Any:
        given = {"num_inference_steps": 2, "generator": seeded(), "output_type": "np"}
        return pipe(batch_size=batch, **given).images

    pytest.importorskip(engine)
    perfuse.accelerate(pipe, engine, store=ArtifactStore(tmp_path / "store"))
    expected = [draw(pipe, 2), draw(pipe, 3)]
    pipe.save_perfuse(tmp_path / "saved")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was captured")

    monkeypatch.setattr(torch.export, "export", refuse)
    again = perfuse.load_accelerated(tmp_path / "saved", strict=True)
    again.set_progress_bar_config(disable=True)
    assert type(again).__name__ == "DDPMPipeline"
    for batch, before in zip((2, 3), expected, strict=True):
        # Two of a batch ran in a graph for two before, and run in the one for any number now.
        assert np.abs(draw(again, batch) - before).max() < 1e-5
    with pytest.raises(InputError, match="save_perfuse"):
        perfuse.load_accelerated(checkpoint("tiny"))


def has_openvino() -> bool:
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def test_what_cannot_run_stays_on_torch_and_is_told(tmp_path: Path) -> None:
    class Counts(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x * len(set(x.long().flatten().tolist()))

    store, x = ArtifactStore(tmp_path), torch.tensor([[1.0, 1.0, 2.0]])
    module = perfuse.accelerate(Counts(), "onnxruntime", store=store)
    assert torch.equal(module(x), x * 2)
    (row,) = module.perfuse.report()
    assert (row.calls, row.torch_calls) == (0, 1) and "torch.export" in row.reasons[0]
    strict = perfuse.accelerate(Counts(), "onnxruntime", store=store, strict=True)
    with pytest.raises(UnsupportedError, match="module was to run on onnxruntime; .*torch.export"):
        strict(x)


@pytest.mark.parametrize("why", ["grad", "autocast", "meta", "array"])
def test_calls_that_only_torch_can_make(why: str, tmp_path: Path) -> None:
    module = perfuse.accelerate(
        torch.nn.Linear(3, 2, device="meta" if why == "meta" else "cpu"),
        "onnxruntime",
        store=ArtifactStore(tmp_path),
    )
    x: Any = torch.ones(1, 3)
    if why == "grad":
        module(x.requires_grad_()).sum().backward()
        assert x.grad is not None
    elif why == "autocast":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert module(x).dtype == torch.bfloat16
    elif why == "meta":
        with torch.no_grad():
            assert module(x.to("meta")).is_meta
    else:
        with pytest.raises(TypeError):
            module(np.ones((1, 3)))
    row = module.perfuse.report()[0] if why != "array" else None
    assert row is None or (row.calls == 0 and row.torch_calls == 1 and row.reasons)


def test_what_cannot_be_accelerated(checkpoint: Make) -> None:
    pipe = diffusers.DDPMPipeline.from_pretrained(checkpoint("tiny"))
    with pytest.raises(InputError, match="has the modules unet"):
        perfuse.accelerate(pipe, "vae=onnxruntime")
    with pytest.raises(InputError, match="A str was to be accelerated"):
        perfuse.accelerate("a path", "onnxruntime")
    with pytest.raises(BackendError, match="nothere"):
        perfuse.accelerate(pipe, "nothere")
