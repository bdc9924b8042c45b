"""What many calls show, many programs, and two of them at once: answers that change, memory that grows."""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from perfuse.backend import Program
from perfuse.memory import return_memory
from perfuse.plugins import Allowance
from perfuse.spec import ComponentSpec, PipelineSpec
from perfuse_conformance.cases.probes import Arrays, Probe, inputs_of, longest_text
from perfuse_conformance.cases.trials import drawn_about
from perfuse_conformance.runner.layouts import LAYOUTS

__all__ = ["Soaked", "drawn_inputs", "interleaved", "miss", "prepared_again", "resident", "soak"]

#: How many calls are made, unless they take longer than so many seconds, those not counted in which the
#: process waits for a processor; with ``--thorough``.
_CALLS, _SECONDS = (500, 2500), (300.0, 600.0)
#: From this part of them on memory is expected to stay.
_SETTLED = 0.2
#: How many different inputs there are, and at how many moments an answer is kept.
_INPUTS, _KEPT = 40, 8
#: How many programs are made one after the other, those from the first to when memory is expected to
#: stay, and in how many seconds.
_PROGRAMS, _WARM, _PROGRAM_SECONDS = (8, 30), 3, (15.0, 300.0)
#: Calls of two programs at once.
_TOGETHER = 24

Taken = Callable[[Any], Arrays]


@dataclass(frozen=True, kw_only=True)
class Soaked:
    """What many calls showed."""

    #: How many were made, of how many.
    calls: int
    wanted: int
    #: How far the worst answer is from the first one to the same inputs, over its spread.
    miss: float
    #: Which call that was, and how its inputs lay in memory.
    at: int
    layout: str
    #: Bytes that the process, and the device, grew by after the first calls; ``None`` where the
    #: system does not tell.
    grown: int | None
    #: The numbers of the inputs whose answers were kept at drawn moments.
    kept: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def drawn_inputs(
    spec: PipelineSpec, component: ComponentSpec, probes: Sequence[Probe], seed: int, number: int
) -> Arrays:
    """Inputs of the sizes of one of some probes: the same for the same numbers, in any process."""
    random = np.random.default_rng((seed, number))
    probe = probes[int(random.integers(len(probes)))]
    about = drawn_about(component, longest_text(spec), random)
    zeros = random.random() < 0.1
    call = replace(probe, calls=(about,), manner="separate", scale=0.0 if zeros else 1.0)
    return inputs_of(component, call, seed=int(random.integers(2**31)))[0]


