"""ExecuTorch: what it computes, what it returns, what it refuses, and what it leaves alone."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from perfuse import DiffusionPipeline, Dim
from perfuse.backend import Component, Program, Request, SupportLevel
from perfuse.errors import (
    ArtifactError,
    DeviceNotFoundError,
    ExecutionError,
    ExportError,
    InputError,
    UnsupportedError,
)
from perfuse.plugins import host
from perfuse.sources import Checkpoint
from perfuse.spec import ComponentSpec
from perfuse_conformance.cases.probes import inputs_of, probes_of
from torch import nn
from torch.nn import functional as F

from perfuse_executorch import runtime
from perfuse_executorch.backend import ExecuTorch
from perfuse_executorch.operators import decompositions

Find = Callable[..., Component]
Make = Callable[[str], Path]
Prepare = Callable[..., Program]

#: Latents of 8 x 6 are pictures of 16 x 12 with the small checkpoints' autoencoder.
SIZES = {
    "latent_height": 8,
    "latent_width": 6,
    "height": 16,
    "width": 12,
    "sequence": 7,
}


def sizes(batch: int, spec: ComponentSpec) -> dict[str, int]:
    return {dim: {**SIZES, "batch": batch}[dim] for dim in spec.signature.dims}


def arrays(spec: ComponentSpec, dims: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """Inputs of a size; timesteps have fractions and differ within the batch."""
    random = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for tensor in spec.signature.inputs:
        shape = tuple(int(size) for size in tensor.resolve(dims))
        if tensor.dtype == "int64":
            made[tensor.name] = random.integers(0, 90, shape)
        elif tensor.name == "timestep":
            made[tensor.name] = np.linspace(946.421, 12.9, shape[0], dtype=np.float32)
        else:
            made[tensor.name] = random.standard_normal(shape, dtype=np.float32)
    return made


def distance(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The largest difference of any output, relative to the output's largest value."""
    assert found.keys() == wanted.keys()
    return max(
        float(np.abs(found[name] - np.asarray(wanted[name])).max() / np.abs(wanted[name]).max())
        for name in found
    )


@pytest.fixture(scope="session")
def tiny(component: Find) -> Component:
    return component("tiny", "unet", static={"batch": 2, "height": 8, "width": 6})


@pytest.fixture
def unet(tiny: Component, prepare: Prepare) -> Program:
    return prepare(tiny)


@pytest.fixture
def inputs(tiny: Component) -> dict[str, Any]:
    return arrays(tiny.spec, tiny.static)


@pytest.mark.parametrize(
    ("kind", "name", "batch"),
    [
        ("sd1", "text_encoder", 2),
    ],
)
def test_agrees_with_the_reference(
    kind: str, name: str, batch: int, component: Find, prepare: Prepare
) -> None:
    spec = component(kind, name, static={}).spec
    made = component(kind, name, static=sizes(batch, spec))
    given = arrays(spec, made.static)
    found = prepare(made)(**given)
    assert distance(found, prepare(made, "torch")(**given)) < 5e-6
    assert all(array.dtype == np.float32 for array in found.values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["dit", "flux"])
def test_transformers(kind: str, checkpoint: Make, prepare: Prepare) -> None:
    """DiT's operators cannot be joined as ExecuTorch would; FLUX.1 has GELU by tanh."""
    source = Checkpoint.open(checkpoint(kind))
    denoiser = source.spec.denoiser
    probe = next(one for one in probes_of(source.spec).values() if one.component == denoiser.name)
    made = dataclasses.replace(source.component(denoiser.name), static=dict(probe.dims))
    given = inputs_of(denoiser, probe)[0]
    assert distance(prepare(made)(**given), prepare(made, "torch")(**given)) < 5e-6


