"""Ways that leave work out, beside the whole work: SD-1.5-sized at 512² and one transformer, 30 steps.

Guidance is on, and weights are random, so that steps are left out by number. Loops are the denoising alone,
without text and decoding, in the precision that the engine is fastest in, both sides; times are processor
time, taken in turns in one process: other programs may run beside it.
"""

import multiprocessing
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fewer_bits
import models
from overhead import PROMPT
from sidebyside import Row, command, compare, in_turns, say

_ENGINES = ("torch:cpu", "onnxruntime:cpu", "openvino:CPU")


@dataclass(frozen=True, kw_only=True)
class _Way:
    """Transforms of a loop. ``{third}`` and ``{half}`` stand for parts of the steps."""

    transforms: tuple[str, ...]
    #: The part of the whole loop's time that is promised to be enough.
    target: float | None = None
    make: Callable[..., Path] = models.sd15
    #: What a row says of the model; nothing of the one that is SD-1.5-sized.
    model: str = ""

    def texts(self, steps: int) -> tuple[str, ...]:
        third, half = steps // 3, steps // 2
        return tuple(one.format(third=third, half=half) for one in self.transforms)


def _transformer(*transforms: str, target: float | None = None, blocks: int = 6) -> _Way:
    return _Way(
        transforms=transforms,
        target=target,
        make=partial(models.transformer, blocks=blocks),
        model=f"a transformer of {blocks} blocks, ",
    )


#: Loops, by case.
_LOOPS: Mapping[str, tuple[_Way, ...]] = {
    "deepcache": (
        _Way(transforms=("deepcache:every=3",), target=1 / 2.0),
        _Way(transforms=("deepcache:every=3,layers=1",), target=1 / 2.0),
    ),
    "guidance": (_Way(transforms=("guidance-interval:stop=0.5",), target=1 / 1.3),),
    "t-gate": (_Way(transforms=("t-gate:gate={third}",), target=1 / 1.4),),
    "forecast": (_transformer("taylorseer:interval=2,warmup=1", target=1 / 1.8),),
    # The first half of the steps with all blocks, the second with the first one alone.
    "first-block": (
        _transformer("first-block:threshold=1e9,warmup={half}", target=1 / 1.5),
        _transformer("first-block:threshold=1e-9"),
        _transformer("magcache:ratios=1+1,most=2"),
    ),
    # What of a step is computed twice is one block, of as many as there are.
    "depth": (_transformer("first-block:threshold=1e9,warmup={half}", target=1 / 1.5, blocks=12),),
}
#: By engine, the precisions that are fast there; loops are in the first of them.
_FAST = {
    "torch:cpu": ("bfloat16",),
    "onnxruntime:cpu": ("float32",),
    "openvino:CPU": ("bfloat16", "w8a8+bfloat16"),
}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--engines", default=",".join(_ENGINES), help="some of %(default)s")
    parser.add_argument("--case", default=",".join(_CASES), help="some of %(default)s")


def measure(options: Namespace) -> list[Row]:
    known, asked = set(_CASES), options.case.split(",")
    if not set(asked) <= known:
        raise SystemExit(f"there is no {', '.join(set(asked) - known)}; there are {known}")
    return [
        row
        for case in asked
        for engine in options.engines.split(",")
        for row in _CASES[case](case, engine, options)
    ]


def _loops(case: str, engine: str, options: Namespace) -> Iterator[Row]:
    """Denoising loops with the transforms of a case."""
    from perfuse import DiffusionPipeline

    steps, rounds = _counts(options)
    for way in _LOOPS[case]:
        checkpoint = way.make(options.work, quick=options.quick)
        precision = _FAST[engine][0]
        whole = DiffusionPipeline.from_pretrained(checkpoint, backend=engine, precision=precision)
        other = DiffusionPipeline.from_pipe(whole)  # shares what the transforms leave as it is
        texts = way.texts(steps)
        for text in texts:
            other.add_transform(text)
        say(f"{way.model}{' '.join(texts)}, {engine}")
        sides = {"other": _loop(other, steps), "plain": _loop(whole, steps)}
        found = in_turns(rounds, sides)
        yield compare(
            f"A denoising loop of {steps} steps, {way.model}{' '.join(texts)}, {engine} in {precision}",
            found["other"],
            found["plain"],
            unit="s",
            against="all of it",
            target=way.target,
        )
        other.close()
        whole.close()


