"""Calibration: a run of a few prompts on the reference that measures what fewer bits cost a component.

The layers that lose most stay as they are, until what the predictions lose is within a limit.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perfuse.capture import build, cast
from perfuse.contract.backend import ExecutionReport, Program
from perfuse.contract.changes import plain_name
from perfuse.contract.component import Component
from perfuse.contract.quantized import SCHEMES, Calibration, Scheme, marks_of
from perfuse.contract.spec import Array
from perfuse.contract.weights import StoredTensor
from perfuse.errors import InputError
from perfuse.models.in_integers import in_integers
from perfuse.progress import working
from perfuse.run.pipeline import DiffusionPipeline
from perfuse.run.tools import PipelineTools
from perfuse.tasks.choosing import choose

__all__ = ["calibrate"]

#: Layers that multiply what they are given with their weight.
_MULTIPLY = (nn.Linear, nn.Conv2d)
#: Calls that errors are measured on; ranges are measured on all.
_CALLS = 6


def calibrate(
    pipe: DiffusionPipeline,
    schemes: Mapping[str, str],
    inputs: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    limit: float,
) -> dict[str, Calibration]:
    """Draw pictures, and measure what schemes cost components.

    Args:
        pipe: A pipeline of the checkpoint, without weights in fewer bits.
        schemes: Component to the scheme that its weights are to be stored in.
        inputs: Those of a call for each picture.
        steps: How many; the noise at each is part of what is measured.
        limit: What predictions may lose: an RMS, as a part of theirs.

    Raises:
        InputError: a component is unknown, or one step was asked for.
    """
    if steps < 2:
        raise InputError(
            f"A calibration of {steps} step was asked for; what layers are given changes from step to "
            "step. Take as many as pictures are drawn with, or 2 at least."
        )
    if unknown := schemes.keys() - pipe.plan.components.keys():
        raise InputError(
            f"A calibration of {', '.join(sorted(unknown))} was asked for; this pipeline has "
            f"{', '.join(pipe.plan.components)}."
        )
    heard = {name: _Listening(pipe.plan.components[name]) for name in schemes}
    tools = _Heard(pipe, heard)
    for number, one in enumerate(inputs):
        with working("calibrate", "Drawing", done=number, total=len(inputs)):
            given = {**one, "num_inference_steps": steps, "seed": number, "output_type": "np"}
            for _ in choose(pipe.tasks, given).run(tools, given):
                pass
    prompts = tuple(str(one.get("prompt", "")) for one in inputs)
    found = {}
    for name, program in heard.items():
        with working("calibrate", f"Measuring {name}", subject=name):
            measured = _measured(program, schemes[name], limit)
        found[name] = replace(measured, prompts=prompts, steps=steps)
    return found


class _Heard(PipelineTools):
    """A pipeline, some of whose components are run by programs that listen."""

    def __init__(self, pipe: DiffusionPipeline, heard: "Mapping[str, _Listening]") -> None:
        super().__init__(pipe)
        self._heard = heard

    def program(self, component: str) -> Program:
        heard = self._heard.get(component)
        return super().program(component) if heard is None else heard


class _Listening(Program):
    """A component's module in float32, with what it and its layers are given."""

    def __init__(self, component: Component) -> None:
        if component.build is None:
            raise InputError(
                f"A calibration of {component.name} was asked for; it comes from an export. Use the "
                "checkpoint that was exported."
            )
        self.signature = component.signature
        self.module = cast(build(component), torch.float32)
        self._layers = {
            f"{name}.weight": layer
            for name, layer in self.module.named_modules()
            if isinstance(layer, _MULTIPLY)
        }
        self.calls: list[list[Tensor]] = []
        self.ranges: dict[str, tuple[float, float]] = {}

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        tensors = [torch.as_tensor(np.asarray(inputs[n])) for n in self.signature.input_names]
        self.calls.append([one.float() if one.is_floating_point() else one for one in tensors])
        with torch.inference_mode(), _hooked(self._layers, self._hear):
            outputs = self.module(*self.calls[-1])
        return {
            name: one.numpy()
            for name, one in zip(self.signature.output_names, outputs, strict=True)
        }

    def _hear(self, name: str, inputs: Any, output: Tensor) -> None:
        low, high = self.ranges.get(name, (0.0, 0.0))
        given = inputs[0]
        self.ranges[name] = min(low, float(given.min())), max(high, float(given.max()))

    def report(self) -> ExecutionReport:
        return ExecutionReport(
            device="cpu", precision="float32", engine=f"torch {torch.__version__}"
        )


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], hear: Callable[..., None]) -> Iterator[None]:
    """Have ``hear(name, inputs, output)`` called after each of some layers, by their weights' names."""

    def hook(name: str) -> Any:
        return lambda layer, inputs, output: hear(name, inputs, output)

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _measured(program: _Listening, storage: str, limit: float) -> Calibration:
    """What a scheme costs a module, and which of its weights stay for that to be within a limit."""
    module, scheme = program.module, SCHEMES[storage]
    ranges = {plain_name(name): _whole_steps(*ends) for name, ends in program.ranges.items()}
    found = Calibration(
        scheme=storage,
        vectors=marks_of(StoredTensor.all_of(module)),
        ranges=ranges if scheme.activations else {},
    )
    small, calls = in_integers(module, storage, found), _some(program.calls)
    layers = _fitting(module, scheme)
    order = _worst_first(layers, small, module, calls)
    with torch.inference_mode():
        expected = [module(*call)[0] for call in calls]

    def lost(count: int) -> float:
        """What predictions lose where the worst layers stay as they are."""
        former = [_replaced(small, name, layers[name]) for name in order[:count]]
        with torch.inference_mode():
            pairs = [(small(*call)[0], one) for call, one in zip(calls, expected, strict=True)]
        for name, layer in zip(order[:count], former, strict=True):
            _replaced(small, name, layer)
        return _relative(pairs)

    count, error = _fewest(lost, len(order), limit)
    kept = tuple(plain_name(name) for name in order[:count])
    return replace(found, kept=kept, error=error)


