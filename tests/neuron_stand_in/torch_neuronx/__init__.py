"""The stand-in for torch-neuronx: the calls that ``perfuse_exporters.neuron.sdk`` makes."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

#: What was asked of it, in order.
COMPILED: list[dict[str, Any]] = []
LOADED_ON: list[tuple[int, ...]] = []
SHARED: list[int] = []
MOVED: list[int] = []


def trace(
    func: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    compiler_workdir: str,
    compiler_args: Sequence[str],
    inline_weights_to_neff: bool = True,
    cpu_backend: bool = False,
) -> Any:
    status = subprocess.run(["neuronx-cc", "compile", *compiler_args], check=False).returncode
    if status:
        raise RuntimeError(f"neuronx-cc failed with {status}")
    COMPILED.append(
        {
            "arguments": list(compiler_args),
            "shapes": [tuple(one.shape) for one in example_inputs],
            "dtypes": [one.dtype for one in example_inputs],
            "inline": inline_weights_to_neff,
            "cpu_backend": cpu_backend,
        }
    )
    func.double().float()  # to another place and back, as to XLA's device
    program: Any = torch.jit.trace(func, example_inputs, strict=False, check_trace=False)
    return torch.jit.freeze(program) if inline_weights_to_neff else program


def replace_weights(neuron_model: Any, weights: dict[str, Tensor]) -> None:
    # Buffers that no checkpoint holds are part of a traced module, too.
    unexpected = neuron_model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unexpected, unexpected


def move_trace_to_device(trace: Any, device_id: int) -> None:
    MOVED.append(device_id)


class DataParallel:
    """Shares a batch among cores: here, one part after the other."""

    def __init__(self, model: Any, device_ids: list[int], *, set_dynamic_batching: bool) -> None:
        assert not set_dynamic_batching
        self.model, self.parts = model, len(device_ids)
        LOADED_ON.append(tuple(device_ids))

    def __call__(self, *inputs: Tensor) -> Any:
        SHARED.append(len(inputs[0]))
        parts = zip(*(one.chunk(self.parts) for one in inputs), strict=True)
        return tuple(torch.cat(own) for own in zip(*(self.model(*p) for p in parts), strict=True))


@contextmanager
def _neuron_cores_context(start_nc: int, nc_count: int) -> Iterator[None]:
    LOADED_ON.append(tuple(range(start_nc, start_nc + nc_count)))
    yield


experimental = SimpleNamespace(neuron_cores_context=_neuron_cores_context)
