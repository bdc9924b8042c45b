"""Captures a component once, as a ``torch.export.ExportedProgram``; every exporter starts here."""

from perfuse_exporters.capture.graphs import (
    build,
    capture,
    cast,
    dynamic_shapes,
    example_inputs,
    replace_tensors,
    trace,
)
from perfuse_exporters.capture.operators import refused

__all__ = [
    "build",
    "capture",
    "cast",
    "dynamic_shapes",
    "example_inputs",
    "refused",
    "replace_tensors",
    "trace",
]
