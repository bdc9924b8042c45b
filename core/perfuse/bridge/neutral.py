"""Modules that perfuse has a network of its own for: one graph takes every size, batch and way to call.

Diffusers' own network is captured once for each size that leads it another way; perfuse's is written
so that one capture serves all. It is made around the module's tensors, where the module is as its
config alone would make it: no adapter, no other attention processor, no switch. CLIP's text encoder is
transformers' own class for perfuse, too: what is saved there is the capture, where its graph is known.
"""

import copy
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perfuse.bridge.calls import Answer, Call
from perfuse.bridge.guards import Guards
from perfuse.bridge.state import described
from perfuse.capture import replace_tensors
from perfuse.contract.architecture import Called
from perfuse.contract.component import Component, Recipe
from perfuse.contract.spec import ComponentSpec, Role
from perfuse.errors import PerfuseError, UnsupportedError
from perfuse.models.building import wrap
from perfuse.models.registry import asked, called, describe, is_known, with_hidden_states
from perfuse.sources.checkpoint import OF_THE_CONFIG

__all__ = ["Neutral", "as_array", "neutral_of"]

_Array = np.ndarray[Any, np.dtype[Any]]

#: What each method computes.
_ROLES = {
    "forward": (Role.DENOISER, Role.TEXT_ENCODER),
    "encode": (Role.LATENT_ENCODER,),
    "decode": (Role.LATENT_DECODER,),
}
#: A free size of the smaller call that a graph's answer is compared at.
_SMALL = 16
#: Where Diffusers nests arguments that a signature has side by side.
_NESTED = "added_cond_kwargs_"
#: Where perfuse has networks anew; transformers' own it may use as they are.
_ANEW = "diffusers"


