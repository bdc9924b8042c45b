"""A denoising step through perfuse and through the tools people use, on the same engine.

Each is a process of its own; they take steps in turns. A step is two predictions of the UNet, for
classifier-free guidance, and what the host does between. What is compared is the processor's time, the
least of the rounds: other work on the machine hardly changes that. Peers other than Diffusers have
environments of their own (environments.py).
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import models
import numpy as np
from environments import NoEnvironmentError
from sidebyside import Row, command, say

_GB = 1e9
_BYTES = {"float32": 4, "bfloat16": 2}
#: The most memory that a step may take, in weights of what runs: text encoders and UNet.
_WEIGHTS = 1.4
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is drawn, and how often."""

    model: Callable[..., Path]
    title: str
    size: int
    precision: str
    rounds: int


CASES = {
    "sd15-512-float32": Case(
        model=models.sd15, title="an SD-1.5-sized model", size=512, precision="float32", rounds=3
    ),
    "sd15-512-bfloat16": Case(
        model=models.sd15, title="an SD-1.5-sized model", size=512, precision="bfloat16", rounds=3
    ),
    "sd15-1024-float32": Case(
        model=models.sd15, title="an SD-1.5-sized model", size=1024, precision="float32", rounds=1
    ),
    "sd15-1024-bfloat16": Case(
        model=models.sd15, title="an SD-1.5-sized model", size=1024, precision="bfloat16", rounds=1
    ),
    "sdxl-512-float32": Case(
        model=models.sdxl, title="an SDXL-sized model", size=512, precision="float32", rounds=2
    ),
    "sdxl-512-bfloat16": Case(
        model=models.sdxl, title="an SDXL-sized model", size=512, precision="bfloat16", rounds=2
    ),
    "sdxl-1024-float32": Case(
        model=models.sdxl, title="an SDXL-sized model", size=1024, precision="float32", rounds=1
    ),
    "sdxl-1024-bfloat16": Case(
        model=models.sdxl, title="an SDXL-sized model", size=1024, precision="bfloat16", rounds=1
    ),
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool beside perfuse: on which of its engines, in which environment."""

    name: str
    backend: str
    #: Empty for perfuse's own.
    environment: str = ""
    precisions: tuple[str, ...] = ("float32", "bfloat16")


#: ONNX Runtime's CPU has no bfloat16.
PEERS = (
    Peer(name="Diffusers", backend="torch:cpu"),
    Peer(
        name="optimum-onnx",
        backend="onnxruntime:cpu",
        environment="optimum-onnx",
        precisions=("float32",),
    ),
    Peer(name="optimum-intel", backend="openvino:CPU", environment="openvino"),
    Peer(name="OpenVINO GenAI", backend="openvino:CPU", environment="openvino"),
)


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--case", choices=CASES, default=next(iter(CASES)))
    parser.add_argument("--peer", choices=[peer.name for peer in PEERS], default=PEERS[0].name)
    parser.add_argument("--threads", type=int, default=_cores(), help="of each engine")


def comparisons() -> tuple[tuple[str, str], ...]:
    """Every case with every peer that can run it, by name."""
    return tuple(
        (name, peer.name)
        for name, case in CASES.items()
        for peer in PEERS
        if case.precision in peer.precisions
    )


def measure(options: Namespace) -> list[Row]:
    case = CASES[options.case]
    checkpoint = case.model(options.work, quick=options.quick)
    peer = next(peer for peer in PEERS if peer.name == options.peer)
    try:
        return _beside(peer, case, checkpoint, options)
    except NoEnvironmentError as exc:
        say(f"without {peer.name}: {exc}")
        return []


def _beside(peer: Peer, case: Case, checkpoint: Path, options: Namespace) -> list[Row]:
    interpreter, model = Path(sys.executable), checkpoint
    if peer.environment:
        interpreter = environments.python(peer.environment)
        model = environments.exported(peer.environment, checkpoint, options.work)
    mine = _model(peer.backend, case.precision, checkpoint, options.work)
    say(f"{peer.backend} beside {peer.name}")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        job = {
            "backend": peer.backend,
            "precision": case.precision,
            "size": 256 if options.quick else case.size,
            "threads": options.threads,
        }
        ours = Contestant(Path(sys.executable), {**job, "kind": "perfuse", "model": mine}, folder)
        theirs = Contestant(interpreter, {**job, "kind": peer.name, "model": model}, folder)
        _take_turns((ours, theirs), options.rounds or case.rounds, _weights(checkpoint))
        difference = _difference(ours.latents, theirs.latents)
    title = "the middle model" if options.quick else case.title
    what = f"{title}, {job['size']}², {case.precision}, {peer.backend}"
    weights = _ran(checkpoint) * _BYTES[case.precision] / _BYTES["float32"]
    return [
        Row(
            what=f"Processor's time of a step, {what}",
            ours=min(ours.cpu),
            theirs=min(theirs.cpu),
            unit="s",
            against=peer.name,
            figure=min(ours.cpu) / min(theirs.cpu),
            target=1.0,
            note=f"{options.threads} threads; {min(ours.wall):.1f} and {min(theirs.wall):.1f} s by "
            f"the clock. The latents after a step differ by {difference:.1g} of their deviation.",
        ),
        Row(
            what=f"Peak memory, {what}",
            ours=ours.memory["peak"] / _GB,
            theirs=theirs.memory["peak"] / _GB,
            unit="GB",
            against=peer.name,
            figure=ours.memory["peak"] / weights,
            target=None if options.quick else _WEIGHTS,
            note=f"The figure is perfuse's over the weights of what ran, {weights / _GB:.2f} GB. "
            "Pages of mapped files count.",
        ),
        Row(
            what=f"Memory that a step needs, {what}",
            ours=ours.memory["needed"] / _GB,
            theirs=theirs.memory["needed"] / _GB,
            unit="GB",
            against=peer.name,
            figure=ours.memory["needed"] / weights,
            target=None if options.quick else _WEIGHTS,
            note="Without pages of files that no step reads, which the system may take back; "
            f"{ours.memory['own'] / _GB:.2f} and {theirs.memory['own'] / _GB:.2f} GB are no file's.",
        ),
    ]


class Contestant:
    """A process that takes a step when told to (contestant.py)."""

    def __init__(self, interpreter: Path, job: dict[str, Any], folder: str) -> None:
        self.name = job["kind"]
        self.latents = Path(folder) / f"{self.name}.npy"
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.memory: dict[str, int] = {}
        self._interpreter = interpreter
        self._job = {**job, "model": str(job["model"]), "latents": str(self.latents)}
        self._file = Path(folder) / f"{self.name}.json"

    def start(self, steps: int) -> None:
        """Load and take the step that warms up."""
        self._file.write_text(json.dumps({**self._job, "steps": steps + 1}), encoding="utf-8")
        own = self._interpreter == Path(sys.executable)
        threads = {"OMP_NUM_THREADS": str(self._job["threads"])}
        self._child = subprocess.Popen(
            [str(self._interpreter), str(HERE / "contestant.py"), str(self._file)],
            env={**os.environ, **threads} if own else environments.variables(**threads),
            start_new_session=True,  # an engine gets the processor's time that a program of its own has
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._answer()

    def step(self) -> None:
        self._go()
        took = self._answer()
        self.wall.append(took["wall"])
        self.cpu.append(took["cpu"])

    def finish(self) -> None:
        """See the process end, keeping the largest of its memory."""
        found = self._answer()
        self._child.wait()
        self.memory = {name: max(size, self.memory.get(name, 0)) for name, size in found.items()}

    def _go(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("step\n")
        self._child.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._child.wait()}.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _take_turns(sides: Sequence[Contestant], rounds: int, weights: int) -> None:
    """Steps in turns; where memory does not hold all sides, a process at a time, there and back."""
    if _available() > 6 * weights:
        for side in sides:
            side.start(rounds)
        for number in range(rounds):
            for side in sides if number % 2 == 0 else sides[::-1]:
                side.step()
        for side in sides:
            side.finish()
        return
    say("one at a time: not enough memory for both")
    for side in (*sides, *sides[::-1])[: 2 * len(sides) if rounds > 1 else len(sides)]:
        steps = (rounds + 1) // 2
        side.start(steps)
        for _ in range(steps):
            side.step()
        side.finish()


def _model(backend: str, precision: str, checkpoint: Path, work: Path) -> Path:
    to = {"torch:cpu": None, "onnxruntime:cpu": "onnx", "openvino:CPU": "openvino"}[backend]
    return checkpoint if to is None else models.exported(checkpoint, to, work, precision)


def _weights(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*/*.safetensors"))


def _ran(checkpoint: Path) -> int:
    """The bytes of what a step needs: all but the autoencoder."""
    return _weights(checkpoint) - sum(
        p.stat().st_size for p in checkpoint.glob("vae/*.safetensors")
    )


def _difference(ours: Path, theirs: Path) -> float:
    """The largest difference of the latents, in standard deviations, to see that the work is the same."""
    a, b = np.load(ours), np.load(theirs)
    return float(np.abs(a - b).max() / b.std())


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    command(measure, __doc__, options)
