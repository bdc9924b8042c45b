"""The bundled models: small text-to-image models that draw what a small grammar says.

`BUNDLED` has their folders, in the layouts of Stable Diffusion and of Z-Image; `grammar` is the language,
`checker` tells whether a picture shows what a caption says, `train`, `train_flow` and `evaluate` are
commands.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["BUNDLED", "CHECKPOINT", "FLOW", "Bundled", "bundled_name"]

CHECKPOINT: Path = Path(__file__).parent / "checkpoint"
"""The folder of `shapes`, a Stable Diffusion."""

FLOW: Path = Path(__file__).parent / "flow"
"""The folder of `shapes-flow`, a Z-Image."""


@dataclass(frozen=True, kw_only=True)
class Bundled:
    """A bundled model, and how it is drawn with where its pictures are judged."""

    folder: Path
    denoiser: str
    """The denoiser's folder in it."""
    steps: int
    guidance: float
    """The guidance scale."""

    def call(self, steps: int | None = None, guidance: float | None = None) -> dict[str, Any]:
        """The arguments of a pipeline's call, with other steps or another scale if they are given."""
        return {
            "num_inference_steps": self.steps if steps is None else steps,
            "guidance_scale": self.guidance if guidance is None else guidance,
        }


BUNDLED: Mapping[str, Bundled] = MappingProxyType(
    {
        "shapes": Bundled(folder=CHECKPOINT, denoiser="unet", steps=20, guidance=3.0),
        "shapes-flow": Bundled(folder=FLOW, denoiser="transformer", steps=12, guidance=3.0),
    }
)
"""By their names, which `--model` and `from_pretrained` take; `shapes` is what they take without one."""


def bundled_name(model: str | os.PathLike[str] | None) -> str | None:
    """The name of the bundled model that is asked for, by its name or its folder; `None` for others.

    A folder of the user's that has such a name is the user's.
    """
    if model is None:
        return "shapes"
    asked = os.fspath(model)
    if asked in BUNDLED and not os.path.exists(asked):
        return asked
    folders = {str(one.folder): name for name, one in BUNDLED.items()}
    return folders.get(asked)
