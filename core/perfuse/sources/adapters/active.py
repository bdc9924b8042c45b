"""Adapters in use: which, in which order, and how much each counts."""

import hashlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfuse.contract.changes import Changes
from perfuse.contract.frozen import FrozenDict
from perfuse.sources.adapters.reading import Adapter

__all__ = ["Active", "Strength", "Use"]

#: How much an adapter counts: a number, or one for each attention by its place in the model,
#: ``{"down_blocks.1.attentions.0": 0.5}``, and 1 elsewhere.
Strength = float | Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Use:
    """An adapter, and how much it counts."""

    adapter: Adapter
    strength: Strength = 1.0
    #: How much all of it counts, on top.
    scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.strength, Mapping):
            object.__setattr__(self, "strength", FrozenDict(self.strength))

    def on(self, name: str) -> float:
        """How much it counts for a weight."""
        if not isinstance(self.strength, Mapping):
            return self.strength * self.scale
        for place, strength in self.strength.items():
            if f"{place}." in name:
                return strength * self.scale
        # As in Diffusers, what is beside an attention counts as much as that: a residual block.
        parts = name.split(".")
        beside = f"{parts[0]}.{parts[1]}.attentions.{parts[3]}" if len(parts) > 3 else ""
        return self.strength.get(beside, 1.0) * self.scale


@dataclass(frozen=True, kw_only=True)
class Active(Changes):
    """The adapters in use in one part of a pipeline, in their order."""

    part: str
    uses: tuple[Use, ...]

    @property
    def fingerprint(self) -> str:
        said = [(one.adapter.fingerprint, one.strength, one.scale) for one in self.uses]
        return hashlib.sha256(repr((self.part, said)).encode()).hexdigest()

    @property
    def names(self) -> AbstractSet[str]:
        return {name for use in self.uses for name in use.adapter.deltas.get(self.part, {})}

    def of(self, name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        changed = weight
        for use in self.uses:
            delta = use.adapter.deltas.get(self.part, {}).get(name)
            if delta is not None:
                changed = delta.applied(changed, weight, use.on(name))
        return changed

    def factors(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        found = [
            delta.factors(use.on(name))
            for use in self.uses
            if (delta := use.adapter.deltas.get(self.part, {}).get(name)) is not None
        ]
        known = [one for one in found if one is not None]
        if len(known) < len(found) or not known:
            return None
        downs, ups = zip(*known, strict=True)
        return np.concatenate(downs), np.concatenate(ups, axis=1)
