"""Sliced attention: computes slices of the queries in turn, for the same result in less memory."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["SlicedAttention"]


class SlicedAttention(TorchFunctionMode):
    """While it is entered, ``scaled_dot_product_attention`` is computed in slices.

    A row of the scores needs every key and its own query alone, so that slices of the queries need
    nothing of each other (Rabe and Staats 2021, https://arxiv.org/abs/2112.05682). A causal mask
    goes by the place of a query among all, so causal attention, which is a text's, stays whole.
    """

    def __init__(self, *, slices: int, most: int | None = None) -> None:
        """The least number of slices, and the most scores at once: more slices where it is more."""
        super().__init__()
        self._slices = slices
        self._most = most

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and not given.get("is_causal"):
            return self._attend(*args, **given)
        return func(*args, **given)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **rest: Any,
    ) -> Tensor:
        def attend(part: Tensor, mask: Tensor | None) -> Tensor:
            return F.scaled_dot_product_attention(
                part, key, value, mask, dropout_p, is_causal, **rest
            )

        rows = query.shape[-2]
        size = ceil(rows / self._slices)
        if self._most is not None:
            size = min(size, self._most // (query.shape[:-2].numel() * key.shape[-2]))
        if size >= rows or is_causal:
            return attend(query, attn_mask)
        size = max(size, 1)
        parts = torch.split(query, size, dim=-2)
        masks: tuple[Tensor | None, ...] = (attn_mask,) * len(parts)
        if attn_mask is not None and attn_mask.shape[-2] != 1:
            masks = torch.split(attn_mask, size, dim=-2)
        return torch.cat(list(map(attend, parts, masks)), dim=-2)
