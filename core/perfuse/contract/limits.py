"""What a device can take, as data: for a report on a target that need not be there."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from perfuse.contract.frozen import FrozenDict

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one kind of device of a backend can take, as data."""

    #: Each precision that it takes, with what it does instead; empty where it computes in it.
    precisions: Mapping[str, str]
    #: Precisions that only some of these devices have, and which.
    conditions: Mapping[str, str] = field(default_factory=FrozenDict)
    #: Dtypes that it has not, each with what perfuse does about it; empty where nothing helps.
    dtypes: Mapping[str, str] = field(default_factory=FrozenDict)
    #: Whether a program takes one size alone.
    fixed_sizes: bool = False
    #: The most axes that a tensor may have.
    max_rank: int | None = None
    #: The most elements that a tensor may have.
    max_elements: int | None = None
    #: Whether attention whose scores have more than that is computed in slices.
    slices_attention: bool = False
    #: The most pictures in one call; perfuse calls it for the rest in turn.
    pictures: int | None = None
    #: Bytes that weights may take; ``None`` where that differs from one device to the next.
    memory: int | None = None
    #: What else perfuse does there.
    notes: tuple[str, ...] = ()
    #: What only the device itself can tell.
    unknown: tuple[str, ...] = ()
    #: Where perfuse has been executed on it, as ``"x86-64, Linux"``; empty where nowhere.
    executed: str = ""
    #: Field to the document that says so.
    sources: Mapping[str, str] = field(default_factory=FrozenDict)
