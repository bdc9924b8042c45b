"""The reference in float64: a component's torch module with every number that wide."""

import copy
from typing import TYPE_CHECKING, Any

from perfuse.backend import Component, ExecutionReport, Program
from perfuse.errors import UnsupportedError
from perfuse.run import DiffusionPipeline
from perfuse.spec import Array
from perfuse_conformance.cases.probes import Arrays

if TYPE_CHECKING:
    import torch

__all__ = ["Float64Program", "ReferencePipeline"]


class Float64Program(Program):
    """A component on a torch device in float64; float32 where it is called, as every program.

    What a model computes in float32 whatever its dtype, a timestep's sinusoids among it, is float64
    too: truth has no rounding of its own.
    """

    def __init__(self, component: Component, device: str) -> None:
        if component.build is None:
            raise UnsupportedError(
                f"{component.name} was to be the reference; the model is an exported folder, which "
                "has no torch module. Name the checkpoint, or a golden bundle with --golden."
            )
        self.signature = component.signature
        # On the CPU, because Apple's GPUs have no float64.
        self._device = device = "cpu" if device.startswith("mps") else device
        self._module = copy.deepcopy(component.build()).double().to(device)
        #: Each call since the last ``clear``: its inputs and its float64 outputs.
        self.calls: list[tuple[Arrays, Arrays]] = []

    @property
    def rounds_alike(self) -> bool:
        """Whether convolutions are all that sums by weights: engines share a library of them.

        What multiplies and adds a row of numbers, such as an image normaliser, sums nothing.
        """
        from torch import nn

        parts = (part for part in self._module.modules() if not isinstance(part, nn.Conv2d))
        own = (one for part in parts for one in part.parameters(recurse=False))
        return all(one.dim() == 2 and len(one) == 1 for one in own)

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        import numpy as np
        import torch

        tensors = [self._wide(inputs[name]) for name in self.signature.input_names]
        with torch.inference_mode(), _everything_wide():
            outputs = self._module(*tensors)
        exact = {
            name: output.cpu().numpy()
            for name, output in zip(self.signature.output_names, outputs, strict=True)
        }
        given = {name: np.array(array) for name, array in inputs.items()}
        self.calls.append((given, exact))
        return {name: array.astype(np.float32) for name, array in exact.items()}

    def _wide(self, array: Any) -> "torch.Tensor":
        import torch

        tensor = torch.as_tensor(array)
        if tensor.is_floating_point():
            tensor = tensor.double()
        return tensor.to(self._device)

    def report(self) -> ExecutionReport:
        return ExecutionReport(device=self._device, precision="float64", engine="torch")


def _everything_wide() -> Any:
    """A torch mode that replaces requests for float32 by float64."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.Tensor.float:
                func = torch.Tensor.double
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            return func(*args, **kwargs)

    return Wide()


class ReferencePipeline(DiffusionPipeline):
    """A pipeline whose components are all float64."""

    def program(self, component: str) -> Float64Program:
        """The component in float64, on the device that the placement names."""
        program = self._programs.get(component)
        if not isinstance(program, Float64Program):
            source = self.component(component)
            device = self.placement[component].device or "cpu"
            program = Float64Program(source, device)
            self._programs.prepare(component, id(program), lambda: program)
        return program
