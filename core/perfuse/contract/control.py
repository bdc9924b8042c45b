"""Controls: what gives the denoiser further inputs in the loop, such as a ControlNet's residuals."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perfuse.contract.guider import Branch, Moment

if TYPE_CHECKING:
    from perfuse.contract.steps import Tools

__all__ = ["Call", "Control"]

Array = Any


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of the denoiser that is about to be made, for one branch or for several in a batch."""

    moment: Moment
    #: The sample, scaled as the schedule says: [branches * pictures, C, h, w].
    sample: Array
    #: [branches * pictures].
    timesteps: Array
    #: The conditions, each [branches * pictures, …] if it has a batch axis.
    inputs: Mapping[str, Array]
    #: The branches, in the order of the batch.
    branches: tuple[Branch, ...]
    #: Of each branch.
    pictures: int


class Control(ABC):
    """Gives the denoiser further inputs; a step before the loop puts controls into ``controls``."""

    @abstractmethod
    def inputs(self, tools: "Tools", call: Call) -> Mapping[str, Array]:
        """Inputs of the denoiser for a call, each [branches * pictures, …]; empty for none.

        What several controls give under one name is summed. An input of the denoiser that a
        component of role ``Role.CONTROL`` could give and that no control gives is zero.
        """
