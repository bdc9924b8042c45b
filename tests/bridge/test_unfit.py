"""Pipelines and models that are not as a graph needs them: each says so in a sentence, and none fails
that worked.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse import ArtifactStore
from perfuse.cli.main import main
from perfuse.errors import CheckpointError, UnsupportedError

pytestmark = pytest.mark.export

Make = Callable[[str], Path]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def model(checkpoint: Make, tmp_path: Path) -> Path:
    """A checkpoint of a class that runs through Diffusers."""
    unet = diffusers.UNet2DModel.from_pretrained(checkpoint("tiny") / "unet")
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=10)
    diffusers.ConsistencyModelPipeline(unet, scheduler).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# ── Models that stay on torch, as they are ──────────────────────────────────────────────────────


class Net(torch.nn.Module):  # type: ignore[misc]
    """Two layers whose sizes every scheme of quantising takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 32)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x).relu())


def by_torchao(net: Net) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())


def by_gguf(net: Net) -> None:
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    layer = GGUFLinear(64, 64, compute_dtype=torch.float32)
    packed = gguf.quants.quantize(net.first.weight.detach().numpy(), kind)
    layer.weight = GGUFParameter(torch.from_numpy(packed), quant_type=kind)
    layer.bias = net.first.bias
    net.first = layer


def by_bitsandbytes(net: Net) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(net.first.state_dict())
    net.first = layer.to("cpu")


def in_float8(net: Net) -> None:
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(net, torch.float8_e4m3fn, torch.float32)


def on_disk(net: Net, folder: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.disk_offload(net, str(folder), execution_device=torch.device("cpu"))


MADE_UNFIT: dict[str, tuple[Callable[[Net], None], str]] = {
    "torchao": (by_torchao, "its weight first.weight is quantised: a "),
    "gguf": (by_gguf, "its weight first.weight is quantised: a GGUFParameter"),
    "bitsandbytes": (by_bitsandbytes, "its weight first.weight is quantised: a Params4bit"),
    "float8": (in_float8, "its layer first has the hook layerwise_casting of Diffusers"),
}


@pytest.mark.parametrize("kind", MADE_UNFIT)
@pytest.mark.parametrize("when", ["before", "after"])
def test_quantised(kind: str, when: str, store: ArtifactStore) -> None:
    change, said = MADE_UNFIT[kind]
    net, x = Net().eval(), torch.ones(2, 64)
    with torch.no_grad():
        if when == "before":
            change(net)
        perfuse.accelerate(net, "onnxruntime", store=store)
        if when == "after":
            net(x)
            change(net)
        found = net(x)
        (row,) = net.perfuse.report()
        assert (row.calls, row.torch_calls) == (int(when == "after"), 1)
        assert row.reasons[0].startswith(said)
        net.perfuse.restore()
        assert torch.equal(found, net(x))


@pytest.mark.parametrize("when", ["before", "after"])
def test_offloaded_to_the_disk(when: str, store: ArtifactStore, tmp_path: Path) -> None:
    net, x = Net().eval(), torch.ones(2, 64)
    with torch.no_grad():
        expected = net(x)
        if when == "before":
            on_disk(net, tmp_path / "disk")
        perfuse.accelerate(net, "onnxruntime", store=store)
        if when == "after":
            on_disk(net, tmp_path / "disk")
        assert torch.equal(net(x), expected)
    (row,) = net.perfuse.report()
    assert row.calls == 0
    assert row.reasons[0].endswith("has a hook of accelerate, which moves weights while it runs")


class Offloaded(diffusers.ModelMixin):  # type: ignore[misc]
    """A model of Diffusers, which knows its device."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.linear(x)


@pytest.mark.parametrize("when", ["before", "after"])
def test_moved_by_a_components_manager(
    when: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While ``enable_auto_cpu_offload`` moves a model it runs on torch, and on the engine after."""
    pytest.importorskip("accelerate")
    # The processor is taken for a device whose memory is known.
    monkeypatch.setattr(torch.cpu, "mem_get_info", lambda index: (2**34, 2**34), raising=False)
    held, model, x = diffusers.ComponentsManager(), Offloaded().eval(), torch.ones(1, 4)
    held.add("first", model)
    with torch.no_grad():
        expected = model(x)
        if when == "before":
            held.enable_auto_cpu_offload(device="cpu")
        pipe = perfuse.accelerate(TwoParts(model), "onnxruntime", store=store)
        if when == "after":
            pipe(x)
            held.enable_auto_cpu_offload(device="cpu")
        assert torch.equal(pipe(x), expected)
        (row,) = pipe.perfuse.report()
        assert row.calls == int(when == "after")
        assert "a hook of accelerate, which moves weights while it runs" in str(row)
        held.disable_auto_cpu_offload()
        torch.testing.assert_close(pipe(x), expected)
    (row,) = pipe.perfuse.report()
    assert row.calls == 1 + int(when == "after")


def test_on_meta(store: ArtifactStore) -> None:
    net = perfuse.accelerate(Net().to("meta"), "onnxruntime", store=store, strict=True)
    with pytest.raises(
        UnsupportedError, match=r"first\.weight is on the meta device: nothing is lo"
    ):
        net(torch.ones(2, 64))


# ── Components that are not there ───────────────────────────────────────────────────────────────


class TwoParts(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """A pipeline that may lack one of its models."""

    _optional_components = ["second"]  # noqa: RUF012 - Diffusers' own name

    def __init__(self, first: Any, second: Any = None) -> None:
        super().__init__()
        self.register_modules(first=first, second=second)

    @torch.no_grad()
    def __call__(self, x: Any) -> Any:
        hidden = self.first(x)
        return hidden if self.second is None else self.second(hidden)


def test_a_component_replaced_by_none_and_put_back(store: ArtifactStore) -> None:
    first, second, x = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.ones(1, 4)
    pipe = perfuse.accelerate(TwoParts(first, second), "onnxruntime", store=store)
    whole = pipe(x)
    pipe.second = None
    assert torch.allclose(pipe(x), torch.nn.functional.linear(x, first.weight, first.bias))
    assert [row.name for row in pipe.perfuse.report()] == ["first"]
    pipe.second = second
    assert torch.allclose(pipe(x), whole)
    assert {row.name: row.calls for row in pipe.perfuse.report()} == {"first": 3, "second": 1}


def test_one_that_the_pipeline_needs(model: Path, tmp_path: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"unet": [None, None]}))
    asked = ["generate", "--model", str(model), "--quiet", "--output", str(tmp_path / "a.png")]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 1 and done.output.count("\n") <= 2, done.output
    assert "was opened by Diffusers" in done.output and "'unet'" in done.output, done.output


# ── Of another version of Diffusers ─────────────────────────────────────────────────────────────


def test_of_another_version_of_diffusers(model: Path) -> None:
    file = model / "model_index.json"
    index = json.loads(file.read_text()) | {"_diffusers_version": "99.1.0"}
    file.write_text(json.dumps(index))
    given = {"num_inference_steps": 1, "output_type": "np"}
    found, expected = (
        opened.from_pretrained(model)(generator=torch.Generator().manual_seed(0), **given).images
        for opened in (perfuse.DiffusionPipeline, diffusers.DiffusionPipeline)
    )
    assert np.array_equal(found, expected)
    file.write_text(json.dumps(index | {"unet": ["diffusers", "UNetOfTomorrow"]}))
    with pytest.raises(
        CheckpointError, match=r"UNetOfTomorrow.* was written by Diffusers 99\.1\.0"
    ):
        perfuse.DiffusionPipeline.from_pretrained(model)
