"""The fastest way to draw on this machine that loses little enough: targets, precisions, threads, transforms.

Points are tried in that order, each kind from the best so far, until the time is over. All draw the same
pictures; what they lose is against the first, which is plain and in float32.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfuse.contract.source import Source
from perfuse.contract.target import Target
from perfuse.errors import InputError, PerfuseError
from perfuse.plugins import host, missing_modules
from perfuse.progress import working
from perfuse.run.bench import Row, Run, Way, check_installed
from perfuse.run.pipeline import DiffusionPipeline
from perfuse.run.presets import PRESETS, preset

__all__ = ["Found", "Point", "backends_for", "tune"]

#: Of weights, and of both, after the precisions of the device.
_FEWER = ("int8", "int8+bfloat16")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A way to draw on this machine."""

    backend: str
    precision: str = "float32"
    #: ``None`` for the engine's own choice.
    threads: int | None = None
    transforms: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        threads = () if self.threads is None else (f"threads={self.threads}",)
        return " ".join((self.backend, self.precision, *threads, *self.transforms))

    @property
    def options(self) -> dict[str, str]:
        """The backend's."""
        return {} if self.threads is None else {"threads": str(self.threads)}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was tried."""

    #: Point to what was measured of it, in the order in which they were tried.
    rows: Mapping[Point, Row]
    #: Points that could not be tried, with the reasons.
    refused: Mapping[Point, str]
    #: The fastest of those that lose little enough.
    chosen: Point


def tune(
    source: Source,
    backends: Sequence[str],
    inputs: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    seconds: float,
    least: float,
) -> Found:
    """Try points until the time is over.

    Args:
        source: The model.
        backends: The targets to try, the reference first.
        inputs: Those of a call for each picture.
        steps: How many a picture.
        seconds: How long to go on. A point that was begun is finished.
        least: The least mean SSIM with the pictures of the first point.

    Raises:
        InputError: no time was given, or an input cannot be used.
        PerfuseError: the first target cannot draw.
    """
    if not seconds > 0:
        raise InputError("perfuse tune was given no time; say how long to look: --time 5m.")
    check_installed()
    ends = time.monotonic() + seconds
    search = _Search(source, inputs, steps, least)
    search.try_one(Point(backend=backends[0]), must=True)
    for more in (_targets(backends), _precisions, _threads, _transforms(source)):
        for point in more(search.best):
            if time.monotonic() > ends:
                return search.found
            search.try_one(point)
    return search.found


class _Search:
    """What was tried so far."""

    def __init__(
        self, source: Source, inputs: Sequence[Mapping[str, Any]], steps: int, least: float
    ) -> None:
        self._source, self._inputs, self._steps, self._least = source, inputs, steps, least
        self._plain: Run | None = None
        self._pictures: list[Any] = []
        self._rows: dict[Point, Row] = {}
        self._refused: dict[Point, str] = {}

    @property
    def best(self) -> Point:
        """The fastest point that loses little enough; the first is one."""
        good = {point: row for point, row in self._rows.items() if row.ssim >= self._least}
        return max(good, key=lambda point: good[point].speed)

    @property
    def found(self) -> Found:
        return Found(rows=self._rows, refused=self._refused, chosen=self.best)

    def try_one(self, point: Point, *, must: bool = False) -> None:
        """Draw with a point, unless it was tried; what cannot be tried is kept with the reason."""
        if point in self._rows or point in self._refused:
            return
        with working("tune", "Trying", subject=point.name):
            try:
                self._rows[point] = self._measured(point)
            except PerfuseError as exc:
                if must:
                    raise
                self._refused[point] = str(exc)

    def _measured(self, point: Point) -> Row:
        pipe = DiffusionPipeline.from_pretrained(
            self._source,
            backend=point.backend,
            precision=point.precision,
            options=point.options,
            transforms=point.transforms,
        )
        run = Run(pipe, Way(transforms=point.transforms, steps=self._steps))
        run.draw(self._inputs[0], 0, None)  # prepares and warms
        run.forget()
        for number, one in enumerate(self._inputs):
            run.draw(one, number, None)
            if self._plain is None:
                self._pictures.append(run.last)
            run.judge(self._pictures[number])
        pipe.close()
        self._plain = run if self._plain is None else self._plain
        return dataclasses.replace(run.row(self._plain, None), name=point.name)


def _targets(backends: Sequence[str]) -> Callable[[Point], Iterator[Point]]:
    def points(best: Point) -> Iterator[Point]:
        for backend in backends[1:]:
            yield dataclasses.replace(best, backend=backend)

    return points


def _precisions(best: Point) -> Iterator[Point]:
    """Those of the device, and weights in fewer bits where the backend stores them so."""
    target = Target.parse(best.backend)
    backend = host().backend(target.backend)
    found = backend.devices()
    device = next((one for one in found if one.name == target.device), found[0])
    for precision in device.precisions:
        yield dataclasses.replace(best, precision=precision)
    for text in _FEWER:
        scheme, _, computed = text.partition("+")
        if scheme in backend.storages and (computed or "float32") in device.precisions:
            yield dataclasses.replace(best, precision=text)


def _threads(best: Point) -> Iterator[Point]:
    """All of the machine's cores, and half of them."""
    if "threads" in host().backend(Target.parse(best.backend).backend).options:
        cores = os.cpu_count() or 1
        for threads in dict.fromkeys((cores, max(cores // 2, 1))):
            yield dataclasses.replace(best, threads=threads)


def _transforms(source: Source) -> Callable[[Point], Iterator[Point]]:
    """The presets for the model's denoiser, if any were measured."""

    def points(best: Point) -> Iterator[Point]:
        for name in PRESETS:
            try:
                yield dataclasses.replace(best, transforms=preset(name, source.spec))
            except InputError:
                return

    return points


def backends_for(source: Source) -> tuple[str, ...]:
    """The backends of this machine that run a source, the reference first."""
    wanted, exporters = source.format, host().exporters()
    apart = {name for name, one in exporters.items() if one.apart and not one.fixed}
    fits = []
    for name, one in host().backends().items():
        own = wanted in one.formats if wanted is not None else not one.formats
        through = wanted is None and bool(apart.intersection(one.formats))
        if (own or through) and not one.interprets and not missing_modules(one.requires):
            fits.append((not own, name))
    return tuple(name for _, name in sorted(fits))
