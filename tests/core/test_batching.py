"""A program of one batch size runs every batch."""

from typing import Any

import numpy as np
import pytest

from perfuse import ExecutionReport, Program, Signature, TensorSpec
from perfuse.run.fixed_batch import FixedBatch, fixed_batch, whole_inputs

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="float", shape=(2, "n")),
        TensorSpec(name="t", dtype="float32", shape=(2,)),
    ),
    outputs=(TensorSpec(name="y", dtype="float", shape=(2, "n")),),
)


class Two(Program):
    """``x + t`` for a batch of two."""

    signature = SIGNATURE

    def __init__(self) -> None:
        self.calls = 0
        self.closed = False

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        assert inputs["x"].shape[0] == inputs["t"].shape[0] == 2
        self.calls += 1
        return {"y": inputs["x"] + inputs["t"][:, None]}

    def report(self) -> ExecutionReport:
        return ExecutionReport(device="cpu", precision="float32", engine="numpy")

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("batch", "calls"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_any_batch(batch: int, calls: int, kind: str) -> None:
    x = np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)
    t = np.arange(batch, dtype=np.float32) * 100
    inputs: dict[str, Any] = {"x": x, "t": t}
    if kind == "torch":
        torch = pytest.importorskip("torch")
        inputs = {name: torch.from_numpy(array) for name, array in inputs.items()}
    program = Two()
    y = FixedBatch(program, 2)(**inputs)["y"]
    assert type(y) is type(inputs["x"])
    assert tuple(y.shape) == (batch, 3)
    assert (np.asarray(y) == x + t[:, None]).all()
    assert program.calls == calls


def test_the_rest_is_the_program_s() -> None:
    program = Two()
    wrapped = FixedBatch(program, 2)
    assert wrapped.signature is SIGNATURE
    assert wrapped.torch_device is None
    assert wrapped.report().engine == "numpy"
    wrapped.close()
    assert program.closed


def test_fixed_batch() -> None:
    assert fixed_batch(SIGNATURE.inputs) == 2
    free = (TensorSpec(name="x", dtype="float", shape=("batch", 2)),)
    assert fixed_batch(free) is None


def test_inputs_without_a_batch_go_into_every_part() -> None:
    batched = TensorSpec(name="x", dtype="float", shape=("batch", 3))
    table = TensorSpec(name="table", dtype="float", shape=(2, 3))
    assert whole_inputs((batched, table)) == {"table"}
    assert whole_inputs((table,)) == frozenset()

    class Adding(Two):
        def __call__(self, **inputs: Any) -> dict[str, Any]:
            return {"y": inputs["x"] + inputs["table"].sum(axis=0)}

    x, rows = np.arange(9, dtype=np.float32).reshape(3, 3), np.ones((2, 3), dtype=np.float32)
    program = FixedBatch(Adding(), 1, whole=frozenset({"table"}))
    assert (program(x=x, table=rows)["y"] == x + 2).all()
