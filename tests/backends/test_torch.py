"""The reference path: devices, precisions, options, and what its loop does not do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from perfuse import DiffusionPipeline
from perfuse.backend import Request, Target
from perfuse.errors import DeviceNotFoundError, ExecutionError, InputError
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.store import ArtifactStore
from perfuse_torch.backend import Torch


@pytest.fixture
def checkpoint(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("sd1")


def prepare(checkpoint: Path, tmp_path: Path, precision: str = "float32", **options: str) -> Any:
    component = Checkpoint.open(checkpoint).component("unet", precision=precision)
    target = Target(backend="torch", device="cpu", options=options)
    return Torch().prepare(component, target, ArtifactStore(tmp_path))


def unet_inputs(batch: int = 2) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "sample": generator.standard_normal((batch, 4, 8, 6)).astype(np.float32),
        "timestep": np.full(batch, 500.5, dtype=np.float32),
        "encoder_hidden_states": generator.standard_normal((batch, 7, 32)).astype(np.float32),
    }


def test_devices_end_with_the_cpu() -> None:
    devices = Torch().devices()
    assert devices[-1].name == "cpu"
    assert "bfloat16" in devices[-1].precisions


def test_an_unknown_device_is_refused_with_those_that_are_there(
    checkpoint: Path, tmp_path: Path
) -> None:
    component = Checkpoint.open(checkpoint).component("unet")
    with pytest.raises(DeviceNotFoundError, match=r"'tpu'.*sees.*cpu"):
        Torch().prepare(component, Target(backend="torch", device="tpu"), ArtifactStore(tmp_path))


def test_numpy_in_numpy_out_and_tensors_in_tensors_out(checkpoint: Path, tmp_path: Path) -> None:
    program = prepare(checkpoint, tmp_path)
    arrays = program(**unet_inputs())["out_sample"]
    tensors = program(**{k: torch.from_numpy(v) for k, v in unet_inputs().items()})["out_sample"]
    assert isinstance(arrays, np.ndarray) and arrays.dtype == np.float32
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_array_equal(arrays, tensors.numpy())


@pytest.mark.parametrize(("precision", "decibels"), [("float16", 40), ("bfloat16", 25)])
def test_half_precision_is_near_and_is_reported(
    checkpoint: Path, tmp_path: Path, precision: str, decibels: float
) -> None:
    reference = prepare(checkpoint, tmp_path)(**unet_inputs())["out_sample"]
    program = prepare(checkpoint, tmp_path, precision)
    output = program(**unet_inputs())["out_sample"]
    noise = np.square(output - reference).mean() / np.square(reference).mean()
    assert output.dtype == np.float32
    assert 0 < noise < 10 ** (-decibels / 10)
    assert program.report().precision == precision


def test_channels_last_computes_the_same(checkpoint: Path, tmp_path: Path) -> None:
    plain = prepare(checkpoint, tmp_path)(**unet_inputs())["out_sample"]
    last = prepare(checkpoint, tmp_path, channels_last="true")(**unet_inputs())["out_sample"]
    assert np.abs(plain - last).max() < 1e-5 * np.abs(plain).max()


def test_unknown_options_and_wrong_values_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="compile, tf32, channels_last"):
        prepare(checkpoint, tmp_path, fast="true")
    with pytest.raises(InputError, match="it takes true, false"):
        prepare(checkpoint, tmp_path, compile="maybe")


def test_a_wrong_shape_names_the_input(checkpoint: Path, tmp_path: Path) -> None:
    inputs = unet_inputs() | {"timestep": np.zeros(3, dtype=np.float32)}
    with pytest.raises(InputError, match=r"unet takes timestep of shape \(batch=2\); got \(3,\)"):
        prepare(checkpoint, tmp_path)(**inputs)


def test_a_closed_program_says_so(checkpoint: Path, tmp_path: Path) -> None:
    program = prepare(checkpoint, tmp_path)
    program.close()
    with pytest.raises(ExecutionError, match="closed"):
        program(**unet_inputs())


def test_an_unknown_precision_is_unsupported(checkpoint: Path) -> None:
    spec = Checkpoint.open(checkpoint).spec.components["unet"]
    assert not Torch().supports(Request(component=spec, precision="int4")).works


class _HostReads(TorchDispatchMode):
    """Notes every operation that would make a GPU wait for the host to read a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "_local_scalar_dense" in name or "item" in name or "nonzero" in name:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpm++", "unipc", "euler-ancestral"])
def test_the_loop_reads_nothing_back(checkpoint: Path, scheduler: str) -> None:
    from perfuse.schedulers import scheduler_class

    pipe = DiffusionPipeline.from_pretrained(checkpoint, backend="torch:cpu")
    pipe.scheduler = scheduler_class(scheduler).from_config(pipe.scheduler.config)
    reads = _HostReads()
    rounds = 0
    events = pipe.stream("a red circle", num_inference_steps=4, seed=0, output_type="latent")
    for event in events:
        if event.step == "place_inputs":
            reads.__enter__()
        if event.step == "denoise":
            rounds = event.total
            assert all(isinstance(array, torch.Tensor) for array in event.state["samples"])
            if event.done == event.total:
                reads.__exit__(None, None, None)
    assert rounds >= 4
    assert reads.seen == []
    with reads:
        torch.ones(1).item()
    assert reads.seen  # the watch does see a read
