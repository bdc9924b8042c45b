"""A recorded call as a component: a flat module that takes tensors and returns tensors."""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from perfuse.bridge.calls import Answer, Call
from perfuse.bridge.state import weight_norms
from perfuse.capture import replace_tensors
from perfuse.contract.component import Component, Recipe
from perfuse.contract.spec import ComponentSpec, Dim, Signature, TensorSpec

__all__ = ["Axes", "component_of", "precision_of"]

#: Axes that take any size, by the number of a tensor and of its axis, with the size to capture.
Axes = dict[tuple[int, int], int]
#: What torch calls where a tensor's ``data`` is read.
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class RecordedCall(nn.Module):
    """One way to call a module: the call's tensors in, the answer's tensors out."""

    def __init__(self, module: nn.Module, entry: str, call: Call) -> None:
        super().__init__()
        self.module = module
        self._entry = entry
        self._call = _Kept(call)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        call = self._call.call
        fitted = [
            tensor.to(was.dtype) if not was.is_floating_point() else tensor
            for tensor, was in zip(tensors, call.tensors, strict=True)
        ]
        args, kwargs = call.arguments(fitted)
        function: Callable[..., Any] = getattr(type(self.module), self._entry)
        with _PlainData():
            answer = Answer.of(function(self.module, *args, **kwargs))
        return tuple(
            tensor if tensor.is_floating_point() else tensor.long() for tensor in answer.tensors
        )


class _PlainData(TorchFunctionMode):
    """Reads ``tensor.data`` as ``tensor.detach()``, the same memory: capture loses track of the former.

    CogVideoX writes its positions through it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func == _DATA:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


class _Kept:
    """Holds a call; copying a module copies no call."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Kept":
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class _Recording(Recipe):
    module: nn.Module
    entry: str
    call: Call

    @property
    def foreign(self) -> bool:
        return True

    def __call__(self) -> nn.Module:
        module = RecordedCall(_with_whole_weights(self.module), self.entry, self.call)
        module.training = self.module.training  # eval() would change the user's module
        # The state has no buffers that are not saved.
        if any(one.device.type != "cpu" for one in (*module.parameters(), *module.buffers())):
            return replace_tensors(module, lambda tensor: tensor.cpu())
        return module


def _with_whole_weights(module: nn.Module) -> nn.Module:
    """A copy of a module with weights in the place of the hooks that make them; itself without any."""
    made = [(part, name) for part in module.modules() for name in weight_norms(part)]
    if not made:
        return module
    tensors = (*module.parameters(), *module.buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    memo |= {id(one): one for part, name in made if (one := vars(part).get(name)) is not None}
    copied = copy.deepcopy(module, memo)
    for part in copied.modules():
        for name in weight_norms(part):
            nn.utils.remove_weight_norm(part, name)
    return copied


def precision_of(module: nn.Module) -> str:
    """The precision of a module's weights: that of the first, ``float32`` without any."""
    for tensor in module.parameters():
        if tensor.is_floating_point():
            name = str(tensor.dtype).removeprefix("torch.")
            return name if name in ("float16", "bfloat16") else "float32"
    return "float32"


def component_of(
    module: nn.Module,
    entry: str,
    call: Call,
    answer: Answer,
    *,
    name: str,
    precision: str,
    free: Axes,
    fingerprint: str,
) -> Component:
    """The component of a recorded call.

    Args:
        module: What is called.
        entry: The method: ``forward``, ``decode``.
        call: The recorded call.
        answer: What it returned.
        name: The component's name.
        precision: What to compute in.
        free: The axes that are to take any size.
        fingerprint: Identifies the module and its weights.
    """
    own = precision_of(module)
    inputs = tuple(
        TensorSpec(
            name=one,
            dtype=_dtype(tensor, own),
            shape=_shape(one, tensor, [axis for which, axis in free if which == i]),
        )
        for i, (one, tensor) in enumerate(zip(call.names, call.tensors, strict=True))
    )
    fixed = all(isinstance(size, int) for tensor in inputs for size in tensor.shape)
    outputs = tuple(
        TensorSpec(
            name=one,
            dtype=_dtype(tensor, own),
            shape=tuple(tensor.shape) if fixed else _shape(one, tensor, range(tensor.dim())),
        )
        for one, tensor in zip(answer.names, answer.tensors, strict=True)
    )
    dims = {
        f"{call.names[which]}_{axis}": Dim(example=size, inferred=True)
        for (which, axis), size in free.items()
    }
    spec = ComponentSpec(
        name=name,
        class_name=type(module).__name__,
        folder=name,
        config={"entry": entry, "arguments": repr(call.leaves), "tree": str(call.tree)},
        signature=Signature(inputs=inputs, outputs=outputs),
        dims=dims,
    )
    build = _Recording(module=module, entry=entry, call=call)
    return Component(spec=spec, precision=precision, build=build, fingerprint=fingerprint)


def _dtype(tensor: Tensor, own: str) -> str:
    if not tensor.is_floating_point():
        return "int64"
    # What the module keeps more precise than its weights, a timestep for one, stays so.
    precise = tensor.dtype in (torch.float32, torch.float64) and own != "float32"
    return "float32" if precise else "float"


def _shape(name: str, tensor: Tensor, free: Collection[int]) -> tuple[int | str, ...]:
    return tuple(
        f"{name}_{axis}" if axis in free else size for axis, size in enumerate(tensor.shape)
    )
