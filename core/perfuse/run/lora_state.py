"""The adapters of a pipeline as plain data: which are loaded, which count, which are fused.

Each change gives another state, with the semantics of Diffusers and PEFT.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perfuse.contract.frozen import FrozenDict
from perfuse.errors import InputError
from perfuse.sources.adapters import Active, Adapter, Strength, Use

__all__ = ["Loras", "finite"]

Names = tuple[str, ...]

#: The fields that are by part.
_BY_PART = ("uses", "active", "fused", "kept")


@dataclass(frozen=True, kw_only=True)
class Loras:
    """The adapters of a pipeline. Everything is by part: ``"unet"``, ``"text_encoder"``."""

    #: Every adapter that is loaded, by name, and how much it counts where it is active.
    uses: Mapping[str, Mapping[str, Use]] = field(default_factory=FrozenDict)
    #: The names of those that count, in their order.
    active: Mapping[str, Names] = field(default_factory=FrozenDict)
    #: Those that were fused, with how much they counted then.
    fused: Mapping[str, Mapping[str, Use]] = field(default_factory=FrozenDict)
    #: Those that were fused and are no longer loaded: they stay.
    kept: Mapping[str, tuple[Use, ...]] = field(default_factory=FrozenDict)
    enabled: bool = True
    #: The parts that are disabled for themselves.
    disabled: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in _BY_PART:
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    def of(self, part: str) -> "Loras":
        """The adapters of one part."""
        own = {name: getattr(self, name) for name in _BY_PART}
        own = {name: {part: known[part]} if part in known else {} for name, known in own.items()}
        return Loras(**own, enabled=self.enabled and part not in self.disabled)

    def with_part(self, part: str, own: "Loras") -> "Loras":
        """With what ``of`` gave, changed, in its place."""
        changed: dict[str, Any] = {}
        for name in _BY_PART:
            others = {one: known for one, known in getattr(self, name).items() if one != part}
            changed[name] = {**others, **getattr(own, name)}
        off = (self.disabled if self.enabled else frozenset(self.uses)) - {part}
        return Loras(
            **changed,
            enabled=self.enabled or own.enabled,
            disabled=off if own.enabled else off | {part},
        )

    @property
    def names(self) -> Names:
        """The adapters that are loaded."""
        return tuple(dict.fromkeys(name for part in self.uses.values() for name in part))

    @property
    def active_names(self) -> Names:
        return tuple(dict.fromkeys(name for names in self.active.values() for name in names))

    @property
    def fused_names(self) -> Names:
        return tuple(dict.fromkeys(name for part in self.fused.values() for name in part))

    def changes(self, part: str, factor: float = 1.0) -> Active | None:
        """What counts in a part; ``None`` if nothing does.

        Args:
            part: The part.
            factor: How much the adapters that are not fused count in this call.
        """
        fused = self.fused.get(part, {})
        uses = [*self.kept.get(part, ()), *fused.values()]
        if self.enabled and part not in self.disabled:
            loaded = self.uses.get(part, {})
            uses += [
                dataclasses.replace(loaded[name], scale=loaded[name].scale * factor)
                for name in self.active.get(part, ())
                if name not in fused
            ]
        return Active(part=part, uses=tuple(uses)) if uses else None

    def fused_changes(self, part: str) -> Active | None:
        """What is fused into a part: the weights that are saved have it."""
        return dataclasses.replace(self, active={}).changes(part)

    def with_loaded(self, adapter: Adapter) -> "Loras":
        """With one more, or another of the same name; it alone counts in the parts that it changes."""
        uses, active = dict(self.uses), dict(self.active)
        for part in adapter.deltas:
            uses[part] = {**uses.get(part, {}), adapter.name: Use(adapter=adapter)}
            active[part] = (adapter.name,)
        return dataclasses.replace(self, uses=uses, active=active)

    def with_active(self, names: Names, strengths: Mapping[str, Sequence[Strength]]) -> "Loras":
        """With these adapters active, and how much each counts, by part."""
        uses, active = dict(self.uses), dict(self.active)
        for part, loaded in self.uses.items():
            chosen = {
                name: Use(adapter=loaded[name].adapter, strength=strength)
                for name, strength in zip(names, strengths[part], strict=True)
                if name in loaded
            }
            uses[part], active[part] = {**loaded, **chosen}, tuple(chosen)
        return dataclasses.replace(self, uses=uses, active=active)

    def with_fused(self, parts: Sequence[str], factor: float, names: Names | None) -> "Loras":
        """With the active adapters, or those of these names, fused into some parts.

        As in PEFT, the factor stays with those that are active.
        """
        uses, fused = dict(self.uses), dict(self.fused)
        for part in parts:
            active = self.active.get(part, ())
            scaled = {
                name: dataclasses.replace(use, scale=use.scale * factor) if name in active else use
                for name, use in self.uses.get(part, {}).items()
            }
            wanted = active if names is None else names
            new = {name: scaled[name] for name in wanted if name in scaled}
            uses[part], fused[part] = scaled, {**new, **self.fused.get(part, {})}
        return dataclasses.replace(self, uses=uses, fused=fused)

    def without_fused(self, parts: Sequence[str]) -> "Loras":
        """With nothing fused into some parts but what is no longer loaded."""
        fused = {part: uses for part, uses in self.fused.items() if part not in parts}
        return dataclasses.replace(self, fused=fused)

    def without(self, names: Sequence[str]) -> "Loras":
        """Without some adapters. What of them is fused stays."""
        uses = {
            part: {name: use for name, use in loaded.items() if name not in names}
            for part, loaded in self.uses.items()
        }
        active = {
            part: tuple(name for name in before if name not in names)
            for part, before in self.active.items()
        }
        for part, loaded in uses.items():
            if not active.get(part) and self.active.get(part):  # as in PEFT, the first that is left
                active[part] = tuple(loaded)[:1]
        fused = {
            part: {name: use for name, use in there.items() if name not in names}
            for part, there in self.fused.items()
        }
        kept = {
            part: (
                *self.kept.get(part, ()),
                *(use for name, use in self.fused.get(part, {}).items() if name in names),
            )
            for part in {*self.kept, *self.fused}
        }
        return dataclasses.replace(
            self,
            uses={part: loaded for part, loaded in uses.items() if loaded},
            active={part: there for part, there in active.items() if there},
            fused={part: there for part, there in fused.items() if there},
            kept={part: there for part, there in kept.items() if there},
        )

    def recorded(self, factor: float) -> tuple[dict[str, Any], ...]:
        """What counts, for a picture's metadata; ``weight`` is ``None`` where it is not one number.

        Args:
            factor: How much those that are not fused count.
        """
        found: dict[str, tuple[Adapter, set[Strength | None]]] = {}
        for part in {**self.uses, **self.kept}:
            changes = self.changes(part, factor)
            for use in changes.uses if changes is not None else ():
                number = None if isinstance(use.strength, Mapping) else use.strength * use.scale
                found.setdefault(use.adapter.name, (use.adapter, set()))[1].add(number)
        return tuple(
            {
                "name": adapter.name,
                "file": adapter.file,
                "fingerprint": adapter.fingerprint,
                "weight": numbers.pop() if len(numbers) == 1 else None,
            }
            for adapter, numbers in found.values()
        )

    def check(self, names: Sequence[str]) -> None:
        """Raise ``InputError`` unless these adapters are loaded, each named once."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise InputError(
                f"The adapters {', '.join(map(repr, unknown))} were named; loaded are "
                f"{', '.join(map(repr, self.names)) or 'none'}."
            )
        if len(set(names)) < len(names):
            raise InputError(f"An adapter was named twice among {', '.join(names)}. Name it once.")


def finite(value: Any, what: str) -> float:
    """A number that is finite.

    Raises:
        InputError: it is none; ``what`` begins the message.
    """
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value):
        raise InputError(f"{what} is {value!r}; a finite number was expected.")
    return float(value)
