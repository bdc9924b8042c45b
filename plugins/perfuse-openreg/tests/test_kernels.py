"""Every operator of the table runs: those of the bundled model, and those of others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from perfuse import ArtifactStore, Component, Target
from perfuse.errors import ExecutionError
from torch import Tensor, nn

from perfuse_openreg import kernels
from perfuse_openreg.backend import OpenReg
from perfuse_openreg.exporter import OpenRegExporter
from perfuse_openreg.graph import read

Make = Callable[..., Component]


class Rest(nn.Module):
    """What UNets with other settings use, and the bundled model does not."""

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        x = x - F.avg_pool2d(x[None, None], 1)[0, 0].mean(dim=1, keepdim=True)
        x = F.mish(x) + F.relu(x) - torch.log(x * x + 1)
        # And ControlNets, safety checkers, blurred queries, learned words
        first, *_ = x.unbind(1)
        near = (t[:, None] == t) * (t <= 1.5)
        x = x + torch.where(x >= 1, x**2, x.clamp(min=-1)) + near.sum(dim=1, keepdim=True)
        x = x + first.abs().sqrt()[:, None]
        return (x * t.to(x.dtype)[:, None] + x[0],)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_operators_of_other_models(gate: Make, store: ArtifactStore, precision: str) -> None:
    component = gate(precision, module=Rest, batch=2)
    x = np.linspace(-2, 2, 16, dtype=np.float32).reshape(2, 8)
    t = np.array([1.0, 2.0], np.float32)
    found = OpenReg().prepare(component, Target(backend="openreg"), store)(x=x, t=t)["y"]
    wanted = Rest()(torch.from_numpy(x), torch.from_numpy(t))[0].numpy()
    tolerance = {"float32": 1e-6, "float16": 1e-2, "bfloat16": 1e-1}[precision]
    assert np.abs(found - wanted).max() < tolerance


@pytest.mark.exhaustive
def test_nothing_in_the_table_is_there_for_nothing(
    gate: Make, folder: Path, tmp_path: Path
) -> None:
    paths = [
        *folder.rglob("*.openreg"),
        OpenRegExporter().export(gate(module=Rest, batch=2), tmp_path),
    ]
    used = {operation.operator for path in paths for operation in read(path).operations}
    assert used == set(kernels.KERNELS)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("mm.default", [torch.ones(2, 3), torch.ones(2, 3)]),
        ("view.default", [torch.ones(2, 3), [4]]),
        ("add.Tensor", [torch.ones(2), "two"]),
        ("add.Tensor", []),
        ("select.int", [torch.ones(2), 3, 0]),
    ],
)
def test_arguments_that_do_not_fit(operator: str, arguments: list[Any]) -> None:
    with pytest.raises(ExecutionError, match=f"{operator} failed: "):
        kernels.run(operator, arguments, {})
