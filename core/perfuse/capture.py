"""Building a component's torch module, casting it and capturing it with ``torch.export``."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from perfuse.backend import Component
from perfuse.errors import ExportError
from perfuse.models.changed_weights import changed_weights, named_weights
from perfuse.models.in_integers import in_integers
from perfuse.passes import neutral
from perfuse.progress import say
from perfuse.spec import TensorSpec

__all__ = [
    "build",
    "capture",
    "cast",
    "changed_weights",
    "dynamic_shapes",
    "example_inputs",
    "hearing",
    "hollow",
    "in_integers",
    "named_weights",
    "replace_tensors",
    "trace",
]

_DTYPES = {"float32": torch.float32, "int64": torch.int64}


def example_inputs(component: Component, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tensors that fit the component's signature, in its order."""
    return tuple(_example(component, tensor, dtype) for tensor in component.spec.signature.inputs)


def _example(component: Component, tensor: TensorSpec, dtype: torch.dtype) -> Tensor:
    sizes = {dim: _size(component, dim) for dim in component.spec.signature.dims}
    shape = tuple(int(size) for size in tensor.resolve(sizes))
    if tensor.dtype == "int64":
        return torch.ones(shape, dtype=torch.int64)
    return torch.full(shape, 0.5, dtype=_DTYPES.get(tensor.dtype, dtype))


# Sizes that no two dimensions share, so that capture cannot take one for another, and that stay
# whole and above 1 when a network halves them. The tensors are never computed with.
_CHOSEN = (2, 96, 64, 80, 112, 48, 144, 176)


def _units(component: Component, dim: str) -> int:
    """The size to capture a dimension with, in units of its multiple."""
    given = component.spec.dim(dim).example
    if given is not None:
        return given
    dims = component.spec.signature.dims
    taken = {component.spec.dim(name).example for name in dims}
    free = [size for size in _CHOSEN if size not in taken]
    unsaid = [name for name in dims if component.spec.dim(name).example is None]
    return free[unsaid.index(dim)]


