"""What the tests share: a cache of their own, and a component that is compiled in no time."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from perfuse import (
    ArtifactStore,
    Component,
    DiffusionPipeline,
    Signature,
    TensorSpec,
)
from perfuse.spec import ComponentSpec
from torch import Tensor, nn

Make = Callable[..., Component]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache or settings; perfuse's own run of tests has a cache."""
    if "PERFUSE_TEST_CACHE" in os.environ:
        yield
        return
    before = {name: os.environ.pop(name) for name in list(os.environ) if name[:8] == "PERFUSE_"}
    os.environ["PERFUSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["PERFUSE_CACHE"]
    os.environ.update(before)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


class Gate(nn.Module):
    """``y = sigmoid(W x + b) * t``; the weights are eighths, so that no order of a sum rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randint(-8, 9, parameter.shape, generator=generator) / 8)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (torch.sigmoid(self.linear(x)) * t.to(x.dtype)[:, None],)


@pytest.fixture(scope="session")
def gate() -> Make:
    """``gate(batch=2)``: a component for that batch; ``module=`` builds another one inside it."""

    def make(precision: str = "float32", module: Any = Gate, **static: int) -> Component:
        signature = Signature(
            inputs=(
                TensorSpec(name="x", dtype="float", shape=("batch", 8)),
                TensorSpec(name="t", dtype="float32", shape=("batch",)),
            ),
            outputs=(TensorSpec(name="y", dtype="float", shape=("batch", 8)),),
        )
        spec = ComponentSpec(
            name="gate", class_name="Gate", folder="gate", config={}, signature=signature
        )
        return Component(
            spec=spec, precision=precision, static=static, build=lambda: module().eval()
        )

    return make


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, exported for two pictures of its size; not to be written to."""
    pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")
    folder = tmp_path_factory.mktemp("export") / "shapes"
    return pipe.export(folder, to="openreg", height=64, width=64, batch=2)
