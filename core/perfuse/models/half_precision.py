"""What networks do where they are computed in half precision."""

import torch
from torch import Tensor

__all__ = ["in_range"]


def in_range(hidden: Tensor) -> Tensor:
    """Within what float16 holds, where it is computed in that."""
    return hidden.clamp(-65504, 65504) if hidden.dtype == torch.float16 else hidden
