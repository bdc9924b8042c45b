"""Time, work and quality of ways to draw: the plain one, with transforms, and with fewer steps.

All draw the same pictures in turns, in one process, so that their times can be compared. The rival of
a transform is the plain pipeline with as many steps as fit into the transform's time.
"""

import dataclasses
import math
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfuse.contract.backend import ExecutionReport, Program
from perfuse.contract.spec import Array, PipelineSpec
from perfuse.errors import InputError
from perfuse.memory import peak_memory
from perfuse.plugins import missing_modules
from perfuse.progress import working
from perfuse.run.clip_score import ClipScore
from perfuse.run.pipeline import DiffusionPipeline
from perfuse.run.tools import PipelineTools
from perfuse.shapes.checker import check
from perfuse.shapes.grammar import Scene
from perfuse.tasks.choosing import choose

__all__ = ["Drawing", "Row", "Way", "check_installed", "compare", "wilson"]

#: [H, W, C] in [0, 1].
Picture = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to draw."""

    #: Empty for the plain pipeline.
    transforms: tuple[str, ...]
    steps: int

    @property
    def name(self) -> str:
        return " ".join(self.transforms) if self.transforms else f"plain, {self.steps} steps"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn, by all ways alike."""

    #: One for each picture; its number is its seed.
    inputs: Sequence[Mapping[str, Any]]
    #: What each picture has to show, for a bundled model; ``None`` for others.
    scenes: Sequence[Scene] | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one way."""

    name: str
    transforms: tuple[str, ...]
    steps: int
    pictures: int
    #: The median of the seconds a picture.
    seconds: float
    #: How many times as fast as the plain pipeline: the median over the pictures.
    speed: float
    #: Items that each program of the denoiser predicted, a picture.
    predictions: Mapping[str, float]
    #: The most bytes that a process of its own had in memory; ``None`` if it was not measured.
    memory: int | None
    #: Means over the pictures, each against the plain pipeline's of the same seed.
    psnr: float
    ssim: float
    flip: float
    #: The mean CLIP score of the pictures with their prompts; ``None`` if it was not asked for.
    clip: float | None
    #: How many pictures show what they should, and the ends of the share's 95 % interval.
    right: int | None
    interval: tuple[float, float] | None
    #: The name of the plain row that took the most similar time.
    rival: str | None = None


def check_installed() -> None:
    """Raise ``InputError`` unless what measures pictures is installed."""
    if missing := missing_modules(("skimage", "flip_evaluator")):
        raise InputError(
            f"Pictures were to be compared; {' and '.join(missing)} is not installed. Run: pip "
            "install 'perfuse[bench]'"
        )


def compare(
    settings: Mapping[str, Any],
    ways: Sequence[Sequence[str]],
    drawing: Drawing,
    *,
    steps: int,
    memory: bool = False,
    clip: ClipScore | None = None,
) -> list[Row]:
    """Measure the plain pipeline, ways to draw with transforms, and fewer steps.

    Args:
        settings: The arguments of ``DiffusionPipeline.from_pretrained``.
        ways: The transforms of each way.
        drawing: What is drawn.
        steps: The plain pipeline's, and that of all ways with transforms.
        memory: Whether to measure memory, in a process for each way.
        clip: What scores how well pictures show their prompts.

    Returns:
        A row for the plain pipeline, then each way, then each rival.

    Raises:
        InputError: a transform or an input cannot be used; or CLIP was to score pictures that have no
            prompts.
    """
    check_installed()
    if clip is not None and not all(isinstance(one.get("prompt"), str) for one in drawing.inputs):
        raise InputError("--clip was given; CLIP scores pictures that were drawn from a prompt.")
    plain = Way(transforms=(), steps=steps)
    asked = [plain, *(Way(transforms=tuple(one), steps=steps) for one in ways)]
    pipe = DiffusionPipeline.from_pretrained(**settings)
    runs = {way: Run(_with(pipe, way), way) for way in asked}
    rivals = _rivals(runs, drawing, Run(pipe, _half(plain))) if ways else ()
    for rival in dict.fromkeys(rivals):
        runs.setdefault(rival, Run(pipe, rival))
    total = len(runs) * len(drawing.inputs)
    for number, inputs in enumerate(drawing.inputs):
        for turn, run in enumerate(runs.values()):
            done = number * len(runs) + turn
            with working("bench", "Drawing", subject=run.way.name, done=done, total=total):
                run.draw(inputs, number, drawing.scenes)
        reference = runs[plain].last
        for run in runs.values():
            run.judge(reference)
            if clip is not None:
                run.scores.append(clip(run.last, inputs["prompt"]))
    peaks = {way: peak(settings, way, drawing.inputs[0]) if memory else None for way in runs}
    rows = [run.row(runs[plain], peaks[way]) for way, run in runs.items()]
    others = [row for row in rows if not row.transforms]
    return [
        dataclasses.replace(row, rival=_nearest(row, others).name) if row.transforms else row
        for row in rows
    ]


def _nearest(row: Row, others: Sequence[Row]) -> Row:
    """The row of those that took the most similar time."""
    return min(others, key=lambda one: abs(math.log(one.speed / row.speed)))


def _with(pipe: DiffusionPipeline, way: Way) -> DiffusionPipeline:
    """A pipeline with the transforms of a way; it shares all models that these leave as they are."""
    if not way.transforms:
        return pipe
    other = DiffusionPipeline.from_pipe(pipe)
    for text in way.transforms:
        other.add_transform(text)
    return other


def _half(plain: Way) -> Way:
    return dataclasses.replace(plain, steps=max(plain.steps // 2, 1))


def _rivals(runs: "Mapping[Way, Run]", drawing: Drawing, half: "Run") -> tuple[Way, ...]:
    """The plain pipeline with as many steps as fit into the time of each way with transforms.

    A picture's time is taken as a fixed part and a part for each step, from two numbers of steps.
    """
    timed = {run.way: run for run in (*runs.values(), half)}
    for number in range(_TRIES + 1):  # the first prepares and warms
        for run in timed.values():
            run.draw(drawing.inputs[number % len(drawing.inputs)], number, None)
    seconds = {way: statistics.median(run.times[1:]) for way, run in timed.items()}
    for run in timed.values():
        run.forget()
    plain = next(way for way in runs if not way.transforms)
    each = (seconds[plain] - seconds[half.way]) / max(plain.steps - half.way.steps, 1)
    found = []
    for way in runs:
        if way.transforms:
            saved = (seconds[plain] - seconds[way]) / each if each > 0 else 0.0
            count = min(max(round(plain.steps - saved), 1), plain.steps)
            found.append(dataclasses.replace(plain, steps=count))
    return tuple(found)


#: Pictures that are drawn to find the rivals.
_TRIES = 5


class Run:
    """A way to draw at work, with what was seen of it so far."""

    def __init__(self, pipe: DiffusionPipeline, way: Way) -> None:
        self.pipe, self.way = pipe, way
        self.last: Picture = np.zeros((0, 0, 0), np.float32)
        self.forget()

    def forget(self) -> None:
        """Begin anew, with what is prepared."""
        self.times: list[float] = []
        self.counts: Counter[str] = Counter()
        self.quality: list[tuple[float, float, float]] = []
        self.right: list[bool] = []
        self.scores: list[float] = []

    def draw(self, inputs: Mapping[str, Any], seed: int, scenes: Sequence[Scene] | None) -> None:
        """Draw one picture."""
        given = {
            **inputs,
            "num_inference_steps": self.way.steps,
            "seed": seed,
            "output_type": "np",
        }
        task, tools = choose(self.pipe.tasks, given), Counting(self.pipe, self.counts)
        state: Mapping[str, Any] = {}
        began = time.perf_counter()
        for event in task.run(tools, given):
            state = event.state
        self.times.append(time.perf_counter() - began)
        self.last = np.asarray(state["images"])[0]
        if scenes is not None:
            pixels = np.rint(np.clip(self.last, 0, 1) * 255).astype(np.uint8)
            self.right.append(check(pixels, scenes[seed]).right)

    def judge(self, reference: Picture) -> None:
        """Compare the last picture with the plain pipeline's."""
        self.quality.append(_quality(self.last, reference))

    def row(self, plain: "Run", memory: int | None) -> Row:
        """What was measured."""
        count = len(self.times)
        psnr, ssim, flip = (statistics.fmean(values) for values in zip(*self.quality, strict=True))
        right = sum(self.right) if self.right else None
        return Row(
            name=self.way.name,
            transforms=self.way.transforms,
            steps=self.way.steps,
            pictures=count,
            seconds=statistics.median(self.times),
            speed=statistics.median(a / b for a, b in zip(plain.times, self.times, strict=True)),
            predictions={name: n / count for name, n in self.counts.items()},
            memory=memory,
            psnr=psnr,
            ssim=ssim,
            flip=flip,
            clip=statistics.fmean(self.scores) if self.scores else None,
            right=right,
            interval=wilson(right, count) if right is not None else None,
        )


