"""The contract between the host and a backend or an exporter."""

from perfuse.contract.backend import (
    PRECISIONS,
    Array,
    Backend,
    Component,
    Device,
    ExecutionReport,
    Exporter,
    Options,
    Placement,
    Program,
    Request,
    Support,
    SupportLevel,
    Target,
    read_options,
)

__all__ = [
    "PRECISIONS",
    "Array",
    "Backend",
    "Component",
    "Device",
    "ExecutionReport",
    "Exporter",
    "Options",
    "Placement",
    "Program",
    "Request",
    "Support",
    "SupportLevel",
    "Target",
    "read_options",
]
