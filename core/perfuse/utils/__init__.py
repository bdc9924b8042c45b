"""Pictures and videos in and out of files, and a log, as ``diffusers.utils`` has them.

What else Diffusers has there is Diffusers'.
"""

from functools import partial

from perfuse import _diffusers
from perfuse.arrays.media import (
    export_to_gif,
    export_to_video,
    load_image,
    make_image_grid,
    numpy_to_pil,
    pt_to_pil,
)
from perfuse.utils import logging

__all__ = [
    "export_to_gif",
    "export_to_video",
    "load_image",
    "logging",
    "make_image_grid",
    "numpy_to_pil",
    "pt_to_pil",
]

__getattr__ = partial(_diffusers.borrowed, __name__)
