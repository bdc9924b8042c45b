"""Trials: calls of a component that a seed draws, where no fixed probe looks.

Each has a name for what it goes beyond: larger sizes than any probe's, texts of other lengths, zeros,
arrays that lie in memory otherwise. The name stays; a seed draws the rest. A trial is plain text as
well (``"batch=1,height=64,..."``), so that one that fails can be asked again without the seed.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from perfuse.errors import InputError
from perfuse.memory import most_memory
from perfuse.spec import ComponentSpec, PipelineSpec, Role
from perfuse_conformance.cases.probes import Probe, longest_text, sized

__all__ = [
    "LAYOUTS",
    "SIZED",
    "Trial",
    "drawn_about",
    "probe_for",
    "recorded_trials",
    "trial_id",
    "trials_of",
]

#: How an array may lie in memory; ``runner.layouts`` makes them.
LAYOUTS = ("contiguous", "fortran", "negative-strides", "strided", "read-only", "offset")
#: Names of trials of other sizes than the usual ones: with fixed sizes, each needs its own program.
SIZED = frozenset(
    ("any-size", "larger", "smaller", "aspect", "batch", "other-text")
    + ("largest", "largest-batch", "longest-text")
)
#: How many times as large as usual a side may be, and a batch; with ``--thorough``.
_SIDE, _BATCH = (2.0, 4.0), (6, 24)
#: Bytes that a trial may need; with ``--thorough``.
_BYTES = (1_000_000_000, 4_000_000_000)
#: How many further trials of each name ``--thorough`` asks.
_MORE = 4

Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One call of one component."""

    batch: int
    #: Of the picture, in pixels.
    height: int
    width: int
    #: Tokens of the text, padding included.
    text: int
    #: As in ``Probe.calls``; a batch has timesteps from this one down to half of it.
    about: float
    #: What the random inputs are multiplied with.
    scale: float = 1.0
    #: One of ``LAYOUTS``.
    layout: str = "contiguous"
    #: Every item has the same sample, as with guidance.
    guided: bool = False
    #: Seed of the inputs.
    numbers: int = 0

    def __str__(self) -> str:
        """``"batch=1,height=64,width=64,text=32,about=500.0,numbers=7"``."""
        fields = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote.

        Raises:
            InputError: the text is of another form.
        """
        kinds: dict[Any, Callable[[str], Any]] = {
            int: int,
            float: float,
            str: str,
            bool: lambda said: {"True": True, "False": False}[said],
        }
        fields = {f.name: kinds[f.type] for f in dataclasses.fields(cls)}
        try:
            given = dict(part.split("=", 1) for part in text.split(","))
            trial = cls(**{name: fields[name](value) for name, value in given.items()})
        except (KeyError, TypeError, ValueError) as exc:
            raise InputError(
                f"Trial {text!r} was asked for; one is written as a report has it: "
                "batch=1,height=64,width=64,text=32,about=500.0,numbers=7."
            ) from exc
        if trial.layout not in LAYOUTS or not math.isfinite(trial.scale + trial.about):
            raise InputError(
                f"Trial {text!r} was asked for; its layout is one of {', '.join(LAYOUTS)}, and its "
                "numbers are finite."
            )
        return trial


def probe_for(spec: PipelineSpec, component: ComponentSpec, trial: Trial, id: str) -> Probe:
    """The probe that makes a trial's call."""
    sizes = sized(spec, component, trial.batch, trial.height, trial.width, trial.text)
    about: Any = trial.about
    if component.role == Role.TEXT_ENCODER:
        about = int(trial.about)
    elif component.signature.input("timestep") is not None and not trial.guided:
        about = tuple(np.linspace(trial.about, trial.about / 2, trial.batch).tolist())
    return Probe(
        id=id,
        component=component.name,
        dims={name: sizes[name] for name in component.signature.dims},
        calls=(about,),
        manner=trial.layout,
        guided=trial.guided,
        sizes=sizes,
        scale=trial.scale,
    )


def drawn_about(component: ComponentSpec, longest: int, random: Random) -> float:
    """A timestep, whole or not; the number of tokens; an autoencoder's spread."""
    if component.role == Role.TEXT_ENCODER:
        return float(random.integers(0, longest - 1))
    if component.signature.input("timestep") is None:
        return round(float(random.uniform(0.5, 2.0)), 3)
    most = random.choice((999.0, 999.0, 1.0))  # near zero a fraction is a large part of it
    exact = float(random.uniform(0, most))
    return float(round(exact)) if random.random() < 0.5 else round(exact, 3)


