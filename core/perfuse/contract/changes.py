"""What active adapters make of a component's weights."""

from abc import ABC, abstractmethod
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Changes", "plain_name"]

#: What flat modules call the model inside them, also where one wraps another.
_WRAPPERS = ("inner", "model")


class Changes(ABC):
    """What active adapters make of a component's weights. Subclasses are plain data.

    Whoever loads a component's weights asks for each of ``names`` what it is now. The answer is always
    made of the weight as the checkpoint has it, so that nothing adds up from one change to the next.
    """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the adapters' content and how much each counts."""

    @property
    @abstractmethod
    def names(self) -> AbstractSet[str]:
        """The weights that change, by the names in the model's state dict."""

    @abstractmethod
    def of(self, name: str, weight: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """A weight with the adapters in it, a new array of the same shape."""

    def factors(self, name: str) -> "tuple[NDArray[np.float32], NDArray[np.float32]] | None":
        """``A`` [r, in, …] and ``B`` [out, r]: what is added to a weight is ``B A``.

        ``None`` where it is no product of low rank. A convolution's kernel is in ``A``.
        """
        return None


def plain_name(name: str) -> str:
    """A tensor's name in its model's state dict, of its name in a component's flat module."""
    head, _, rest = name.partition(".")
    return plain_name(rest) if head in _WRAPPERS else name
