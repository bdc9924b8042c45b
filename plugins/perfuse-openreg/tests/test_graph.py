"""The file: data that can be read back, and that says so where it is damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from perfuse import Component
from perfuse.errors import ArtifactError
from safetensors import safe_open
from safetensors.torch import save_file

from perfuse_openreg.exporter import OpenRegExporter
from perfuse_openreg.graph import DType, Graph, Operation, Reference, Value, read, weights

Make = Callable[..., Component]
Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def program(gate: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return OpenRegExporter().export(gate(batch=2), tmp_path_factory.mktemp("program"))


@pytest.fixture
def path(program: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copy(program, tmp_path))


def graph_of(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        data = json.loads(file.metadata()["graph"])
        return data, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_a_program_is_data(path: Path) -> None:
    data, tensors = graph_of(path)
    operators = [one["operator"] for one in data["operations"]]
    assert {"addmm.default", "sigmoid.default", "mul.Tensor"} <= set(operators)
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(8, 8), (8,)}
    text = path.read_bytes()
    assert b"pickle" not in text
    assert not text.startswith((b"PK", b"\x80"))  # neither a zip of torch's nor a pickle


def test_it_is_read_as_it_was_written(path: Path) -> None:
    graph = read(path)
    assert Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph
    assert [value.shape for value in graph.inputs] == [(2, 8), (2,)]
    _, tensors = graph_of(path)
    for value, tensor in weights(path, graph):
        assert torch.equal(tensor, tensors[value.name])


def test_arguments_of_every_kind() -> None:
    given = [Reference("x"), DType("int64"), None, True, 2, 0.5, "tanh", [Reference("x"), None]]
    x = Value(name="x", dtype="float32", shape=(1,))
    operation = Operation(
        operator="any",
        arguments=(*given, float("-inf"), float("inf")),
        options={"dtype": DType("bool")},
        results=(None, Value(name="y", dtype="bool", shape=())),
    )
    text = json.dumps(operation.to_dict(), allow_nan=False)
    assert Operation.from_dict(json.loads(text)) == operation
    assert list(operation.reads()) == [x.name, x.name]


def test_memory_is_planned() -> None:
    """x and a at once, then a and b; x is free by then, and the output stays."""

    def value(name: str, count: int) -> Value:
        return Value(name=name, dtype="float32", shape=(count,))

    def operation(reads: list[str], makes: Value | None) -> Operation:
        arguments = tuple(Reference(name) for name in reads)
        return Operation(operator="any", arguments=arguments, options={}, results=(makes,))

    graph = Graph(
        component="one",
        precision="float32",
        inputs=(value("x", 100),),
        weights=(value("w", 1000),),
        operations=(
            operation(["x", "w"], value("a", 10)),
            operation(["a"], value("b", 50)),
            operation(["b"], value("c", 10)),
            operation(["c"], None),
        ),
        outputs=("b",),
    )
    assert graph.weight_bytes == 4000
    assert graph.last_uses() == [["x"], ["a"], [], ["c"]]
    assert graph.activation_bytes() == 4 * 110


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="none.openreg cannot be read.*Export the model again"):
        read(tmp_path / "none.openreg")


@pytest.mark.parametrize("part", [0, 4, 100, 0.5, 0.99])
def test_a_file_that_is_cut_off(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(part if part >= 1 else part * len(content))])
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(path)


def test_a_file_of_something_else(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"not a program " * 100)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="of version none; this plugin reads version 1"):
        read(path)


def first(data: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = data["operations"][0]
    return operation


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.pop("operations"),
        lambda data: data.update(inputs=None),
        lambda data: data.update(operations=[None]),
        lambda data: data.update(outputs=["nothing"]),
        lambda data: data["inputs"][0].update(dtype="complex64"),
        lambda data: data["inputs"][0].update(shape=[-1]),
        lambda data: data["inputs"][0].update(shape=["two", 8]),
        lambda data: data["inputs"][1].update(name=data["inputs"][0]["name"]),
        lambda data: data["weights"].pop(),
        lambda data: data["weights"][0].update(shape=[8, 9]),
        lambda data: first(data).update(arguments=[{"value": "later"}]),
        lambda data: first(data).update(arguments=[{"code": "import os"}]),
        lambda data: first(data).update(arguments=[{}]),
        lambda data: first(data)["results"][0].update(shape=None),
    ],
)
def test_a_graph_that_is_damaged(path: Path, edit: Edit) -> None:
    data, tensors = graph_of(path)
    edit(data)
    save_file(tensors, path, metadata={"openreg": "1", "graph": json.dumps(data)})
    with pytest.raises(ArtifactError, match="Export the model again"):
        read(path)


def test_a_graph_that_is_no_json(path: Path) -> None:
    _, tensors = graph_of(path)
    for text in ("", "{", "[" * 100_000, "null", "3"):
        save_file(tensors, path, metadata={"openreg": "1", "graph": text})
        with pytest.raises(ArtifactError, match="damaged"):
            read(path)
