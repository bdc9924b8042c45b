"""A component with other weights: what another checkpoint of its config is to an engine."""

import hashlib
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perfuse.backend import Changes, Component
from perfuse.models import with_changes
from perfuse_conformance.cases.probes import Arrays

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["truth", "with_adapter", "with_other_weights"]

_FACTOR = 0.75


def with_other_weights(component: Component) -> Component:
    """The component with every weight multiplied by a number. Its graph is the same."""
    return component.rebuilt(_weakened, graph="")


def _weakened(module: "nn.Module") -> "nn.Module":
    state = module.state_dict()
    other = {n: t * _FACTOR if t.is_floating_point() else t for n, t in state.items()}
    module.load_state_dict(other, assign=True)
    return module


@dataclass(frozen=True, kw_only=True)
class _Weaker(Changes):
    """An adapter that takes a part of each matrix away."""

    matrices: frozenset[str]
    strength: float

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{sorted(self.matrices)} {self.strength}".encode()).hexdigest()

    @property
    def names(self) -> AbstractSet[str]:
        return self.matrices

    def of(self, name: str, weight: "NDArray[np.float32]") -> "NDArray[np.float32]":
        return weight * (1 - (1 - _FACTOR) * self.strength)


def with_adapter(component: Component, strength: float) -> Component:
    """The component with an adapter that changes its matrices."""
    from perfuse.capture import build, named_weights

    weights = named_weights(build(component))
    matrices = frozenset(name for name, weight in weights.items() if weight.ndim == 2)
    return with_changes(component, _Weaker(matrices=matrices, strength=strength))


def truth(component: Component, inputs: Arrays) -> Arrays:
    """What PyTorch computes of the component's module in float32."""
    import torch

    from perfuse.capture import build, cast

    module, signature = cast(build(component), torch.float32), component.spec.signature
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(inputs[name]) for name in signature.input_names))
    arrays = (tensor.numpy() for tensor in outputs)
    return dict(zip(signature.output_names, arrays, strict=True))
