"""The hardware-neutral description of a pipeline: plain data, no weights, no engine."""

from perfuse.contract.spec import (
    Array,
    ComponentSpec,
    LatentSpec,
    PipelineSpec,
    Signature,
    TensorSpec,
)

__all__ = [
    "Array",
    "ComponentSpec",
    "LatentSpec",
    "PipelineSpec",
    "Signature",
    "TensorSpec",
]
