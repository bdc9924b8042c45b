"""Arrays, noise and pictures: numpy and torch alike, without importing torch."""

from typing import TYPE_CHECKING

from perfuse._lazy import lazy

if TYPE_CHECKING:
    from perfuse.arrays.noise import NoiseSource as NoiseSource
    from perfuse.arrays.noise import noise_for as noise_for
    from perfuse.arrays.operations import concatenate as concatenate
    from perfuse.arrays.operations import dot as dot
    from perfuse.arrays.operations import is_torch as is_torch
    from perfuse.arrays.operations import join_features as join_features
    from perfuse.arrays.operations import place as place
    from perfuse.arrays.operations import shown as shown
    from perfuse.arrays.operations import std as std
    from perfuse.arrays.operations import to_numpy as to_numpy
    from perfuse.arrays.operations import zeros as zeros
    from perfuse.arrays.operations import zeros_like as zeros_like
    from perfuse.arrays.pictures import open_picture as open_picture
    from perfuse.arrays.pictures import save_png as save_png

__getattr__, __dir__ = lazy(
    __name__,
    {
        "operations": (
            "concatenate",
            "dot",
            "is_torch",
            "join_features",
            "place",
            "shown",
            "std",
            "to_numpy",
            "zeros",
            "zeros_like",
        ),
        "pictures": (
            "open_picture",
            "save_png",
        ),
        "noise": (
            "NoiseSource",
            "noise_for",
        ),
    },
)