# What is drawn


def trials_of(
    spec: PipelineSpec, seed: int, *, thorough: bool = False
) -> dict[str, tuple[Trial, ...]]:
    """Every trial of a model, by ``"trial/COMPONENT/NAME"``.

    Of the largest size, batch and text there are several, the largest first: what a backend declines
    is not asked. All others are one.
    """
    found: dict[str, tuple[Trial, ...]] = {}
    for component in spec.components.values():
        drawer = _Drawer(spec, component, thorough=thorough)
        for name, draw in drawer.names().items():
            for number in range(_MORE + 1 if thorough and name not in _EDGES else 1):
                id = f"trial/{component.name}/{name}" + (f"-{number + 1}" if number else "")
                trials = tuple(draw(_random(seed, id)))
                found |= {id: trials} if trials else {}
    return found


def trial_id(id: str, number: int) -> str:
    """The id of one of several trials in a bundle."""
    return f"{id}~{number}" if number else id


def recorded_trials(probes: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Trial, ...]]:
    """The trials that a bundle holds, as ``trials_of`` has them."""
    found: dict[str, tuple[Trial, ...]] = {}
    for id, meta in probes.items():
        if "trial" in meta:
            name = id.partition("~")[0]
            found[name] = (*found.get(name, ()), Trial.parse(meta["trial"]))
    return found


_EDGES = ("largest", "largest-batch", "longest-text")


