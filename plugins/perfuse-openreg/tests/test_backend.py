"""The contract that a backend keeps, on a component that is compiled in no time."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from perfuse import ArtifactStore, Component, Program, Request, Support, SupportLevel, Target
from perfuse.errors import (
    ArtifactError,
    DeviceNotFoundError,
    ExecutionError,
    InputError,
    UnsupportedError,
)
from torch import Tensor, nn

from perfuse_openreg.backend import OpenReg
from perfuse_openreg.driver import Accelerator, accelerator
from perfuse_openreg.hardware import HARDWARE
from perfuse_openreg.program import OpenRegProgram

Make = Callable[..., Component]

#: A device that no other test puts anything on.
MEMORY = "10kB"


def device(name: str = "0", memory: int = 10_000) -> Accelerator:
    return accelerator(next(one for one in HARDWARE if one.name == name), memory)


def prepare(
    component: Component, store: ArtifactStore, name: str = "0", memory: str = MEMORY
) -> Program:
    target = Target(backend="openreg", device=name, options={"memory": memory})
    return OpenReg().prepare(component, target, store)


def inputs(batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    return {
        "x": (rng.integers(-16, 17, (batch, 8)) / 8).astype(np.float32),
        "t": np.linspace(1, 2, batch, dtype=np.float32),
    }


def expected(component: Component, given: dict[str, Any], dtype: torch.dtype) -> Any:
    """What the module gives where every result is rounded to a type."""
    assert component.build is not None
    weight, bias = (p.detach().to(dtype).float() for p in component.build().parameters())
    x, t = (torch.from_numpy(given[name]).to(dtype).float() for name in ("x", "t"))
    y = torch.addmm(bias, x, weight.T).to(dtype).float()
    y = torch.sigmoid(y).to(dtype).float()
    return (y * t[:, None]).to(dtype).float().numpy()


# ── What it says of itself ──────────────────────────────────────────────────────────────────────


def ask(component: Component, precision: str, name: str | None = None) -> Support:
    request = Request(
        component=component.spec, precision=precision, device=name, static=component.static
    )
    return OpenReg().supports(request)


def test_devices() -> None:
    first, second = OpenReg().devices()
    assert (first.name, second.name) == ("0", "1")
    assert "512.0 MB" in first.description
    assert "64.0 MB" in second.description


def test_support(gate: Make) -> None:
    assert ask(gate(batch=1), "float32").level is SupportLevel.FULL
    assert ask(gate(batch=1), "bfloat16", "1").level is SupportLevel.FULL
    half = ask(gate(batch=1), "float16")
    assert half.level is SupportLevel.CONDITIONAL
    assert "65504" in half.reason
    without = ask(gate(batch=1), "float16", "1")
    assert without.level is SupportLevel.UNSUPPORTED
    assert without.reason == "openreg:1 computes in float32, bfloat16, not in float16."
    symbolic = ask(gate(), "float32")
    assert symbolic.level is SupportLevel.UNSUPPORTED
    assert symbolic.reason == "openreg compiles for one size; fix batch."
    with pytest.raises(DeviceNotFoundError, match="'2' was asked for; openreg has 0, 1"):
        ask(gate(), "float32", "2")


def test_prepare_refuses_what_supports_refuses(gate: Make, store: ArtifactStore) -> None:
    with pytest.raises(UnsupportedError, match="gate.*fix batch"):
        prepare(gate(), store)
    with pytest.raises(UnsupportedError, match="computes in float32, bfloat16, not in float16"):
        prepare(gate("float16", batch=1), store, "1")
    with pytest.raises(DeviceNotFoundError, match="'cuda' was asked for"):
        prepare(gate(batch=1), store, "cuda")
    assert store.entries() == []


@pytest.mark.parametrize("memory", ["", "64", "64 megabytes", "-1MB", "0MB", "MB", "1e3MB"])
def test_an_option_that_cannot_be_read(gate: Make, store: ArtifactStore, memory: str) -> None:
    with pytest.raises(InputError, match="memory is written like 64MB"):
        prepare(gate(batch=1), store, memory=memory)


def test_an_option_that_there_is_not(gate: Make, store: ArtifactStore) -> None:
    target = Target(backend="openreg", options={"speed": "high"})
    with pytest.raises(InputError, match="option speed; it has memory"):
        OpenReg().prepare(gate(batch=1), target, store)


# ── Running ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_every_result_is_rounded(gate: Make, store: ArtifactStore, precision: str) -> None:
    component, given = gate(precision, batch=3), inputs(3)
    program = prepare(component, store)
    found = program(**given)["y"]
    assert found.dtype == np.float32
    assert np.array_equal(found, expected(component, given, getattr(torch, precision)))
    exact = expected(component, given, torch.float32)
    if precision != "float32":
        assert 0 < np.abs(found - exact).max() < 0.05
    report = program.report()
    assert (report.device, report.precision) == ("openreg:0", precision)
    assert set(report.details["operators"]) == {precision}
    # torch on the CPU computes, and the report does not hide it
    assert report.engine.startswith("torch ")
    assert "simulating openreg" in report.engine
    program.close()


class Overflow(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (x * 60000 + t.to(x.dtype)[:, None] * 60000,)


def test_half_precision_overflows_as_a_device_s_does(gate: Make, store: ArtifactStore) -> None:
    given = {"x": np.ones((1, 8), np.float32), "t": np.ones(1, np.float32)}
    assert (prepare(gate(module=Overflow, batch=1), store)(**given)["y"] == 120000).all()
    for precision, overflows in (("float16", True), ("bfloat16", False)):
        component = gate(precision, module=Overflow, batch=1)
        assert np.isinf(prepare(component, store)(**given)["y"]).all() == overflows


def test_inputs_are_read_and_results_are_the_caller_s(gate: Make, store: ArtifactStore) -> None:
    program, given = prepare(gate(batch=2), store), inputs(2)
    before = {name: array.copy() for name, array in given.items()}
    first = program(**given)["y"]
    kept = first.copy()
    second = program(x=given["x"] + 1, t=given["t"])["y"]
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)
    assert all(np.array_equal(given[name], before[name]) for name in given)


def test_arrays_of_every_kind(gate: Make, store: ArtifactStore) -> None:
    program, given = prepare(gate(batch=2), store), inputs(2)
    usual = program(**given)["y"]
    readonly = given["x"].copy()
    readonly.flags.writeable = False
    for x in (
        readonly,
        np.asfortranarray(given["x"]),
        np.repeat(given["x"], 2, axis=1)[:, ::2],
        given["x"][::-1].copy()[::-1],
        torch.from_numpy(given["x"]),
        given["x"].astype(np.float64),
    ):
        assert np.array_equal(program(x=x, t=given["t"])["y"], usual)


def test_another_size_than_it_was_compiled_for(gate: Make, store: ArtifactStore) -> None:
    program = prepare(gate(batch=2), store)
    with pytest.raises(InputError, match="exported for batch 2; got batch 3.*perfuse export"):
        program(**inputs(3))
    with pytest.raises(InputError, match="gate takes x of shape"):
        program(x=np.zeros((2, 9), np.float32), t=np.zeros(2, np.float32))
    with pytest.raises(InputError, match="missing: t"):
        program(x=np.zeros((2, 8), np.float32))
    assert program(**inputs(2))["y"].shape == (2, 8)


class Look(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 8)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (x + self.table(t.to(torch.int64)),)


def test_an_operator_that_fails_leaves_the_device_as_it_was(
    gate: Make, store: ArtifactStore
) -> None:
    program = prepare(gate(module=Look, batch=2), store)
    used = device().memory.used
    given = inputs(2)
    with pytest.raises(ExecutionError, match="embedding.default failed: index out of range"):
        program(x=given["x"], t=np.full(2, 9, np.float32))
    assert device().memory.used == used
    assert np.isfinite(program(**given)["y"]).all()
    program.close()


# ── Memory ──────────────────────────────────────────────────────────────────────────────────────


def test_memory_is_reserved_and_given_back(gate: Make, store: ArtifactStore) -> None:
    assert device().memory.used == 0
    for _ in range(20):
        program = prepare(gate(batch=2), store)
        reserved = device().memory.used
        details = program.report().details
        assert reserved == details["weight_bytes"] + details["activation_bytes"]
        assert details["weight_bytes"] == 4 * (64 + 8)
        program(**inputs(2))
        assert device().memory.used == reserved
        program.close()
        assert device().memory.used == 0


def test_what_nobody_closes_is_given_back_too(gate: Make, store: ArtifactStore) -> None:
    program = prepare(gate(batch=2), store)
    assert device().memory.used > 0
    del program
    gc.collect()
    assert device().memory.used == 0


def test_half_precision_takes_half_the_memory(gate: Make, store: ArtifactStore) -> None:
    used = []
    for precision in ("float32", "bfloat16"):
        program = prepare(gate(precision, batch=16), store)
        used.append(program.report().details["weight_bytes"])
        program.close()
    assert used[0] == 2 * used[1]


def test_what_does_not_fit(gate: Make, store: ArtifactStore) -> None:
    with pytest.raises(ExecutionError) as found:
        prepare(gate(batch=50), store, memory="1kB")
    message = str(found.value)
    assert "gate was to be put on openreg:0: 0.3 kB of weights" in message
    assert "1.0 kB of 1.0 kB are free" in message
    assert "smaller picture or batch" in message
    assert device(memory=1000).memory.used == 0


def test_programs_share_a_device(gate: Make, store: ArtifactStore) -> None:
    held = [prepare(gate(batch=16), store, memory="4kB") for _ in range(2)]
    with pytest.raises(ExecutionError, match="gate was to be put on openreg:0"):
        prepare(gate(batch=16), store, memory="4kB")
    other = prepare(gate(batch=16), store, "1", memory="4kB")  # another device
    held[0].close()
    third = prepare(gate(batch=16), store, memory="4kB")
    assert np.array_equal(third(**inputs(16))["y"], held[1](**inputs(16))["y"])
    for program in (*held, other, third):
        program.close()
    assert device(memory=4000).memory.used == 0


def test_close(gate: Make, store: ArtifactStore) -> None:
    program = prepare(gate(batch=2), store)
    program.close()
    program.close()
    with pytest.raises(ExecutionError, match="gate was closed; prepare it again"):
        program(**inputs(2))


# ── Files ───────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_was_made_for_something_else(
    gate: Make, store: ArtifactStore, tmp_path: Path
) -> None:
    from perfuse_openreg.exporter import OpenRegExporter

    path = OpenRegExporter().export(gate(batch=2), tmp_path)
    for component in (gate(batch=3), gate("bfloat16", batch=2)):
        with pytest.raises(ArtifactError, match="holds gate in float32.*Export the model again"):
            OpenRegProgram(component, device(), path)
    assert device().memory.used == 0


def test_an_operator_of_another_version(gate: Make, tmp_path: Path) -> None:
    from perfuse_openreg.exporter import OpenRegExporter

    path = OpenRegExporter().export(gate(batch=2), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"sigmoid.default", b"sigmoyd.default"))
    with pytest.raises(ArtifactError, match="operators sigmoyd.default; this version.*Update"):
        OpenRegProgram(gate(batch=2), device(), path)
