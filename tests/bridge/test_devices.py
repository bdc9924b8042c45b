"""Modules and arguments on another device than the processor; no accelerator runs here.

Tensors of the processor say that they lie on one: what is taken from there and given back is then seen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from torch.overrides import TorchFunctionMode

import perfuse
from perfuse import ArtifactStore
from perfuse.bridge.calls import Answer, Call
from perfuse.bridge.recorded import component_of

pytestmark = pytest.mark.export

CUDA = torch.device("cuda:0")


class There(torch.Tensor):  # type: ignore[misc]
    """A tensor of the processor that says it lies elsewhere, as does what is made of it."""

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = super().__torch_function__(func, types, args, dict(kwargs or {}))
        if isinstance(found, torch.device):
            return CUDA
        with torch._C.DisableTorchFunctionSubclass():
            return found.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else found


def there(tensor: Any) -> Any:
    return tensor.as_subclass(There)


class Moving(TorchFunctionMode):  # type: ignore[misc]
    """Tensors can be moved to that device."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.to and args[1:2] == (CUDA,) and not isinstance(args[0], There):
            return there(func(args[0], *args[2:], **(kwargs or {})))
        return func(*args, **(kwargs or {}))


class Mixed(torch.nn.Module):  # type: ignore[misc]
    """Takes a number from the processor and a picture from elsewhere, and has a table."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, step: Any, x: Any) -> Any:
        return x * step, step + 1


def test_an_answer_lies_where_pytorch_s_did(tmp_path: Path) -> None:
    """The first argument may lie elsewhere: a timestep, as schedulers have it."""
    module = Mixed()
    step, x = torch.tensor([2.0]), torch.ones(2, 3)
    run = perfuse.accelerate(Mixed(), "onnxruntime", store=ArtifactStore(tmp_path), strict=True)
    with torch.no_grad(), Moving():
        for given in (there(x), x, there(x * 3)):
            wanted, found = module(step, given), run(step, given)
            assert [one.device for one in found] == [one.device for one in wanted]
            for one, other in zip(found, wanted, strict=True):
                assert torch.equal(one.cpu(), other.cpu())
    (row,) = run.perfuse.report()
    assert (row.calls, row.torch_calls, row.graphs) == (3, 0, 2)


def test_what_is_captured_lies_on_the_processor() -> None:
    """Also a buffer that is not saved, where the module has nothing else."""
    module, x = Mixed(), torch.ones(2, 3)
    module.table = there(module.table)
    call = Call.of(module.forward, (torch.tensor([2.0]), x), {})
    component = component_of(
        module,
        "forward",
        call.hollow,
        Answer.of(module(*call.tensors)),
        name="mixed",
        precision="float32",
        free={},
        fingerprint="",
    )
    assert component.build is not None
    assert {one.device.type for one in component.build().buffers()} == {"cpu"}
    assert module.table.device == CUDA
