"""Named combinations of transforms that leave work out, chosen by measurement for each denoiser."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from perfuse.contract.spec import PipelineSpec
from perfuse.errors import InputError

__all__ = ["PRESETS", "preset"]

#: From the one that loses least to the one that is fastest.
PRESETS = ("fast", "faster", "fastest")


def preset(name: str, spec: PipelineSpec) -> tuple[str, ...]:
    """The transforms of a preset, for the denoiser of a pipeline.

    ``presets.json`` beside this file has them, with the measurements that they were chosen by.

    Raises:
        InputError: there is no such preset, or none for this denoiser.
    """
    if name not in PRESETS:
        raise InputError(f"The preset {name!r} was asked for; there are {', '.join(PRESETS)}.")
    known = _measured()["presets"].get(spec.denoiser.class_name)
    if known is None:
        raise InputError(
            f"The preset {name!r} was asked for; none was measured for a {spec.denoiser.class_name} "
            "so far. Name transforms: --transform easycache, and measure them: perfuse bench."
        )
    return tuple(known[name])


@cache
def _measured() -> Mapping[str, Any]:
    text = files("perfuse.run").joinpath("presets.json").read_text(encoding="utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found