@pytest.mark.exhaustive
def test_precisions(prepare: Prepare, tiny: Component) -> None:
    given = arrays(tiny.spec, tiny.static)
    half = prepare(dataclasses.replace(tiny, precision="float16"))
    full = prepare(tiny)
    wanted = prepare(tiny, "torch")(**given)
    assert distance(full(**given), wanted) < 5e-6
    assert 1e-5 < distance(half(**given), wanted) < 1e-2
    assert (half.report().precision, full.report().precision) == ("float16", "float32")
    assert half(**given)["out_sample"].dtype == np.float32


@pytest.mark.exhaustive
def test_sizes_up_to_the_largest(component: Find, prepare: Prepare) -> None:
    found = component("sd1", "text_encoder", static={})
    spec = dataclasses.replace(
        found.spec,
        dims={"batch": Dim(example=2, maximum=3), "sequence": Dim(example=7, maximum=77)},
    )
    bounded = dataclasses.replace(found, spec=spec)
    assert ExecuTorch().supports(Request(component=spec, precision="float32")).works
    program, reference = prepare(bounded), prepare(bounded, "torch")
    for batch, sequence in ((1, 77), (3, 7), (2, 30), (1, 77)):
        given = arrays(spec, {"batch": batch, "sequence": sequence})
        assert distance(program(**given), reference(**given)) < 5e-6
    with pytest.raises(InputError, match="batch"):
        program(**arrays(spec, {"batch": 4, "sequence": 7}))


@pytest.mark.exhaustive
def test_what_runs_where_is_said(unet: Program) -> None:
    report = unet.report()
    assert report.device == "cpu"
    assert report.engine.startswith("executorch 1.")
    assert report.fallbacks == ()
    delegated, portable = report.details["delegated"], report.details["portable"]
    assert delegated["aten_convolution_default"] >= 5
    assert not any("norm" in name or "convolution" in name for name in portable)


# What it does with arrays


def test_inputs_are_left_alone_and_outputs_are_the_callers(
    unet: Program, inputs: dict[str, Any]
) -> None:
    before = {name: array.copy() for name, array in inputs.items()}
    first = unet(**inputs)["out_sample"]
    kept = first.copy()
    second = unet(**{**inputs, "sample": inputs["sample"] + 1})["out_sample"]
    assert all((inputs[name] == before[name]).all() for name in inputs)
    assert (first == kept).all()
    assert not np.shares_memory(first, second)
    assert np.abs(second - first).max() > 1e-3
    first[:] = 0  # it may be written to
    assert (unet(**inputs)["out_sample"] == kept).all()


def test_any_array_that_fits(unet: Program, inputs: dict[str, Any]) -> None:
    wanted = unet(**inputs)["out_sample"]
    sample = inputs["sample"]
    read_only = sample.copy()
    read_only.flags.writeable = False
    strided = np.repeat(sample, 2, axis=-1)[..., ::2]
    reverse = np.ascontiguousarray(sample[:, ::-1])[:, ::-1]
    for same in (read_only, strided, reverse, sample.astype(np.float64), torch.tensor(sample)):
        assert (unet(**{**inputs, "sample": same})["out_sample"] == wanted).all()


def test_inputs_that_do_not_fit(unet: Program, inputs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="missing: timestep"):
        unet(sample=inputs["sample"])
    with pytest.raises(InputError, match="class_labels"):
        unet(**inputs, class_labels=np.zeros(2, np.int64))
    with pytest.raises(InputError, match="sample of shape"):
        unet(**{**inputs, "sample": inputs["sample"][0]})
    with pytest.raises(InputError, match=r"batch=2, height=8, width=6.*batch=1"):
        unet(**{name: array[:1] for name, array in inputs.items()})


def test_ids_are_whole(component: Find, prepare: Prepare) -> None:
    spec = component("sd1", "text_encoder", static={}).spec
    program = prepare(component("sd1", "text_encoder", static=sizes(2, spec)))
    ids = arrays(spec, sizes(2, spec))["input_ids"]
    wanted = program(input_ids=ids)["last_hidden_state"]
    assert (program(input_ids=ids.astype(np.int32))["last_hidden_state"] == wanted).all()
    with pytest.raises(InputError, match="whole numbers"):
        program(input_ids=ids + 0.5)


