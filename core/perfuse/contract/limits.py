"""What a kind of device supports, as data: a report needs neither the device nor its engine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from perfuse.contract.frozen import FrozenDict

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one kind of device of a backend supports."""

    #: Each precision that it accepts, with what it computes in instead; empty text if in itself.
    precisions: Mapping[str, str]
    #: Precisions that only some of these devices have, and which.
    conditions: Mapping[str, str] = field(default_factory=FrozenDict)
    #: Dtypes that it lacks, each with what perfuse does about it; empty text if nothing helps.
    dtypes: Mapping[str, str] = field(default_factory=FrozenDict)
    #: Whether a program takes one size only.
    fixed_sizes: bool = False
    #: The most axes that a tensor may have.
    max_rank: int | None = None
    #: The most elements that a tensor may have.
    max_elements: int | None = None
    #: Whether attention with more scores than ``max_elements`` is computed in slices.
    slices_attention: bool = False
    #: The most pictures in one call; perfuse splits a larger batch.
    pictures: int | None = None
    #: Bytes that weights may take; ``None`` where it differs between devices of this kind.
    memory: int | None = None
    #: What else perfuse does on this kind of device.
    notes: tuple[str, ...] = ()
    #: What cannot be known without the device.
    unknown: tuple[str, ...] = ()
    #: Where perfuse has run on it: ``"x86-64, Linux"``; empty if nowhere yet.
    executed: str = ""
    #: Name of a field above to the document that it was taken from.
    sources: Mapping[str, str] = field(default_factory=FrozenDict)