class Counting(PipelineTools):
    """A pipeline whose denoiser's programs count what they predict."""

    def __init__(self, pipe: DiffusionPipeline, counts: Counter[str]) -> None:
        super().__init__(pipe)
        self._counts, self._denoisers = counts, _denoisers(pipe.spec)

    def program(self, component: str) -> Program:
        program = super().program(component)
        known = component in self._denoisers
        return _Counted(program, component, self._counts) if known else program


class _Counted(Program):
    """A program that adds the items of its calls to a count."""

    def __init__(self, program: Program, name: str, counts: Counter[str]) -> None:
        self.signature, self.torch_device = program.signature, program.torch_device
        self.max_batch = program.max_batch
        self._program, self._name, self._counts = program, name, counts

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        self._counts[self._name] += len(inputs["sample"])
        return self._program(**inputs)

    def report(self) -> ExecutionReport:
        return self._program.report()


def _denoisers(spec: PipelineSpec) -> set[str]:
    """The names of the denoiser and its other entries."""
    own = spec.denoiser.name
    return {name for name, one in spec.components.items() if own in (name, one.entry_of)}


def _quality(picture: Picture, reference: Picture) -> tuple[float, float, float]:
    """PSNR in decibels, at most 100, SSIM, and the mean of FLIP."""
    import flip_evaluator
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    if np.array_equal(picture, reference):
        return 100.0, 1.0, 0.0
    psnr = peak_signal_noise_ratio(reference, picture, data_range=1)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = structural_similarity(reference, picture, data_range=1, channel_axis=-1, **settings)
    colours = [np.repeat(p, 3, axis=2) if p.shape[2] == 1 else p for p in (reference, picture)]
    mean = flip_evaluator.evaluate(*colours, "LDR", inputsRGB=True, applyMagma=False)[1]
    return min(float(psnr), 100.0), float(ssim), float(mean)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The ends of the 95 % interval of a share (Wilson 1927, JASA 22(158)).

    >>> [round(end, 3) for end in wilson(98, 100)]
    [0.93, 0.994]
    """
    z, share = statistics.NormalDist().inv_cdf(0.975), right / count
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def peak(settings: Mapping[str, Any], way: Way, inputs: Mapping[str, Any]) -> int | None:
    """The most bytes that a process of its own has in memory while it draws one picture.

    ``None`` where the system does not say.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_peak, dict(settings), way, dict(inputs)).result()


def _peak(settings: Mapping[str, Any], way: Way, inputs: Mapping[str, Any]) -> int | None:
    pipe = DiffusionPipeline.from_pretrained(**settings, transforms=way.transforms)
    Run(pipe, way).draw(inputs, 0, None)
    return peak_memory()
