"""What only a NeuronCore answers: the calls of torch-neuronx that place a program on one.

Nothing here has been executed: no instance was at hand. The calls are as
https://awsdocs-neuron.readthedocs-hosted.com/en/latest/frameworks/torch/torch-neuronx describes them
(read on 2026-11-20). What surrounds them is tested with a stand-in for the SDK.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perfuse_exporters.neuron.sdk import read

__all__ = ["load", "place_weights", "said"]


def load(path: Path, on: Sequence[int]) -> Any:
    """Load a compiled program onto cores. It is TorchScript, which can run code: trusted files only!

    Args:
        path: A ``model.neuron``.
        on: One core; or several, which then share each batch.
    """
    import torch_neuronx

    if len(on) > 1:
        return torch_neuronx.DataParallel(
            read(path), device_ids=list(on), set_dynamic_batching=False
        )
    with torch_neuronx.experimental.neuron_cores_context(start_nc=on[0], nc_count=1):
        return read(path)


def place_weights(model: Any, core: int) -> None:
    """Bring weights that are apart onto the core; otherwise they travel there at each call."""
    import torch_neuronx

    torch_neuronx.move_trace_to_device(model, core)


def said(exc: BaseException) -> str:
    """The last line of the runtime's error; those before are TorchScript's call stack."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[-1]
