"""How much memory a pipeline's weights take, and what is kept of them at a time.

Sizes are of the weights alone. What an engine needs besides, for what lies between layers above all,
depends on the engine and the size of a picture, and comes on top.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfuse.contract.component import Component
from perfuse.contract.source import Source
from perfuse.contract.spec import ComponentSpec, Role
from perfuse.errors import InputError
from perfuse.sources.checkpoint import FromCheckpoint

__all__ = ["Residency", "read_bytes", "residency"]

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{unit}B": 1000**i for i, unit in enumerate("KMGT", 1)}
_UNITS |= {f"{unit}IB": 1024**i for i, unit in enumerate("KMGT", 1)}
#: Roles whose components run in turns within one step; they are kept prepared together.
_TOGETHER = (Role.DENOISER, Role.CONTROL)
#: Of the memory that is free, what ``"auto"`` leaves to all that is not weights.
_LEFT = 0.4
LOW, AUTO = "low", "auto"


@dataclass(frozen=True, kw_only=True)
class Residency:
    """Which components are in memory together, and how large their weights are."""

    #: Component to the bytes of its weights, in the precision that it runs in.
    sizes: Mapping[str, int]
    #: The components that have to be there at one time, in the order of a draw.
    stages: tuple[tuple[str, ...], ...]

    @property
    def whole(self) -> int:
        """Bytes with everything in memory."""
        return sum(self.sizes.values())

    @property
    def least(self) -> int:
        """Bytes that the largest stage needs."""
        return max((self.of(stage) for stage in self.stages), default=0)

    def of(self, names: Sequence[str]) -> int:
        """Bytes of some components."""
        return sum(self.sizes.get(name, 0) for name in names)

    def budget(self, memory: "int | str") -> int:
        """The bytes that weights may take.

        Args:
            memory: As ``"6GB"`` or a number of bytes; ``"low"`` for the least; ``"auto"`` for a part
                of what is free now, and the least where that is not known or is less.

        Raises:
            InputError: it is less than the least that would do, or no amount of memory.
        """
        if memory in (LOW, AUTO):
            free = _free() if memory == AUTO else 0
            return max(self.least, int(free * (1 - _LEFT)))
        asked = read_bytes(memory) if isinstance(memory, str) else memory
        if asked < self.least:
            largest = max(self.stages, key=self.of)
            raise InputError(
                f"Memory {memory} was given; the weights of {' and '.join(largest)} alone take "
                f"{self.least / 1e9:.2f} GB, which is the least that would do. Give that much, or store "
                "them in fewer bits: --precision float16, --transform storage:scheme=float8_e4m3fn."
            )
        return asked

    def released(self, held: Sequence[str], wanted: str, budget: int) -> list[str]:
        """What to release before a component is prepared, of those held, the oldest first."""
        together = next((stage for stage in self.stages if wanted in stage), (wanted,))
        taken, gone = self.of([*held, wanted]), list[str]()
        for name in held:
            if taken > budget and name not in together:
                gone.append(name)
                taken -= self.of([name])
        return gone


def residency(source: Source, components: Mapping[str, Component]) -> Residency:
    """What the components of a source take. Reads headers, no weights."""
    stored = source.weight_bytes()
    sizes = {name: _size(one, stored) for name, one in components.items()}
    stages: dict[str, list[str]] = {}
    for spec in sorted((one.spec for one in components.values()), key=_turn):
        stages.setdefault("loop" if spec.role in _TOGETHER else spec.name, []).append(spec.name)
    return Residency(sizes=sizes, stages=tuple(map(tuple, stages.values())))


def _turn(spec: ComponentSpec) -> int:
    """When a component runs in a draw."""
    if spec.role in _TOGETHER:
        return 1
    return 2 if spec.role in (Role.LATENT_DECODER, Role.SAFETY_CHECKER) else 0


def _size(component: Component, stored: Mapping[str, int]) -> int:
    """Bytes of a component's weights; both halves of an autoencoder count as the whole."""
    build: Any = component.build
    while build is not None and not isinstance(build, FromCheckpoint):
        build = getattr(build, "before", None)
    if build is not None:
        return int(build.weights.parameters * (4 if component.precision == "float32" else 2))
    spec = component.spec
    return stored.get(spec.name, stored.get(spec.folder, 0))


def read_bytes(text: str) -> int:
    """Read a number of bytes: ``"8GB"`` or ``"512 MiB"``.

    Raises:
        InputError: the text is not a number and a unit.
    """
    number = text.strip().rstrip("BIKMGTbikmgt ")
    unit = text.strip()[len(number) :].strip().upper()
    if not number.replace(".", "", 1).isdecimal() or unit not in _UNITS:
        raise InputError(f"Memory {text!r} was given; write a number and a unit: 8GB, 512MiB.")
    return int(float(number) * _UNITS[unit])


def _free() -> int:
    """Bytes of memory that are free now; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