def _fitting(module: nn.Module, scheme: Scheme) -> dict[str, nn.Module]:
    """The layers whose weights a scheme fits, by the names of these."""
    named = dict(module.named_modules())
    return {
        name: named[name.rpartition(".")[0]]
        for name, weight in module.named_parameters(remove_duplicate=False)
        if scheme.fits(name, tuple(weight.shape))
    }


def _worst_first(
    layers: Mapping[str, nn.Module],
    small: nn.Module,
    module: nn.Module,
    calls: Sequence[Sequence[Tensor]],
) -> list[str]:
    """The layers by what each alone loses of its output, as a part of that."""
    sums = {name: np.zeros(2) for name in layers}

    def hear(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        other = small.get_submodule(name.rpartition(".")[0])(*inputs)
        sums[name] += [float((other - output).square().sum()), float(output.square().sum())]

    with torch.inference_mode(), _hooked(layers, hear):
        for call in calls:
            module(*call)
    parts = {name: lost / whole if whole else 0.0 for name, (lost, whole) in sums.items()}
    return sorted(parts, key=parts.__getitem__, reverse=True)


def _fewest(lost: Callable[[int], float], count: int, limit: float) -> tuple[int, float]:
    """The fewest layers to keep for a limit, and what is lost then, by halving."""
    errors = {0: lost(0)}
    low, high = (0, 0) if errors[0] <= limit else (0, count)
    while high - low > 1:
        middle = (low + high) // 2
        errors[middle] = lost(middle)
        low, high = (low, middle) if errors[middle] <= limit else (middle, high)
    return high, errors[high] if high in errors else lost(high)


def _replaced(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put a layer in the place of another, which is returned."""
    path, _, last = name.rpartition(".")[0].rpartition(".")
    parent = module.get_submodule(path)
    former = parent.get_submodule(last)
    setattr(parent, last, layer)
    return former


def _whole_steps(low: float, high: float) -> tuple[float, float]:
    """A range of 256 steps, of which one is zero."""
    step = (high - low) / 255 or 1.0
    first = round(low / step)
    return first * step, (first + 255) * step


def _some(calls: Sequence[Any]) -> list[Any]:
    """A few calls of all, the first and the last among them."""
    places = np.linspace(0, len(calls) - 1, min(len(calls), _CALLS)).round()
    return [calls[int(place)] for place in places]


def _relative(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The RMS of differences, as a part of that of what was expected."""
    lost = sum(float((one - other).square().sum()) for one, other in pairs)
    whole = sum(float(other.square().sum()) for _, other in pairs)
    return math.sqrt(lost / whole)