def _predictions(case: str, engine: str, options: Namespace) -> Iterator[Row]:
    """A prediction in integers of eight bits with bfloat16, beside float32 and bfloat16."""
    if engine != "openvino:CPU":
        return
    checkpoint = models.sd15(options.work, quick=options.quick)
    inputs = fewer_bits.inputs_of(checkpoint)
    program = fewer_bits.program(engine, "w8a8+bfloat16", checkpoint)
    for precision, target in (("float32", 1 / 2.5), ("bfloat16", 1 / 1.35)):
        say(f"w8a8+bfloat16 beside {precision}, {engine}")
        other = fewer_bits.program(engine, precision, checkpoint)
        sides = {
            "w8a8": fewer_bits.timed(program, inputs),
            "other": fewer_bits.timed(other, inputs),
        }
        for side in sides.values():
            side()
        found = in_turns(1 if options.quick else (options.rounds or 5), sides)
        yield compare(
            f"A prediction in w8a8+bfloat16, {engine}",
            found["w8a8"],
            found["other"],
            unit="s",
            against=precision,
            target=target,
        )
        other.close()
    program.close()


def _pictures(case: str, engine: str, options: Namespace) -> Iterator[Row]:
    """Whole pictures with ``--fast``, beside plain ones in float32."""
    from perfuse import DiffusionPipeline
    from perfuse.run.presets import preset

    steps, rounds = _counts(options)
    checkpoint = models.sd15(options.work, quick=options.quick)
    plain = DiffusionPipeline.from_pretrained(checkpoint, backend=engine)
    texts = preset("fast", plain.spec)
    for precision in _FAST[engine]:
        say(f"--fast, {precision}, {engine}")
        fast = fewer_bits.opened(engine, precision, checkpoint, *texts)
        sides = {"fast": _picture(fast, steps), "plain": _picture(plain, steps)}
        found = in_turns(rounds, sides)
        yield compare(
            f"A picture of {steps} steps, --fast ({' '.join(texts)}) in {precision}, {engine}",
            found["fast"],
            found["plain"],
            unit="s",
            against="plain in float32",
            target=1 / 4,
        )
        fast.close()
    plain.close()


def _memory(case: str, engine: str, options: Namespace) -> Iterator[Row]:
    """The most that a process has with the second entry, beside one without."""
    checkpoint = models.sd15(options.work, quick=options.quick)
    context = multiprocessing.get_context("spawn")
    peaks = []
    for transforms in (("deepcache:every=3",), ()):
        say(f"memory with {' '.join(transforms) or 'nothing'}, {engine}")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            peaks.append(pool.submit(_peak, engine, checkpoint, transforms).result() / 1e6)
    yield Row(
        what=f"Memory at most with deepcache's second entry, {engine}",
        ours=peaks[0],
        theirs=peaks[1],
        unit="MB",
        against="one entry",
        figure=peaks[0] / peaks[1],
        target=1.15,
    )


def _peak(engine: str, checkpoint: Path, transforms: tuple[str, ...]) -> int:
    """Of a process of its own, after a loop of three steps."""
    from perfuse import DiffusionPipeline
    from perfuse.memory import peak_memory

    pipe = DiffusionPipeline.from_pretrained(checkpoint, backend=engine, transforms=transforms)
    _loop(pipe, 3)()
    return peak_memory() or 0


def _counts(options: Namespace) -> tuple[int, int]:
    """Steps and rounds."""
    return (6, 1) if options.quick else (30, options.rounds or 3)


def _loop(pipe: Any, steps: int) -> Callable[[], float]:
    """The processor time of a denoising loop."""
    _prepare(pipe)

    def run() -> float:
        began = spent = 0.0
        for event in pipe.stream(PROMPT, num_inference_steps=steps, seed=0, output_type="latent"):
            if event.step == "place_inputs":
                began = time.process_time()
            elif event.step == "denoise":
                spent = time.process_time() - began
        return spent

    return run


def _picture(pipe: Any, steps: int) -> Callable[[], float]:
    """The processor time of a whole picture."""
    _prepare(pipe)

    def run() -> float:
        began = time.process_time()
        pipe(PROMPT, num_inference_steps=steps, seed=0)
        return time.process_time() - began

    return run


def _prepare(pipe: Any) -> None:
    """Compile what a loop runs, before it is timed."""
    for name in pipe.spec.components:
        pipe.program(name)


_CASES = {
    **dict.fromkeys(_LOOPS, _loops),
    "w8a8": _predictions,
    "fast": _pictures,
    "memory": _memory,
}


if __name__ == "__main__":
    command(measure, __doc__, options)
