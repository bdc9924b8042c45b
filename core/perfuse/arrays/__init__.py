"""Arrays, noise and pictures: numpy and torch alike, without importing torch."""

from perfuse.arrays.operations import (
    concatenate,
    is_torch,
    join_features,
    place,
    std,
    to_numpy,
    zeros_like,
)

__all__ = [
    "concatenate",
    "is_torch",
    "join_features",
    "place",
    "std",
    "to_numpy",
    "zeros_like",
]