def _random(seed: int, id: str) -> Random:
    digest = hashlib.sha256(f"{seed}/{id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))


Draw = Callable[[Random], Iterator[Trial]]
#: From and to which part of the usual height and width.
_Area = tuple[tuple[float, float], tuple[float, float]]


class _Drawer:
    """Draws the trials of one component."""

    def __init__(self, spec: PipelineSpec, component: ComponentSpec, *, thorough: bool) -> None:
        self.spec, self.component = spec, component
        self.side, self.most_batch = _SIDE[thorough], _BATCH[thorough]
        memory = most_memory()
        self.bytes = min(_BYTES[thorough], memory // 4) if memory is not None else _BYTES[thorough]
        self.text = longest_text(spec)
        height, width = spec.default_size
        self.usual = Trial(batch=1, height=height, width=width, text=self.text, about=1.0)
        self.dims = set(component.signature.dims)

    def names(self) -> dict[str, Draw]:
        """What there is to draw for a component of these inputs."""
        found: dict[str, Draw] = {}
        wide = replace(self.usual, height=2 * self.usual.height, width=2 * self.usual.width)
        if self._dims(wide) != self._dims(self.usual):
            larger, smaller = (1.0, self.side), (0.5, 0.9)
            areas = {"larger": (larger, larger), "smaller": (smaller, smaller)}
            areas |= {"aspect": (larger, smaller)}
            found |= {name: self._area(area) for name, area in areas.items()}
            found |= {"any-size": self._area(*areas.values()), "largest": self._largest}
        if "batch" in self.dims:
            found |= {"batch": self._batch, "largest-batch": self._largest_batch}
        if "sequence" in self.dims and self.text > 1:
            found |= {"other-text": self._other_text, "longest-text": self._longest_text}
        if self.component.role == Role.TEXT_ENCODER:
            thirds = {"few-words": 0, "some-words": 1, "many-words": 2}
            found |= {name: self._words(third) for name, third in thirds.items()}
        elif any(tensor.dtype.startswith("float") for tensor in self._random_inputs()):
            scales = {"zeros": None, "denormal": (-39.5, -38.5), "large": (1.0, 2.5)}
            found |= {n: self._scaled(s) for n, s in (scales | {"saturating": (3.0, 6.0)}).items()}
        return found | {layout: self._laid(layout) for layout in LAYOUTS[1:]}

    def _random_inputs(self) -> list[Any]:
        known = ("timestep", "time_ids")
        return [tensor for tensor in self.component.signature.inputs if tensor.name not in known]

    def _dims(self, trial: Trial) -> Mapping[str, int]:
        return probe_for(self.spec, self.component, trial, "").dims

    def _fits(self, trial: Trial) -> bool:
        """Whether the model takes it, and memory; the usual size is asked anyway."""
        try:
            self.component.check_dims(self._dims(trial))
        except InputError:
            return False
        usual = self.usual
        size = (trial.batch, trial.height, trial.width, trial.text)
        least = (usual.batch, usual.height, usual.width, usual.text)
        return self._needs(trial) <= self.bytes or all(map(int.__le__, size, least))

    def _needs(self, trial: Trial) -> int:
        """About how many bytes a call takes: features of each pixel, scores of attention."""
        scale = self.spec.latents.downscale
        latents = trial.height * trial.width // scale**2
        features, heads = 512 * trial.height * trial.width, 8
        return 4 * trial.batch * (features + heads * latents * (latents + trial.text))

    def _drawn(self, random: Random, **fields: Any) -> Trial:
        halves = "timestep" in self.component.signature.input_names
        halves = halves and fields.get("batch", 1) % 2 == 0
        guided = bool(halves and random.random() < 0.5)
        drawn = {
            "about": drawn_about(self.component, self.text, random),
            "guided": guided,
            **fields,
        }
        return replace(self.usual, numbers=int(random.integers(1, 10**6)), **drawn)

    def _first_fit(self, make: Callable[[], Trial]) -> Iterator[Trial]:
        """One that fits, of several that are drawn."""
        for _ in range(20):
            trial = make()
            if self._fits(trial):
                yield trial
                return

    def _area(self, *areas: _Area) -> Draw:
        usual, step = self.usual, self.spec.size_multiple

        def side(random: Random, length: int, part: tuple[float, float]) -> int:
            return max(int(length * random.uniform(*part)) // step, 1) * step

        def draw(random: Random) -> Iterator[Trial]:
            def make() -> Trial:
                parts = areas[int(random.integers(len(areas)))]
                tall, wide = random.permutation(np.asarray(parts)).tolist()
                height, width = side(random, usual.height, tall), side(random, usual.width, wide)
                return self._drawn(random, height=height, width=width)

            yield from self._first_fit(make)

        return draw

    def _batch(self, random: Random) -> Iterator[Trial]:
        def make() -> Trial:
            return self._drawn(random, batch=int(random.integers(2, self.most_batch + 1)))

        yield from self._first_fit(make)

    def _multiple(self, text: int) -> int:
        """The text's length nearest below that the component takes."""
        dim = self.component.dim("sequence")
        return max(text // dim.multiple, dim.smallest or 1) * dim.multiple

    def _other_text(self, random: Random) -> Iterator[Trial]:
        most = self.component.dim("sequence").maximum or 2 * self.text

        def make() -> Trial:
            return self._drawn(random, text=self._multiple(int(random.integers(1, most + 1))))

        yield from self._first_fit(make)

    def _words(self, third: int) -> Draw:
        def draw(random: Random) -> Iterator[Trial]:
            most = self.text - 2
            low, high = most * third // 3, most * (third + 1) // 3
            yield self._drawn(random, about=float(random.integers(low, high + 1)))

        return draw

    def _scaled(self, powers: tuple[float, float] | None) -> Draw:
        """Values around a power of ten; none for zeros."""

        def draw(random: Random) -> Iterator[Trial]:
            scale = 0.0 if powers is None else float(f"{10 ** random.uniform(*powers):.3g}")
            yield self._drawn(random, scale=scale)

        return draw

    def _laid(self, layout: str) -> Draw:
        def draw(random: Random) -> Iterator[Trial]:
            yield self._drawn(random, layout=layout)

        return draw

    # Claims at their edge

    def _largest(self, random: Random) -> Iterator[Trial]:
        usual, step = self.usual, self.spec.size_multiple
        for factor in np.linspace(self.side, 1.0, 5).tolist():
            height, width = (
                int(length * factor) // step * step for length in (usual.height, usual.width)
            )
            yield from filter(self._fits, [self._drawn(random, height=height, width=width)])

    def _largest_batch(self, random: Random) -> Iterator[Trial]:
        for batch in sorted({2 * self.most_batch, self.most_batch, 2, 1}, reverse=True):
            yield from filter(self._fits, [self._drawn(random, batch=batch, guided=False)])

    def _longest_text(self, random: Random) -> Iterator[Trial]:
        dim, texts = self.component.dim("sequence"), self.component.role == Role.TEXT_ENCODER
        longest = dim.maximum or 4 * self.text
        for text in sorted({longest, 2 * self.text, self.text}, reverse=True):
            fields: dict[str, Any] = {"text": self._multiple(text)}
            if texts:  # with as many words as it has places for
                fields["about"] = float(fields["text"] - 2)
            yield from filter(self._fits, [self._drawn(random, **fields)])
