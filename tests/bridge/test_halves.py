"""Modules and pipelines of others' code in half precision: as far from float32 as PyTorch is, and no farther."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse import ArtifactStore

pytestmark = pytest.mark.export

#: Of other families than perfuse's own.
NAMES = ("AuraFlowPipeline", "HunyuanVideoPipeline", "KandinskyV22Pipeline", "StableAudioPipeline")


class Gated(torch.nn.Module):
    """Layers in half precision, a norm among them, and a time in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Linear(8, 16), torch.nn.LayerNorm(16)
        self.last = torch.nn.Linear(16, 8)

    def forward(self, x: Any, time: Any) -> Any:
        hidden = self.norm(self.first(x)) * time.sin().to(x.dtype)
        return self.last(torch.nn.functional.silu(hidden))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_a_module(engine: str, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    module, x, time = Gated().to(kind).eval(), torch.randn(3, 8).to(kind), torch.tensor(0.7)
    with torch.no_grad():
        exact = Gated.forward(module.float(), x.float(), time)
        eager = module.to(kind)(x, time)
        perfuse.accelerate(module, engine, store=ArtifactStore(tmp_path), strict=True)
        found = module(x, time)
    assert found.dtype is kind
    allowed = 2 * (eager.float() - exact).abs().max() + torch.finfo(kind).eps
    assert (found.float() - exact).abs().max() <= allowed
    (row,) = module.perfuse.report()
    assert (row.calls, row.torch_calls) == (1, 0)
    # ONNX Runtime computes in no bfloat16.
    widened = "bfloat16" if (engine, dtype) == ("onnxruntime", "bfloat16") else ""
    assert row.widened == widened
    assert ("in float32 for want of bfloat16" in str(row)) is bool(widened)


def test_a_precision_that_was_asked_for_is_kept_or_refused(tmp_path: Path) -> None:
    module, given = Gated().bfloat16().eval(), (torch.ones(1, 8).bfloat16(), torch.tensor(0.7))
    store = ArtifactStore(tmp_path)
    with torch.no_grad():
        perfuse.accelerate(module, "onnxruntime", precision="bfloat16", store=store)(*given)
        (row,) = module.perfuse.report()
        assert row.torch_calls == 1 and "bfloat16" in row.reasons[0]
        perfuse.accelerate(module, "onnxruntime", precision="float32", store=store)(*given)
        (row,) = module.perfuse.report()
        assert (row.calls, row.torch_calls, row.widened) == (1, 0, "")


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline(name: str, engine: str, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    pytest.importorskip("diffusers")
    from perfuse_conformance.bridged.measure import call_of, pipeline_of
    from perfuse_conformance.bridged.recipe import recipes

    kind = getattr(torch, dtype)
    pipe = pipeline_of(next(one for one in recipes() if one.name == name))[1]
    torch.manual_seed(0)
    call = {**call_of(name), "num_inference_steps": 2}

    def draw(dtype: Any) -> Any:
        torch.manual_seed(0)
        given = {
            key: value.to(dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for key, value in call.items()
        }
        found = pipe(**given, generator=torch.Generator().manual_seed(0))[0]
        found = found.float() if isinstance(found, torch.Tensor) else found
        return np.asarray(found, dtype=np.float32)

    exact = draw(torch.float32)
    pipe.to(kind)
    eager = draw(kind)
    perfuse.accelerate(pipe, engine, store=ArtifactStore(tmp_path))
    allowed = 2 * np.abs(eager - exact).max() + 1e-3 * np.abs(exact).max()
    for _ in range(2):
        assert np.abs(draw(kind) - exact).max() <= allowed
    assert not [str(row) for row in pipe.perfuse.report() if row.torch_calls]
