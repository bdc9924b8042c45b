"""A compiled program behind a component's signature."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.backend import Array, Component, ExecutionReport, Program
from perfuse.errors import ArtifactError, ExecutionError, InputError
from perfuse_exporters.neuron import sdk
from perfuse_exporters.neuron.layout import input_names, named_outputs
from perfuse_neuron import runtime

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NeuronProgram"]

_TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class NeuronProgram(Program):
    """A program of one size, on one NeuronCore, or on several that share each batch."""

    def __init__(
        self,
        component: Component,
        model: Any,
        *,
        path: Path,
        neuron: Mapping[str, Any],
        on: Sequence[int],
    ) -> None:
        """Run it once, so that the first step is as fast as the others.

        Args:
            component: Every size fixed, the batch that of all cores together.
            model: As loaded.
            path: Where from.
            neuron: ``config.json["neuron"]``.
            on: The cores.

        Raises:
            ArtifactError: it returns something else than the component does.
            ExecutionError: it cannot be run.
        """
        self._component = component
        self._model: Any = model
        self._path = path
        self._neuron = neuron
        self._on = tuple(on)
        self._order = input_names(component.spec)
        self.signature = component.signature
        self._tensors = {tensor.name: tensor for tensor in self.signature.inputs}
        if not self._inlined and len(self._on) == 1:
            runtime.place_weights(model, self._on[0])
        self._warm_up()

    @property
    def _inlined(self) -> bool:
        """Whether the weights are part of the program."""
        return bool(self._neuron.get("inline_weights_to_neff", True))

    def _warm_up(self) -> None:
        arrays = {
            tensor.name: np.zeros(
                tuple(int(size) for size in tensor.shape),
                np.int64 if tensor.dtype == "int64" else np.float32,
            )
            for tensor in self.signature.inputs
        }
        outputs = self._run(arrays)
        missing = [name for name in self.signature.output_names if name not in outputs]
        if missing:
            raise ArtifactError(
                f"{self._path} was loaded as {self._component.name}; it gives "
                f"{', '.join(outputs) or 'nothing that is known'}, and {', '.join(missing)} "
                "is needed. It was compiled for another component; export the model again."
            )

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once; floating-point inputs and outputs are float32.

        Raises:
            InputError: the arrays do not fit the signature, or have another size than the file.
            ExecutionError: the runtime failed, or the program was closed.
        """
        component = self._component
        dims = component.spec.signature.bind(inputs, component=component.name)
        component.check_dims(dims)
        return self._run(inputs)

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        if self._model is None:
            raise ExecutionError(f"{self._component.name} was closed; prepare it again.")
        given = tuple(self._fit(name, inputs[name]) for name in self._order)
        try:
            with torch.inference_mode():
                outputs = named_outputs(self._component.spec, self._model(*given))
        except Exception as exc:
            raise ExecutionError(
                f"{self._component.name} on neuron:{self._cores()} failed; the runtime said: "
                f"{runtime.said(exc)}. `neuron-ls` shows which process holds a core."
            ) from exc
        return {name: to_numpy(tensor) for name, tensor in outputs.items()}

    def _fit(self, name: str, array: Array) -> "Tensor":
        import torch

        tensor = torch.as_tensor(np.ascontiguousarray(to_numpy(array)))
        declared = self._tensors[name].dtype
        if declared == "float":
            declared = _TYPES.get(str(self._neuron.get("float_dtype", "fp32")), "float32")
        dtype: torch.dtype = getattr(torch, declared)
        return tensor.to(dtype)

    def replace_weights(self, weights: "Mapping[str, Tensor]") -> None:
        """Put other weights in, without compiling again.

        Args:
            weights: By the names that the traced module has them under.

        Raises:
            InputError: the weights are part of the program, or it is on several cores.
        """
        name = self._component.name
        if self._inlined:
            raise InputError(
                f"{name} was to get other weights; its own are part of the program in {self._path}. "
                "Export it with --option inline_weights_to_neff=false."
            )
        if len(self._on) > 1:
            raise InputError(
                f"{name} was to get other weights; it runs on {len(self._on)} cores at once. "
                "Use --option guidance=batch."
            )
        sdk.replace_weights(self._model, weights)
        runtime.place_weights(self._model, self._on[0])

    def report(self) -> ExecutionReport:
        """The cores, and the precision that the file was compiled for."""
        cast, to = self._neuron.get("auto_cast"), str(self._neuron.get("auto_cast_type"))
        width = _TYPES.get(str(self._neuron.get("float_dtype", "fp32")), "float32")
        precision = _TYPES.get(to, to) if cast not in (None, "none") else width
        asked = self._component.precision
        return ExecutionReport(
            device=f"neuron:{self._cores()}",
            precision=precision,
            engine=f"torch-neuronx {sdk.runtime_version()}",
            fallbacks=(
                (f"{asked} was asked for, and the file computes in {precision}",)
                if precision != asked
                else ()
            ),
            details={
                name: self._neuron.get(name)
                for name in ("auto_cast", "auto_cast_type", "optlevel", "compiler_version")
            },
        )

    def _cores(self) -> str:
        return ",".join(str(core) for core in self._on)

    def close(self) -> None:
        """Release the program, and with it the cores' memory."""
        self._model = None
