"""The contract between the host and a backend or an exporter."""

from perfuse.contract.backend import (
    Backend,
    ExecutionReport,
    Program,
    Request,
    Support,
    SupportLevel,
)
from perfuse.contract.changes import Changes, plain_name
from perfuse.contract.component import Component, Recipe
from perfuse.contract.exporter import Exporter
from perfuse.contract.limits import Limits
from perfuse.contract.options import Options, read_options
from perfuse.contract.pieces import InPieces, Node, Piece, Turns, Windowed, cut, most_of, windows
from perfuse.contract.quantized import (
    SCHEMES,
    Blocks,
    Calibration,
    Quantized,
    Scheme,
    packed,
    quantized,
)
from perfuse.contract.spec import Array
from perfuse.contract.target import PRECISIONS, Device, Placement, Target
from perfuse.contract.weights import Change, Constant, Reader, StoredTensor, WeightMap

__all__ = [
    "PRECISIONS",
    "SCHEMES",
    "Array",
    "Backend",
    "Blocks",
    "Calibration",
    "Change",
    "Changes",
    "Component",
    "Constant",
    "Device",
    "ExecutionReport",
    "Exporter",
    "InPieces",
    "Limits",
    "Node",
    "Options",
    "Piece",
    "Placement",
    "Program",
    "Quantized",
    "Reader",
    "Recipe",
    "Request",
    "Scheme",
    "StoredTensor",
    "Support",
    "SupportLevel",
    "Target",
    "Turns",
    "WeightMap",
    "Windowed",
    "cut",
    "most_of",
    "packed",
    "plain_name",
    "quantized",
    "read_options",
    "windows",
]
