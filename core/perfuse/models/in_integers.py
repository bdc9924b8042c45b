"""A module with its weights in integers, which are made numbers again whenever a layer reads them."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from perfuse.contract.changes import plain_name
from perfuse.contract.quantized import SCHEMES, Calibration, Scheme, packed
from perfuse.contract.weights import StoredTensor

__all__ = ["in_integers"]


def in_integers(
    module: nn.Module, storage: str, calibration: Calibration | None = None
) -> nn.Module:
    """A copy of the module with the weights that a scheme fits in integers.

    Each is made of them whenever its layer reads it. Nothing else is copied. Where a calibration has
    ranges, what a layer is given is rounded, too.

    Raises:
        InputError: the calibration is of another model or scheme.
    """
    scheme = SCHEMES[storage]
    if calibration is not None:
        calibration.check(StoredTensor.all_of(module), storage)
    kept = calibration.kept if calibration is not None else ()
    ranges = calibration.ranges if calibration is not None else {}
    tensors: dict[int, Any] = {id(one): one for one in (*module.parameters(), *module.buffers())}
    chosen = {
        name: weight
        for name, weight in module.named_parameters(remove_duplicate=False)
        if weight.is_floating_point()
        and scheme.fits(name, tuple(weight.shape))
        and plain_name(name) not in kept
    }
    for weight in chosen.values():
        tensors[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False)
    own = copy.deepcopy(module, tensors)  # what is in the memo counts as copied already
    for name in chosen:
        layer = own.get_submodule(name.rpartition(".")[0])
        register_parametrization(layer, "weight", _Widened(scheme, name), unsafe=True)
        if plain_name(name) in ranges:
            layer.register_forward_pre_hook(_Rounding(*ranges[plain_name(name)]))
    return own


@dataclass(frozen=True)
class _Rounding:
    """Rounds what a layer is given to 256 steps of a range, of which one is zero."""

    low: float
    high: float

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        step = (self.high - self.low) / 255
        first = round(self.low / step)
        values = (inputs[0] / step).round().clamp(first, first + 255) * step
        return (values, *inputs[1:])


class _Widened(nn.Module):
    """Makes a weight of integers; its inverse is what the layer keeps."""

    def __init__(self, scheme: Scheme, name: str) -> None:
        super().__init__()
        self.scheme, self.name = scheme, name
        self.four = False
        self.shape: tuple[int, ...] = ()

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Codes, scales and, if there are any, zero points of a weight."""
        made = self.scheme.of(StoredTensor.of(weight), self.name)
        self.four, self.shape = made.scheme.bits == 4, made.codes.shape
        codes = packed(made.codes) if self.four else made.codes
        parts = [codes, made.scale] if made.zero is None else [codes, made.scale, made.zero]
        return tuple(torch.from_numpy(part) for part in parts)

    def forward(self, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        """The weight, in the dtype of the scales."""
        if self.four:
            codes = torch.stack((codes & 15, codes >> 4), -1)
            codes = codes if zero is not None else (codes ^ 8).to(torch.int8) - 8
        values = codes.reshape(*scale.shape, -1).to(scale.dtype)
        if zero is not None:
            values = values - zero[..., None].to(scale.dtype)
        return (values * scale[..., None]).reshape(self.shape)
