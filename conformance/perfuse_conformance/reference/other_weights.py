"""A component with other weights: what another checkpoint of its config is to an engine."""

from typing import TYPE_CHECKING

from perfuse.backend import Component
from perfuse_conformance.cases.catalogue import Arrays

if TYPE_CHECKING:
    from torch import nn

__all__ = ["truth", "with_other_weights"]

_FACTOR = 0.75


def with_other_weights(component: Component) -> Component:
    """The component with every weight multiplied by a number. Its graph is the same."""
    return component.rebuilt(_weakened, graph="")


def _weakened(module: "nn.Module") -> "nn.Module":
    state = module.state_dict()
    other = {n: t * _FACTOR if t.is_floating_point() else t for n, t in state.items()}
    module.load_state_dict(other, assign=True)
    return module


def truth(component: Component, inputs: Arrays) -> Arrays:
    """What PyTorch computes of the component's module in float32."""
    import torch

    from perfuse.capture import build, cast

    module, signature = cast(build(component), torch.float32), component.spec.signature
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(inputs[name]) for name in signature.input_names))
    arrays = (tensor.numpy() for tensor in outputs)
    return dict(zip(signature.output_names, arrays, strict=True))