@dataclass(frozen=True, kw_only=True, eq=False)
class Neutral(ABC):
    """A component of perfuse's own that computes a recorded call."""

    component: Component
    guards: Guards

    @abstractmethod
    def asked(self, call: Call) -> Called:
        """The component's inputs for a call, and what makes of its outputs the answer's arrays.

        Raises:
            PerfuseError: it cannot take them.
        """

    @abstractmethod
    def answering(self, answer: Answer) -> "Neutral":
        """The same for calls whose answers are like this one.

        Raises:
            UnsupportedError: it gives something else.
        """

    @abstractmethod
    def smaller(self, call: Call) -> Call:
        """A call with a part of each tensor; one graph takes all sizes, so it tells of this one, too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Named(Neutral):
    """A component whose inputs are called as the call's tensors."""

    #: For each of its inputs, which of the call's tensors it is.
    places: Mapping[str, int]
    #: Its outputs in the order of the answer's tensors.
    outputs: tuple[str, ...] = ()

    def asked(self, call: Call) -> Called:
        """The call's tensors; one number for all pictures is repeated."""
        tensors = {name: call.tensors[place] for name, place in self.places.items()}
        batch = max((len(tensor) for tensor in tensors.values() if tensor.dim() > 1), default=1)
        inputs = {
            name: as_array(tensor if tensor.dim() > 1 else tensor.reshape(-1).expand(batch))
            for name, tensor in tensors.items()
        }
        return inputs, lambda given: [given[name] for name in self.outputs]

    def answering(self, answer: Answer) -> "Named":
        own = self.component.spec.signature.output_names
        one = len(own) == len(answer.tensors) == 1
        names = own if one else tuple(name.removeprefix("out_") for name in answer.names)
        if not set(names) <= set(own):
            raise UnsupportedError(f"perfuse's network gives {', '.join(own)}")
        return replace(self, outputs=names)

    def smaller(self, call: Call) -> Call:
        spec = self.component.spec
        tensors = list(call.tensors)
        for one in spec.signature.inputs:
            place = self.places[one.name]
            for axis, size in enumerate(one.shape[: tensors[place].dim()]):
                if isinstance(size, str):
                    unit = spec.dims[size].multiple
                    least = min(unit * max(1, _SMALL // unit), tensors[place].shape[axis])
                    tensors[place] = tensors[place].narrow(axis, 0, least)
        return replace(call, tensors=tuple(tensors))


@dataclass(frozen=True, kw_only=True, eq=False)
class Translated(Neutral):
    """A component whose architecture says what its inputs are in a call of Diffusers' model."""

    #: That of the method.
    parameters: inspect.Signature

    def asked(self, call: Call) -> Called:
        found = asked(self.component.spec, _arguments(self.parameters, call))
        if found is None:
            raise UnsupportedError("perfuse's network takes no such call")
        return found

    def answering(self, answer: Answer) -> "Translated":
        return self

    def smaller(self, call: Call) -> Call:
        return call  # its tensors belong together in ways that only the model knows


@dataclass(frozen=True, kw_only=True, eq=False)
class _Own(Recipe):
    """perfuse's network with a module's tensors, on the CPU."""

    spec: ComponentSpec
    module: nn.Module

    @property
    def graph(self) -> str:
        return OF_THE_CONFIG

    def __call__(self) -> nn.Module:
        # What perfuse uses as it is shall not be changed: a copy of its structure, with its tensors.
        flat = wrap(self.spec, replace_tensors(self.module, lambda tensor: tensor)).eval()
        if any(one.device.type != "cpu" for one in (*flat.parameters(), *flat.buffers())):
            return replace_tensors(flat, lambda tensor: tensor.cpu())
        return flat


def neutral_of(
    module: nn.Module,
    entry: str,
    call: Call,
    *,
    name: str,
    precision: str,
) -> Neutral | None:
    """The component of perfuse's own that computes a recorded call.

    Args:
        module: What is called: Diffusers' model.
        entry: The method.
        call: The recorded call.
        name: The name of the model in the pipeline: ``vae``.
        precision: What to compute in.

    Returns:
        ``None`` where there is none, or the module or the call is not a usual one.
    """
    spec = _spec_of(module, entry, name)
    if spec is not None and call.named.get("output_hidden_states"):
        spec = with_hidden_states(spec)
    if spec is None:
        return None
    if not all(leaf is None or isinstance(leaf, bool) for leaf in call.leaves):
        return None
    parameters = inspect.signature(getattr(type(module), entry))
    places = _places(spec, entry, call)
    if places is None and called(spec, _arguments(parameters, call)) is None:
        return None
    if not _as_made(module) or not _as_written(module, entry):
        return None
    build = _Own(spec=spec, module=module)
    if any(type(part).__module__.startswith(_ANEW) for part in build().modules()):
        return None  # its tensors are not those of perfuse's network
    component = Component(spec=spec, precision=precision, build=build)
    if places is not None:
        guards = _guards(spec, places, call)
        return Named(component=component, places=places, guards=guards)
    return Translated(component=component, parameters=parameters, guards=_any_size(call))


def _arguments(parameters: inspect.Signature, call: Call) -> dict[str, Any]:
    """A call's arguments by name, with arrays for tensors, without flags and what was not given."""
    args, kwargs = call.arguments([as_array(one) for one in call.tensors])
    given = parameters.bind(None, *args, **kwargs).arguments
    named: dict[str, Any] = {}
    for name, one in list(given.items())[1:]:  # without self
        further = parameters.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named |= one if further else {name: one}
    left = (type(None), bool)
    return {n: one for n, one in named.items() if not isinstance(one, left) and not _is_empty(one)}


def _is_empty(value: Any) -> bool:
    return isinstance(value, Mapping) and not value


def _any_size(call: Call) -> Guards:
    """Sizes that are seen to when the inputs are made."""
    shapes = tuple(
        tuple(f"t{i}_{axis}" for axis in range(tensor.dim()))
        for i, tensor in enumerate(call.tensors)
    )
    return Guards(shapes=shapes, ranges={})


def _spec_of(module: nn.Module, entry: str, name: str) -> ComponentSpec | None:
    config = _config_of(module)
    if entry not in _ROLES or config is None or not is_known(type(module).__name__):
        return None
    # Where it comes from, and by whom it was written, is no part of what it computes.
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        found = describe(type(module).__name__, name, name, plain)
    except (PerfuseError, ValueError, TypeError):
        return None  # a config that only Diffusers' network takes
    return next((one for one in found if one.role in _ROLES[entry]), None)


def _config_of(module: nn.Module) -> Mapping[str, Any] | None:
    """A module's config: Diffusers' are mappings, those of transformers make one."""
    config: Any = getattr(module, "config", None)
    if isinstance(config, Mapping):
        return config
    found = config.to_dict() if hasattr(config, "to_dict") else None
    return found if isinstance(found, Mapping) else None


def _places(spec: ComponentSpec, entry: str, call: Call) -> dict[str, int] | None:
    """The call's tensor for each input, each of the rank that it has there."""
    names = [name.removeprefix(_NESTED) for name in call.names]
    wanted = {tensor.name: len(tensor.shape) for tensor in spec.signature.inputs}
    if entry != "forward" and len(names) == len(wanted) == 1:
        names = list(wanted)
    if sorted(names) != sorted(wanted):
        return None
    places = {name: names.index(name) for name in wanted}
    ranks = {name: call.tensors[place].dim() for name, place in places.items()}
    fit = all(ranks[n] == rank or (rank == 1 and ranks[n] == 0) for n, rank in wanted.items())
    return places if fit else None


def _guards(spec: ComponentSpec, places: Mapping[str, int], call: Call) -> Guards:
    """The sizes that the component takes, in the order of the call's tensors."""
    shapes: list[tuple[int | str, ...]] = [()] * len(call.tensors)
    conditions = []
    ranges = {}
    for tensor in spec.signature.inputs:
        place = places[tensor.name]
        rank = call.tensors[place].dim()
        # One number for all pictures, or one for each.
        shapes[place] = tensor.shape if rank > 1 else tuple(call.tensors[place].shape)
        for axis, size in enumerate(tensor.shape[:rank]):
            if not isinstance(size, str):
                continue
            dim = spec.dims[size]
            if dim.multiple > 1:
                conditions.append(f"Mod(t{place}_{axis}, {dim.multiple}) == 0")
            ranges[size] = (1, dim.maximum)
    return Guards(shapes=tuple(shapes), ranges=ranges, conditions=tuple(conditions))


def _as_made(module: nn.Module) -> bool:
    """Whether a module is what its config alone makes it: nothing was put on, in or around it."""
    kind: Any = type(module)
    with torch.device("meta"):
        if isinstance(module.config, Mapping):
            fresh = kind.from_config(dict(module.config))
        else:
            fresh = kind(copy.deepcopy(module.config))
    fresh.train(module.training)
    return described(fresh, placed=False) == described(module, placed=False)


def _as_written(module: nn.Module, entry: str) -> bool:
    """Whether what a module runs is its library's code: nobody replaced a method of a class."""
    methods = [getattr(type(module), entry)]
    for part in module.modules():
        methods.append(type(part).forward)
        processor = type(getattr(part, "processor", None))
        methods.append(inspect.getattr_static(processor, "__call__", None))
    return all(_is_library_s(one) for one in dict.fromkeys(methods) if one is not None)


def _is_library_s(method: Any) -> bool:
    """Whether a function, and all that is wrapped in it, stands in the file of an installed library."""
    while method is not None:
        code = getattr(method, "__code__", None)
        if code is not None and not code.co_filename.startswith(_library_folders()):
            return False
        method = getattr(method, "__wrapped__", None)
    return True


@functools.cache
def _library_folders() -> tuple[str, ...]:
    names = ("torch", "diffusers", "transformers", "accelerate")
    found = [find_spec(name) for name in names]
    return tuple(
        str(folder)
        for one in found
        if one is not None
        for folder in one.submodule_search_locations or ()
    )


def as_array(tensor: Tensor) -> _Array:
    """A tensor for a program: float32 or int64, in memory that numpy sees."""
    plain = tensor.detach().cpu()
    whole = plain.float() if plain.is_floating_point() else plain.long()
    return whole.numpy()