def test_after_close(unet: Program, inputs: dict[str, Any]) -> None:
    unet.close()
    unet.close()
    with pytest.raises(ExecutionError, match="Prepare it again"):
        unet(**inputs)
    with pytest.raises(ExecutionError, match="closed"):
        unet.report()


# What it refuses


def test_devices() -> None:
    (device,) = ExecuTorch().devices()
    assert device.name == "cpu"
    assert "XnnpackBackend" in device.description


def test_other_devices_options_and_precisions(tiny: Component, prepare: Prepare) -> None:
    with pytest.raises(DeviceNotFoundError, match="executorch:cpu"):
        prepare(tiny, device="cuda")
    with pytest.raises(InputError, match="it has threads"):
        prepare(tiny, speed="high")
    with pytest.raises(InputError, match="a whole number from 1"):
        prepare(tiny, threads="0")
    with pytest.raises(UnsupportedError, match="no bfloat16"):
        prepare(dataclasses.replace(tiny, precision="bfloat16"))
    with pytest.raises(UnsupportedError, match="not float7"):
        prepare(dataclasses.replace(tiny, precision="float7"))


def test_one_pool_of_threads(tiny: Component, prepare: Prepare) -> None:
    count = runtime.threads()
    assert prepare(tiny, threads=str(count)).report().details["threads"] == count
    with pytest.raises(InputError, match=f"started with {count}"):
        prepare(tiny, threads=str(count + 1))


def test_open_sizes(tiny: Component, prepare: Prepare, tmp_path: Path) -> None:
    some = dataclasses.replace(tiny, static={"height": 8, "width": 8})
    support = ExecuTorch().supports(
        Request(component=some.spec, precision="float32", static=some.static)
    )
    assert support.level is SupportLevel.UNSUPPORTED
    assert "of batch." in support.reason
    with pytest.raises(UnsupportedError, match="batch"):
        prepare(some)
    with pytest.raises(ExportError, match="--batch"):
        host().exporter("executorch").export(some, tmp_path)


