"""How much memory a pipeline's weights take, and what is kept of them at a time.

Sizes are of the weights alone. What an engine needs besides, for what lies between layers above all,
depends on the engine and the size of a picture, and comes on top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfuse.contract.component import Component
from perfuse.contract.quantized import SCHEMES
from perfuse.contract.source import Source
from perfuse.contract.spec import ComponentSpec, Role
from perfuse.errors import InputError
from perfuse.memory import most_memory, read_size
from perfuse.sources.checkpoint import FromCheckpoint

__all__ = ["Residency", "residency"]

#: Roles whose components run in turns within one step; they are kept prepared together.
_TOGETHER = (Role.DENOISER, Role.CONTROL)
#: Of the memory that there is, what ``"auto"`` gives to weights.
_SHARE = 0.6
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
            memory: As ``"6GB"`` or a number of bytes; ``"low"`` for the least; ``"auto"`` for six
                tenths of what the machine has, and the least where that is not known or is less.

        Raises:
            InputError: it is less than the least that would do, or no amount of memory.
        """
        if memory in (LOW, AUTO):
            most = (most_memory() or 0) if memory == AUTO else 0
            return max(self.least, int(most * _SHARE))
        asked = read_size(memory) if isinstance(memory, str) else memory
        if asked < self.least:
            largest = max(self.stages, key=self.of)
            raise InputError(
                f"Memory {memory} was given; the weights of {' and '.join(largest)} alone take "
                f"{self.least / 1e9:.2f} GB, which is the least that would do. Give that much, or store "
                "them in fewer bits: --precision float16, --precision int8."
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
        scheme = SCHEMES.get(component.storage)
        each = 4 if component.precision == "float32" else 2
        return int(build.weights.parameters * (each if scheme is None else scheme.bits / 8))
    spec = component.spec
    return stored.get(spec.name, stored.get(spec.folder, 0))
