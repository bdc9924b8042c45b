"""Operators written in terms that XNNPACK has kernels for.

ExecuTorch would run them on its portable kernels, which are one thread's plain loops. Those of the
group normalisation add a whole group in one float32 sum, so that their error grows with the
picture: 5e-4 of the largest value at 512 x 512 pixels. Attention would be wrapped in a search for
rows that a mask leaves empty, each of its steps as large as the scores. GELU by tanh would become
the exact one: ExecuTorch 1.4 gives XNNPACK no ``approximate``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["decompositions"]


def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """For each operator, a function with its arguments; ``NotImplemented`` leaves it as it is."""
    aten = torch.ops.aten
    return {
        aten.gelu.default: _gelu,
        aten.group_norm.default: _group_norm,
        aten.scaled_dot_product_attention.default: _attention,
    }


def _gelu(sample: Tensor, *, approximate: str = "none") -> Any:
    """Hendrycks and Gimpel 2016, section 2: where it is the one by tanh."""
    if approximate != "tanh":
        return NotImplemented
    inner = math.sqrt(2 / math.pi) * (sample + 0.044715 * (sample * sample * sample))
    return 0.5 * sample * (1.0 + torch.tanh(inner))


def _group_norm(
    sample: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Wu and He 2018, eq. 1, with two passes: the variance is the mean of squared deviations."""
    if sample.ndim < 3:
        return NotImplemented
    batch, channels = sample.shape[:2]
    # The statistics are float32 in every precision, as in PyTorch.
    rows = sample.float().reshape(batch * groups, -1, sample.shape[-1], 1)
    deviation = rows - _mean(rows)
    variance = _mean(deviation * deviation)
    normal = (deviation * torch.rsqrt(variance + eps)).reshape(sample.shape).to(sample.dtype)
    per_channel = (1, channels, *(1 for _ in sample.shape[2:]))
    if weight is not None:
        normal = normal * weight.reshape(per_channel)
    return normal + bias.reshape(per_channel) if bias is not None else normal


def _mean(rows: Tensor) -> Tensor:
    """[N, R, K, 1] to [N, 1, 1, 1]: of each row, then of the rows. Short sums round little."""
    # XNNPACK takes means over the last two of four axes alone.
    means = rows.mean((-2, -1), keepdim=True)
    return means.reshape(rows.shape[0], 1, -1, 1).mean((-2, -1), keepdim=True)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Vaswani et al. 2017, eq. 1, of [B, H, N, D]: where no mask can leave a row without weights."""
    if attn_mask is not None or is_causal or enable_gqa or query.ndim != 4:
        return NotImplemented
    scale = scale if scale is not None else query.shape[-1] ** -0.5
    scores = torch.bmm((query * scale).flatten(0, 1), key.transpose(2, 3).flatten(0, 1))
    attended = torch.bmm(torch.softmax(scores, -1), value.flatten(0, 1))
    return attended.reshape(*query.shape[:3], value.shape[-1])
