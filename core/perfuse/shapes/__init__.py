"""The bundled model: a small text-to-image model that draws what a small grammar says.

`CHECKPOINT` is a folder in the layout of Stable Diffusion; `grammar` is the language, `checker` tells
whether a picture shows what a caption says, `train` and `evaluate` are commands.
"""

from pathlib import Path

__all__ = ["CHECKPOINT"]

CHECKPOINT: Path = Path(__file__).parent / "checkpoint"
"""The bundled checkpoint."""
