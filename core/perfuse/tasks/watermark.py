"""Stable Diffusion XL's invisible watermark, where its library is installed.

The library is invisible-watermark, and the bits are those of Stability AI's own demonstration, which
a detector of theirs knows.
"""

import importlib.util
from typing import Any

import numpy as np

from perfuse.arrays import shown, to_numpy
from perfuse.contract.spec import Array
from perfuse.contract.steps import State, Tools, step
from perfuse.errors import InputError

__all__ = ["watermark"]

_LIBRARY = "imwatermark"
_BITS = [int(bit) for bit in f"{0b101100111110110010010000011110111011000110011110:b}"]
#: Where the caller made ``pipe.watermark`` nothing of his own.
_OURS: Any = object()
#: The library marks no smaller picture.
_SMALLEST = 256


@step(outputs=("decoded",))
def watermark(tools: Tools, decoded: Array, output_type: str) -> State:
    """Mark pictures [B, 3, H, W], unless ``add_watermarker`` is off or the library is missing.

    What the caller made ``pipe.watermark`` goes first, as in Diffusers: ``None``, or an object with
    ``apply_watermark(pictures)``, which takes and returns a torch tensor where torch is in use.

    Raises:
        InputError: ``add_watermarker`` is on, and the library is missing.
    """
    own = getattr(tools, "watermark", _OURS)
    if own is not _OURS and output_type != "latent":
        return {"decoded": decoded if own is None else own.apply_watermark(shown(decoded))}
    asked = tools.spec.options.get("add_watermarker")
    there = importlib.util.find_spec(_LIBRARY) is not None
    if asked and not there:
        raise InputError(
            "add_watermarker=True was given; the library invisible-watermark is missing. "
            "Run: pip install invisible-watermark"
        )
    wanted = there if asked is None else bool(asked)
    if not wanted or output_type == "latent" or decoded.shape[-1] < _SMALLEST:
        return {"decoded": decoded}
    from imwatermark import WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", _BITS)
    bytes_ = (255 * (to_numpy(decoded) / 2 + 0.5)).transpose(0, 2, 3, 1)
    # The library works on blue, green, red.
    marked = [encoder.encode(picture[:, :, ::-1], "dwtDct")[:, :, ::-1] for picture in bytes_]
    unit = np.asarray(marked).transpose(0, 3, 1, 2) / 255
    return {"decoded": np.clip(2 * (unit - 0.5), -1, 1).astype(np.float32)}