def soak(
    program: Program,
    inputs: Callable[[int], Arrays],
    seed: int,
    taken: Taken,
    *,
    thorough: bool = False,
) -> tuple[Soaked, list[Arrays]]:
    """Call a program many times.

    Args:
        program: What to call.
        inputs: Makes the inputs of a number.
        seed: Draws the order, the layouts, and the moments at which an answer is kept.
        taken: Copies what a call returned.
        thorough: Five times as often.

    Returns:
        What it showed, and the answers that were kept.
    """
    calls, seconds = _CALLS[thorough], _SECONDS[thorough]
    random = np.random.default_rng(seed)
    given = [inputs(number) for number in range(_INPUTS)]
    moments = {int(m) for m in random.choice(calls // 2, _KEPT, replace=False)}
    first: dict[int, Arrays] = {}
    kept: list[tuple[int, Arrays]] = []
    allowed = Allowance("self", seconds)
    worst, at, layout, settled, made = 0.0, 0, "contiguous", None, 0
    while made < calls and allowed.left():
        which, how = int(random.integers(_INPUTS)), str(random.choice(list(LAYOUTS)))
        laid = {name: LAYOUTS[how](array) for name, array in given[which].items()}
        found = taken(program(**laid))
        far = miss(found, first.setdefault(which, found))
        if far > worst:
            worst, at, layout = far, made + 1, how
        if made in moments:
            kept.append((which, found))
        made += 1
        if made == int(calls * _SETTLED):
            settled = resident(program.torch_device)
    now = resident(program.torch_device) if settled is not None else None
    grown = now - settled if now is not None and settled is not None else None
    numbers = tuple(number for number, _ in kept)
    soaked = Soaked(
        calls=made, wanted=calls, miss=worst, at=at, layout=layout, grown=grown, kept=numbers
    )
    return soaked, [answer for _, answer in kept]


def prepared_again(
    prepare: Callable[[], Program], inputs: Arrays, *, thorough: bool = False
) -> tuple[int, int | None]:
    """Prepare a program, call it and close it, again and again.

    Returns:
        How many times, and the bytes that each of the later ones left; ``None`` where the system
        does not tell or time was short.
    """
    begun, sizes = time.monotonic(), list[int | None]()
    while len(sizes) < _PROGRAMS[thorough] and (
        len(sizes) <= _WARM or time.monotonic() - begun < _PROGRAM_SECONDS[thorough]
    ):
        program = prepare()
        device = program.torch_device
        program(**inputs)
        program.close()
        del program
        sizes.append(resident(device))
    later = [size for size in sizes[_WARM - 1 :] if size is not None]
    if len(later) < 2:
        return len(sizes), None
    # The least step of all: a heap grows now and then, a leak each time.
    return len(sizes), int(np.diff(later).min())


def interleaved(
    programs: Sequence[Program], given: Sequence[Arrays], seed: int, taken: Taken
) -> dict[str, float]:
    """Call two programs in turns, and from two threads where they say that they may be.

    Returns:
        How far the worst answer is from the one that a program gave alone, for each way.
    """
    first, second = programs
    right = [taken(first(**inputs)) for inputs in given]

    def worst_of(turns: Iterator[tuple[Program, int]]) -> float:
        misses = (miss(taken(p(**_copied(given[i]))), right[i]) for p, i in turns)
        return max(misses, default=0.0)

    def turns(seed: int, *of: Program) -> Iterator[tuple[Program, int]]:
        random = np.random.default_rng(seed)
        for _ in range(_TOGETHER):
            yield of[int(random.integers(len(of)))], int(random.integers(len(given)))

    found = {"in turns": worst_of(turns(seed, first, second))}
    if first.concurrent and second.concurrent:
        for way, (one, other) in {
            "from two threads": (first, second),
            "from two threads, one program": (first, first),
        }.items():
            with ThreadPoolExecutor(2) as threads:
                asked = [turns(seed + 1, one), turns(seed + 2, other)]
                found[way] = max(threads.map(worst_of, asked))
    return found


def _copied(inputs: Arrays) -> Arrays:
    return {name: array.copy() for name, array in inputs.items()}


def miss(found: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """The largest distance of any output, over the spread of what is right."""
    if found.keys() != right.keys():
        return float("inf")
    return max((_distance(found[name], was) for name, was in right.items()), default=0.0)


def _distance(found: Any, was: Any) -> float:
    if found.shape != was.shape or not np.isfinite(found).all():
        return float("inf")
    spread = float(np.std(was, dtype=np.float64)) or 1.0
    return float(np.abs(found.astype(np.float64) - was).max()) / spread


def resident(torch_device: str | None = None) -> int | None:
    """Bytes that this process holds now, files left out; with those of a CUDA device, of everyone.

    ``None`` where the system does not tell.
    """
    gc.collect()
    return_memory()
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            sizes = dict(line.split(":", 1) for line in file)
        own = sum(int(sizes[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
    except (OSError, ValueError, KeyError):
        return None
    return own + _of_device(torch_device)


def _of_device(torch_device: str | None) -> int:
    torch = sys.modules.get("torch")
    if torch is None or not (torch_device or "").startswith("cuda"):
        return 0
    free, total = torch.cuda.mem_get_info(torch_device)
    return int(total - free)
