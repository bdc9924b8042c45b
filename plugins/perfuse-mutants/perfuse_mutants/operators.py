"""One operator is not the one that the model was made with: the slips of kernels and of lowering."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from perfuse.backend import Component
from perfuse_mutants.backend import Arrays, Mutant, Run
from perfuse_mutants.text import end_of

__all__ = [
    "BilinearUpsampling",
    "ExactGelu",
    "GeluTanh",
    "HalfAttention",
    "Int8Weights",
    "NoCausalMask",
    "NormEps",
    "PaddingPositions",
    "PaddingSide",
    "Tf32",
]

_EVERY = ("denoiser", "text", "decoder", "encoder")
Operator = Callable[..., Any]


class Operators(Mutant):
    """Runs the right module with some operators replaced."""

    @abstractmethod
    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        """What is called instead of an operator of torch's, in one call of the component."""

    def spoil(self, component: Component, run: Run) -> Run:
        def call(inputs: Arrays) -> Arrays:
            with _Replacing(self.replaced(inputs)):
                return run(inputs)

        return call


class _Replacing(TorchFunctionMode):
    """Calls what a table has for an operator."""

    def __init__(self, table: Mapping[Operator, Operator]) -> None:
        super().__init__()
        self._table = table

    def __torch_function__(
        self, func: Operator, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return self._table.get(func, func)(*args, **(kwargs or {}))


class NormEps(Operators):
    """Group normalisation with 1e-6 where the model says 1e-5."""

    name = "mutant-norm-eps"

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        def group_norm(
            x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
        ) -> Tensor:
            return F.group_norm(x, groups, weight, bias, 1e-6)

        return {F.group_norm: group_norm}


class GeluTanh(Operators):
    """The tanh approximation of GELU."""

    name = "mutant-gelu-tanh"

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        return {F.gelu: lambda x: F.gelu(x, approximate="tanh")}


class ExactGelu(Operators):
    """GELU where the text encoder was trained with x σ(1.702 x)."""

    name = "mutant-exact-gelu"
    roles = ("text",)

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        # The sigmoid such that x times it is the exact GELU of x.
        return {torch.sigmoid: lambda x: torch.special.ndtr(x / 1.702)}


class HalfAttention(Operators):
    """Attention in float16 inside a float32 graph."""

    name = "mutant-half-attention"

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        def attention(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
            halves = query.half(), key.half(), value.half()
            return F.scaled_dot_product_attention(*halves, **settings).to(query.dtype)

        return {F.scaled_dot_product_attention: attention}


class BilinearUpsampling(Operators):
    """Interpolates where the model repeats pixels."""

    name = "mutant-bilinear-upsampling"
    roles = ("decoder",)

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        def interpolate(x: Tensor, *rest: Any, **settings: Any) -> Tensor:
            return F.interpolate(x, *rest, **{**settings, "mode": "bilinear"})

        return {F.interpolate: interpolate}


class PaddingSide(Operators):
    """Pads the encoder's pictures at the left and at the top, where it is right and bottom."""

    name = "mutant-padding-side"
    roles = ("encoder",)

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        def pad(x: Tensor, sides: tuple[int, ...], *rest: Any, **settings: Any) -> Tensor:
            left, right, top, bottom = sides
            return F.pad(x, (right, left, bottom, top), *rest, **settings)

        return {F.pad: pad}


class NoCausalMask(Operators):
    """Lets every token of the text see the ones after it."""

    name = "mutant-no-causal-mask"
    roles = ("text",)

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        def attention(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
            free = {**settings, "attn_mask": None, "is_causal": False}
            return F.scaled_dot_product_attention(query, key, value, **free)

        return {F.scaled_dot_product_attention: attention}


class PaddingPositions(Operators):
    """Gives all padding the position of the text's end."""

    name = "mutant-padding-positions"
    roles = ("text",)

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        ends = torch.from_numpy(end_of(inputs["input_ids"]))[:, None]

        def embedding(ids: Tensor, weight: Tensor, *rest: Any, **settings: Any) -> Tensor:
            # Positions are 0, 1, 2, …, once for the whole batch; tokens are not.
            positions = len(ids) == 1 and bool((ids[0].diff() == 1).all())
            ids = ids.minimum(ends) if positions else ids
            return F.embedding(ids, weight, *rest, **settings)

        return {F.embedding: embedding}


class Tf32(Operators):
    """Convolutions and products with ten bits of mantissa: TensorFloat-32, which passes for float32."""

    name = "mutant-tf32"
    roles = _EVERY

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        return {op: _narrow(op, _ten_bits, both=True) for op in (F.linear, F.conv2d)}


class Int8Weights(Operators):
    """Weights of eight bits, a scale for each output channel."""

    name = "mutant-int8-weights"
    roles = _EVERY

    def replaced(self, inputs: Arrays) -> Mapping[Operator, Operator]:
        return {op: _narrow(op, _eight_bits, both=False) for op in (F.linear, F.conv2d)}


def _narrow(op: Operator, rounded: Callable[[Tensor], Tensor], *, both: bool) -> Operator:
    """A product with rounded weights, and with its input rounded as well."""

    def narrow(x: Tensor, weight: Tensor, *rest: Any, **settings: Any) -> Any:
        if weight.dtype == torch.float32:
            x, weight = rounded(x) if both else x, rounded(weight)
        return op(x, weight, *rest, **settings)

    return narrow


def _ten_bits(x: Tensor) -> Tensor:
    """Float32 rounded to the nearest of ten bits of mantissa."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _eight_bits(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / 127
    return (weight / scale).round() * scale
