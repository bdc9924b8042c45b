"""How much memory a pipeline takes, and what is kept of it at a time.

Sizes are of weights, and of what an engine makes of them while they are loaded. A third of the memory
that is asked for is left to what lies between layers, or more where the architecture says that a picture
of the default size needs more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perfuse.contract.backend import Backend
from perfuse.contract.component import Component
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.quantized import SCHEMES
from perfuse.contract.source import Source
from perfuse.contract.spec import ComponentSpec, PipelineSpec, Role
from perfuse.contract.target import Target
from perfuse.errors import InputError
from perfuse.memory import most_memory, read_size
from perfuse.models.registry import held, read_by
from perfuse.sources.checkpoint import FromCheckpoint
from perfuse.sources.weight_maps import read_map

__all__ = ["Divisible", "Residency", "residency"]

#: Roles whose components run in turns within one step; they are kept prepared together.
_TOGETHER = (Role.DENOISER, Role.CONTROL)
#: Of the memory that there is, what ``"auto"`` gives to a pipeline.
_SHARE = 0.6
#: Of the memory that is asked for, one part in so many is left to what lies between layers.
_REST = 3
LOW, AUTO = "low", "auto"


@dataclass(frozen=True, kw_only=True)
class Divisible:
    """A component that its engine can run in pieces."""

    #: Memory that a piece takes, over the size of its weights.
    footprint: float
    #: Bytes of the largest weight: a piece has no less.
    largest: int

    @property
    def least(self) -> int:
        """Bytes that the largest piece needs."""
        return int(self.largest * self.footprint)


@dataclass(frozen=True, kw_only=True)
class Residency:
    """What is in memory together, and how large it is."""

    #: Component to the bytes of its weights, in the precision that it runs in.
    sizes: Mapping[str, int]
    #: The components that have to be there at one time, in the order of a draw.
    stages: tuple[tuple[str, ...], ...]
    #: What loading a whole component takes, over its weights; 1 where it is not listed.
    footprints: Mapping[str, float] = field(default_factory=FrozenDict)
    #: The components that can run in pieces.
    divisible: Mapping[str, Divisible] = field(default_factory=FrozenDict)
    #: Bytes that lie between the layers of a picture of the default size, as far as they are known.
    between: int = 0

    @property
    def whole(self) -> int:
        """Bytes of all weights."""
        return sum(self.sizes.values())

    @property
    def least(self) -> int:
        """The memory that the largest stage needs."""
        weights = max((sum(map(self._least, stage)) for stage in self.stages), default=0)
        return max(-(-weights * _REST // (_REST - 1)), weights + self.between)

    def of(self, names: Sequence[str], budget: int) -> int:
        """Bytes of some components, as they are loaded within a budget."""
        return sum(self._taken(name, budget) for name in names)

    def budget(self, memory: "int | str") -> int:
        """The bytes that loaded weights may take.

        Args:
            memory: As ``"6GB"`` or a number of bytes; ``"low"`` for the least; ``"auto"`` for six
                tenths of what the machine has, and the least where that is not known or is less.

        Raises:
            InputError: it is less than the least that would do, or no amount of memory.
        """
        if memory in (LOW, AUTO):
            most = (most_memory() or 0) if memory == AUTO else 0
            asked = max(self.least, int(most * _SHARE))
        else:
            asked = read_size(memory) if isinstance(memory, str) else memory
        if asked < self.least:
            largest = max(self.stages, key=lambda stage: sum(map(self._least, stage)))
            pieces = " in the smallest pieces" if set(largest) & self.divisible.keys() else ""
            takes = "takes" if len(largest) == 1 else "take"
            raise InputError(
                f"Memory {memory} was given; {' and '.join(largest)} alone {takes} {_gb(self.least)}"
                f"{pieces}, which is the least that would do. Give that much, or store the weights in "
                "fewer bits: --precision float16, --precision int8."
            )
        return asked - max(-(-asked // _REST), self.between)

    def room(self, name: str, budget: int) -> int | None:
        """The bytes of weights that a component may have loaded at a time; ``None`` for all."""
        stage = self._stage(name)
        if name not in self.divisible or sum(map(self._needs, stage)) <= budget:
            return None
        divided = [one for one in stage if one in self.divisible]
        left = budget - sum(self._needs(one) for one in stage if one not in divided)
        least = sum(self._least(one) for one in divided)
        # To each the least that it needs, and of the rest by its size.
        share = self.sizes[name] / max(sum(self.sizes[one] for one in divided), 1)
        one = self.divisible[name]
        return int((one.least + max(left - least, 0) * share) / one.footprint)

    def released(self, held: Sequence[str], wanted: str, budget: int) -> list[str]:
        """What to release before a component is prepared, of those held, the oldest first."""
        together = self._stage(wanted)
        taken, gone = self.of([*held, wanted], budget), list[str]()
        for name in held:
            if taken > budget and name not in together:
                gone.append(name)
                taken -= self.of([name], budget)
        return gone

    def _stage(self, name: str) -> tuple[str, ...]:
        return next((stage for stage in self.stages if name in stage), (name,))

    def _needs(self, name: str) -> int:
        """Bytes of a component that is loaded as a whole."""
        return int(self.sizes.get(name, 0) * self.footprints.get(name, 1.0))

    def _least(self, name: str) -> int:
        needs = self._needs(name)
        return min(needs, self.divisible[name].least) if name in self.divisible else needs

    def _taken(self, name: str, budget: int) -> int:
        room = self.room(name, budget)
        if room is None:
            return self._needs(name)
        return int(min(room, self.sizes[name]) * self.divisible[name].footprint)


def residency(
    source: Source,
    components: Mapping[str, Component],
    spec: PipelineSpec,
    engines: Mapping[str, tuple[Backend, Target]],
) -> Residency:
    """What the components of a source take on their engines. Reads headers, no weights.

    Raises:
        ArtifactError: what an exported folder says of its weights is damaged.
    """
    stored = source.weight_bytes()
    sizes, footprints, divisible = dict[str, int](), dict[str, float](), dict[str, Divisible]()
    for name, one in components.items():
        sizes[name], largest = _sizes(one, stored)
        backend, target = engines[name]
        footprints[name] = backend.footprint(one, target) or 1.0
        piece = backend.footprint(one, target, in_pieces=True)
        if piece is not None and largest is not None:
            divisible[name] = Divisible(footprint=piece, largest=largest)
    stages: dict[str, list[str]] = {}
    for described in sorted((one.spec for one in components.values()), key=_turn):
        together = described.role in _TOGETHER
        stages.setdefault("loop" if together else described.name, []).append(described.name)
    return Residency(
        sizes=sizes,
        stages=tuple(map(tuple, stages.values())),
        footprints=footprints,
        divisible=divisible,
        between=_between(spec),
    )


def _between(spec: PipelineSpec) -> int:
    """Bytes between the layers for a picture of the default size, in half precision."""
    denoisers = spec.having(Role.DENOISER)
    if not denoisers:
        return 0
    (height, width), layout = spec.default_size, spec.latents
    decoders = spec.having(Role.LATENT_DECODER)
    numbers = [one.branches * held(one, layout.dims(height, width)) for one in denoisers]
    numbers += [held(one, {"height": height, "width": width}) for one in decoders]
    return 2 * max(numbers, default=0)


def _gb(count: int) -> str:
    """A number of bytes, rounded up, as it may be asked for."""
    if count >= 1e9:
        return f"{math.ceil(count / 1e7) / 100:.2f} GB"
    return f"{math.ceil(count / 1e5) / 10:.1f} MB"


def _turn(spec: ComponentSpec) -> int:
    """When a component runs in a draw."""
    if spec.role in _TOGETHER:
        return 1
    return 2 if spec.role in (Role.LATENT_DECODER, Role.SAFETY_CHECKER) else 0


def _sizes(component: Component, stored: Mapping[str, int]) -> tuple[int, int | None]:
    """Bytes of all weights that a component reads, and of the largest if that is known.

    Of an export it is where the folder says which weights it has; another tool's does not.

    Raises:
        ArtifactError: what an exported folder says of its weights is damaged.
    """
    build: Any = component.build
    while build is not None and not isinstance(build, FromCheckpoint):
        build = getattr(build, "before", None)
    if build is not None:
        scheme = SCHEMES.get(component.storage)
        each = 4 if component.precision == "float32" else 2
        bits = each if scheme is None else scheme.bits / 8
        if scheme is not None and scheme.kept:
            bits = build.weights.total_bytes / build.weights.parameters
        shapes = build.weights.shapes
        counts = [math.prod(shapes[name][1]) for name in read_by(component.spec, shapes)]
        return int(sum(counts) * bits), int(max(counts, default=0) * bits)
    for path in component.files.values():
        weights = read_map(path) if not component.storage else None
        if weights is not None:
            return weights.size, max((one.size for one in weights.constants.values()), default=0)
    spec = component.spec
    return stored.get(spec.name, stored.get(spec.folder, 0)), None
