"""The embedded guidance scale of a consistency model, and an open gate. Apart: an export needs this alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.contract.spec import ComponentSpec
from perfuse.models.unet_2d_condition.gate import open_gate

__all__ = ["guidance_embedding", "host_inputs"]


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Any]:
    """The embedded guidance scale of a latent consistency model, float32 [batch, W].

    Another model's ``timestep_cond`` is a condition, which its task gives. Where cross-attentions have a
    gate, it is open.
    """
    opened = open_gate(spec, sizes)
    condition = spec.signature.input("timestep_cond")
    if condition is None or spec.guidance != "embedded":
        return opened
    embedding = guidance_embedding(guidance if guidance is not None else 1.0, condition.shape[-1])
    return {**opened, "timestep_cond": np.repeat(embedding, sizes["batch"], axis=0)}


def guidance_embedding(scale: float, width: Any) -> Any:
    """Sinusoids of the guidance scale, float32 [1, width] (Meng et al. 2023, arXiv:2210.03142)."""
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -(np.log(10000.0) / (half - 1)))
    phase = np.float32((scale - 1) * 1000.0) * frequencies.astype(np.float32)[None]
    embedding = np.concatenate([np.sin(phase), np.cos(phase)], axis=1)
    return np.pad(embedding, ((0, 0), (0, width % 2))).astype(np.float32)
