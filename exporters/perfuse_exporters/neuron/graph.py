"""The graph that the Neuron compiler is given: the component's, in operators that it documents.

Three operators of ours would reach it in a form that no page of its documentation names, or that is
less exact than it need be; each has a plain one with the same result.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from perfuse.backend import Component
from perfuse.spec import Signature
from perfuse_exporters.neuron.layout import input_names, treated_as

__all__ = ["Traced", "attention", "core_graph", "first_largest", "nearest"]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` [..., N, D] as two products and a softmax.

    PyTorch's own looks for rows without a key, by a logical reduction that the compiler does not
    document. No row of our models is without one.

    Raises:
        NotImplementedError: dropout or shared heads, which no model of ours has.
    """
    if dropout_p != 0.0 or enable_gqa:
        raise NotImplementedError("attention with dropout or shared heads")
    # Before the product and not after it: see ``_attention`` in StableHLO's operators.
    scaled = query * (scale if scale is not None else query.shape[-1] ** -0.5)
    scores = scaled @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # A large negative number, because the compiler can turn minus infinity into NaN.
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1) @ value


def first_largest(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """``argmax``: the first place of the largest value, by one maximum and one minimum.

    torch-xla's reduces pairs with a comparison of its own; the compiler documents reductions by
    minimum, maximum, sum and product.
    """
    if dim is None:
        x, dim = x.flatten(), 0
    size = x.shape[dim]
    shape = [1] * x.ndim
    shape[dim] = size
    places = torch.arange(size, dtype=torch.int32, device=x.device).view(shape)
    first = torch.where(x == x.amax(dim, keepdim=True), places, size).amin(dim, keepdim=keepdim)
    return first.to(torch.int64)


def nearest(x: Tensor, size: Any) -> Tensor:
    """Nearest-neighbour upsampling of [B, C, H, W] by whole numbers, as copies.

    torch-xla multiplies with a matrix of ones and zeros (``resize_ops.cpp``), which rounds every
    value where products are cast to a shorter type.
    """
    batch, channels, height, width = x.shape
    down, across = int(size[0]) // height, int(size[1]) // width
    copies = x[:, :, :, None, :, None].expand(batch, channels, height, down, width, across)
    return copies.reshape(batch, channels, height * down, width * across)


def _whole(x: Tensor, size: Any) -> bool:
    """Whether a size is known, and a whole multiple of the picture's."""
    return size is not None and all(
        isinstance(wanted, int) and isinstance(have, int) and wanted % have == 0
        for wanted, have in zip(size, x.shape[-2:], strict=True)
    )


class _Plain(TorchFunctionMode):
    """Replaces the three operators wherever a module calls them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func in (torch.argmax, Tensor.argmax):
            return first_largest(*args, **kwargs)
        if func is F.interpolate and kwargs.get("mode", "nearest") == "nearest":
            x, size = args[0], kwargs.get("size", args[1] if len(args) > 1 else None)
            if x.ndim == 4 and _whole(x, size):
                return nearest(x, size)
        return func(*args, **kwargs)


class Traced(nn.Module):
    """A component as optimum-neuron traces it: inputs by position, outputs in its structure.

    A text encoder returns ``(last_hidden_state, pooler_output, hidden_states)`` or
    ``(text_embeds, last_hidden_state, hidden_states)``, of the hidden states the last two, which
    is all that Diffusers' pipelines read; an autoencoder's half returns a dict of one; a denoiser a
    tuple of one.
    """

    def __init__(self, module: nn.Module, component: Component) -> None:
        super().__init__()
        self.module = module
        order = input_names(component.spec)
        self._positions = [order.index(name) for name in component.spec.signature.input_names]
        self._signature: Signature = component.spec.signature
        self._as_dict = treated_as(component.spec.class_name) == "autoencoder"

    def forward(self, *inputs: Tensor) -> Any:
        with _Plain():
            outputs = self.module(*(inputs[position] for position in self._positions))
        names = self._signature.output_names
        if self._as_dict:
            return dict(zip(names, outputs, strict=True))
        if "penultimate_hidden_state" in names:
            last, penultimate, *unnormed, pooled = outputs
            first = (pooled, last) if names[-1] == "text_embeds" else (last, pooled)
            return (*first, (penultimate, *(unnormed or [last])))
        return tuple(outputs)


def core_graph(program: ExportedProgram) -> ExportedProgram:
    """A captured graph in PyTorch's core operators, with the three replaced as in ``Traced``."""
    aten = torch.ops.aten

    def upsample(x: Tensor, output_size: Any, scale_factors: Any) -> Any:
        if output_size is None:
            output_size = [int(n * s) for n, s in zip(x.shape[-2:], scale_factors, strict=True)]
        return nearest(x, output_size) if _whole(x, output_size) else NotImplemented

    table: Any = torch.export.default_decompositions()
    table.update(
        {
            aten.scaled_dot_product_attention.default: attention,
            aten.argmax.default: first_largest,
            aten.upsample_nearest2d.vec: upsample,
        }
    )
    decomposed: ExportedProgram = program.run_decompositions(table)
    return decomposed
