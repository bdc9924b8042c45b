"""The hardware-neutral description of a pipeline: plain data, no weights, no engine."""

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.latents import LatentSpec, PixelLatents
from perfuse.contract.spec import (
    Array,
    ComponentSpec,
    Dim,
    PipelineSpec,
    Role,
    Signature,
    TensorSpec,
)

__all__ = [
    "Array",
    "ComponentSpec",
    "Dim",
    "FrozenDict",
    "LatentSpec",
    "PipelineSpec",
    "PixelLatents",
    "Role",
    "Signature",
    "TensorSpec",
]