def _smallest(component: Component, dim: str) -> int:
    known = component.spec.dim(dim)
    if known.smallest is not None:
        return known.smallest
    return 1 if known.example is not None else max(_units(component, dim) // 2, 1)


def _size(component: Component, dim: str) -> int:
    if dim in component.static:
        return component.static[dim]
    return _units(component, dim) * component.spec.dim(dim).multiple


def dynamic_shapes(component: Component) -> tuple[Mapping[int, Any], ...]:
    """The ``dynamic_shapes`` of ``torch.export``: for each input, axis to symbolic dimension.

    Axes with the same dimension name have the same size.
    """
    dims: dict[str, Any] = {}
    for name in component.spec.signature.dims:
        if name in component.static:
            continue
        known = component.spec.dim(name)
        if known.inferred:
            dims[name] = Dim.AUTO
            continue
        multiple, maximum = known.multiple, known.maximum
        unit = Dim(
            f"{name}_unit" if multiple > 1 else name,
            min=_smallest(component, name),
            max=maximum // multiple if maximum is not None else None,
        )
        dims[name] = unit * multiple if multiple > 1 else unit
    dims |= _multiplied(component, dims)
    dims |= _divided(component)
    return tuple(
        {axis: dims[dim] for axis, dim in enumerate(tensor.shape) if dim in dims}
        for tensor in component.spec.signature.inputs
    )


def _following(component: Component, sign: str) -> list[str]:
    found = {str(dim) for tensor in component.spec.signature.inputs for dim in tensor.shape}
    return sorted(dim for dim in found if sign in dim)


def _multiplied(component: Component, dims: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions that are a multiple of another."""
    pairs = ((dim, *dim.split("*")) for dim in _following(component, "*"))
    return {dim: dims[name] * int(factor) for dim, name, factor in pairs if name in dims}


def _divided(component: Component) -> dict[str, Any]:
    """The dimensions that are a part of another: for torch.export, which divides none, their own."""
    dims = {}
    for dim in _following(component, "/"):
        name, divisor = dim.split("/")
        if name not in component.static:
            least = _smallest(component, name) * component.spec.dim(name).multiple
            dims[dim] = Dim(f"{name}_over_{divisor}", min=-(-least // int(divisor)))
    return dims


def capture(component: Component, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """Build the component's module, cast it and capture it.

    Raises:
        ExportError: the component comes from an artifact, or cannot be captured.
    """
    return trace(component, cast(build(component), dtype), dtype)


def build(component: Component) -> nn.Module:
    """The component's module, uncast. It may be the user's own: do not modify it.

    Raises:
        ExportError: the component comes from an artifact.
    """
    if component.recipe is None:
        raise ExportError(
            f"{component.name} was to be captured; it comes from an exported artifact, which has "
            "no module to capture. Start from the checkpoint."
        )
    return component.recipe()


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the module with floating-point tensors cast; the module itself if none needs it."""
    if all(t.dtype == dtype for _, t in _tensors(module) if t.is_floating_point()):
        return module
    return replace_tensors(module, lambda t: t.to(dtype) if t.is_floating_point() else t)


def replace_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the module with each parameter and buffer replaced; tied weights stay tied."""
    memo: dict[int, Any] = {}
    for _, tensor in _tensors(module):
        if id(tensor) not in memo:
            made = make(tensor).detach()
            memo[id(tensor)] = (
                nn.Parameter(made, requires_grad=False)
                if isinstance(tensor, nn.Parameter)
                else made
            )
    # deepcopy takes objects in the memo as copied already, so no weight is duplicated.
    return copy.deepcopy(module, memo)


def hollow(module: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, frozenset[str]]:
    """A copy of the module without its weights, for a graph without them; and the names of these.

    Each is replaced by memory that is never touched, and so never allocated. Integers, which may
    determine the graph's structure, and what the module computed from its config keep their values.
    """
    weights = {n: t for n, t in module.state_dict(keep_vars=True).items() if t.is_floating_point()}
    emptied = {id(tensor) for tensor in weights.values()}

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) in emptied:
            return torch.empty(tensor.shape, dtype=dtype)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return replace_tensors(module, stand_in), frozenset(weights)


def _tensors(module: nn.Module) -> chain[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def trace(
    component: Component,
    module: nn.Module,
    dtype: torch.dtype,
    *,
    before: tuple[Tensor, ...] = (),
) -> ExportedProgram:
    """Capture a module that has the component's signature, without computing with its weights.

    Args:
        component: What it is of.
        module: The module.
        dtype: Of floating-point inputs.
        before: Further inputs of fixed sizes, in front of the signature's.

    Raises:
        ExportError: torch.export cannot capture it.
    """
    say(f"Capturing {component.name}")
    shapes = (*({} for _ in before), *dynamic_shapes(component))
    try:
        with torch.no_grad():
            program = torch.export.export(
                module,
                (*before, *example_inputs(component, dtype)),
                dynamic_shapes=_for_module(module, shapes),
                strict=False,
            )
    except Exception as exc:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be captured; torch.export "
            f"raised {type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
        ) from exc
    _hear.get()(program)
    return neutral(program)


_hear: ContextVar[Callable[[ExportedProgram], None]] = ContextVar(
    "hear", default=lambda program: None
)


@contextmanager
def hearing(hear: Callable[[ExportedProgram], None]) -> Iterator[None]:
    """Pass every graph that the code in the ``with`` block captures to ``hear``, too."""
    token = _hear.set(hear)
    try:
        yield
    finally:
        _hear.reset(token)


def _for_module(module: nn.Module, shapes: tuple[Mapping[int, Any], ...]) -> Any:
    """Nest the shapes if the module takes ``*inputs``, as torch.export requires."""
    code = module.forward.__code__
    return (shapes,) if code.co_flags & 0x04 else shapes