@pytest.fixture(scope="session")
def whole(tiny: Component, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that holds its weights."""
    return host().exporter("executorch").export(tiny, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def stored(whole: Path, tmp_path: Path) -> Path:
    """A copy of an export, to be damaged."""
    return Path(shutil.copytree(whole.parent, tmp_path / "copy")) / whole.name


def damaged(stored: Path, what: str) -> None:
    data = stored.read_bytes()
    if what == "changed":
        middle = len(data) // 2
        stored.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif what == "missing":
        stored.unlink()
    else:
        replaced = {"cut": data[:-100], "empty": b"", "garbage": b"\xbe\xef" * len(data)}
        stored.write_bytes(replaced[what])


@pytest.mark.parametrize("what", ["cut", "empty", "garbage", "changed", "missing"])
def test_damaged_files(what: str, stored: Path, tiny: Component, prepare: Prepare) -> None:
    damaged(stored, what)
    artifact = dataclasses.replace(tiny, build=None, files={"executorch": stored})
    with pytest.raises(ArtifactError, match=r"model\.pte"):
        prepare(artifact)


def test_without_a_description(stored: Path, tiny: Component, prepare: Prepare) -> None:
    given = arrays(tiny.spec, tiny.static)
    stored.with_name("model.json").unlink()
    artifact = dataclasses.replace(tiny, build=None, files={"executorch": stored})
    found = prepare(artifact)(**given)
    assert distance(found, prepare(tiny)(**given)) == 0
    stored.write_bytes(stored.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="cut off"):
        prepare(artifact)


def test_the_file_of_another_component(
    stored: Path, tiny: Component, component: Find, prepare: Prepare
) -> None:
    files = {"executorch": stored}
    other = component("sd1", "vae_decoder", static={"batch": 2, "latent_height": 8})
    other = dataclasses.replace(other, static={**other.static, "latent_width": 6})
    with pytest.raises(ArtifactError, match="another component"):
        prepare(dataclasses.replace(other, build=None, files=files))
    larger = dataclasses.replace(tiny, static={"batch": 2, "height": 16, "width": 6})
    with pytest.raises(ArtifactError, match="another component or size"):
        prepare(dataclasses.replace(larger, build=None, files=files))


# Pipelines


@pytest.mark.exhaustive
def test_pipelines_draw_what_torch_draws(
    checkpoint: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint("tiny")
    drawing = {"num_inference_steps": 3, "seed": 0, "output_type": "np"}
    torch_pipe = DiffusionPipeline.from_pretrained(model, backend="torch:cpu")
    wanted = torch_pipe(**drawing).images
    here = DiffusionPipeline.from_pretrained(model, backend="executorch")
    assert np.abs(here(**drawing).images - wanted).max() < 1e-4
    folder = torch_pipe.export(tmp_path / "tiny", to="executorch", height=8, width=8, batch=1)
    exported = DiffusionPipeline.from_pretrained(folder)
    assert "executorch" in repr(exported)
    assert np.abs(exported(**drawing).images - wanted).max() < 1e-4
    assert capfd.readouterr().out == ""


# Operators


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, 32)

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.norm(sample),)


@pytest.mark.exhaustive
def test_large_pictures_are_normalised_exactly(tmp_path: Path) -> None:
    from perfuse_executorch.exporter import _lower

    sample = torch.randn(1, 32, 256, 256, generator=torch.Generator().manual_seed(0)) + 2
    delegation = _lower(torch.export.export(Norm().eval(), (sample,)), tmp_path / "norm.pte")
    assert delegation["portable"] == {}
    (found,) = runtime.load(tmp_path / "norm.pte")([sample])
    wanted = F.group_norm(sample.double(), 8)
    # With the portable kernel it is 9e-5.
    assert (found - wanted).abs().max() / wanted.abs().max() < 1e-6


class Activated(nn.Module):
    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.gelu(sample), F.gelu(sample, approximate="tanh")


def test_each_form_of_gelu_is_that_form(tmp_path: Path) -> None:
    """They differ by up to 5e-4."""
    from perfuse_executorch.exporter import _lower

    sample = torch.linspace(-5, 5, 1001)[None]
    delegation = _lower(torch.export.export(Activated(), (sample,)), tmp_path / "gelu.pte")
    assert delegation["portable"] == {}
    found = runtime.load(tmp_path / "gelu.pte")([sample])
    for answer, wanted in zip(found, Activated()(sample.double()), strict=True):
        assert (answer - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(2, 6, 5), (1, 6, 4, 3), (2, 6, 2, 3, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(shape: tuple[int, ...], affine: bool) -> None:
    replaced = decompositions()[torch.ops.aten.group_norm.default]
    sample = torch.randn(shape, dtype=torch.float32)
    weight, bias = (torch.randn(6), torch.randn(6)) if affine else (None, None)
    torch.testing.assert_close(
        replaced(sample, 3, weight, bias, 1e-6), F.group_norm(sample, 3, weight, bias, 1e-6)
    )


def test_attention() -> None:
    replaced = decompositions()[torch.ops.aten.scaled_dot_product_attention.default]
    query, key, value = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)
    for scale in (None, 0.3):
        wanted = F.scaled_dot_product_attention(query, key, value, scale=scale)
        torch.testing.assert_close(replaced(query, key, value, scale=scale), wanted)
    assert replaced(query, query, query, is_causal=True) is NotImplemented
    assert replaced(query, key, value, torch.ones(5, 7, dtype=torch.bool)) is NotImplemented
