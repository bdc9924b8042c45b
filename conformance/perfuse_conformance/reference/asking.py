"""Asks the reference: what is right of a probe, a trial or a picture, and how far PyTorch is from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perfuse.run import DiffusionPipeline
from perfuse.spec import ComponentSpec
from perfuse_conformance.cases.bundle import hash_of
from perfuse_conformance.cases.draws import Draw
from perfuse_conformance.cases.probes import Arrays, Probe, inputs_of
from perfuse_conformance.cases.trials import Trial, probe_for
from perfuse_conformance.judge.metrics import rms, rmse
from perfuse_conformance.judge.verdicts import PICTURE_MEASURES
from perfuse_conformance.reference.draws import run_draw
from perfuse_conformance.reference.pipeline import ReferencePipeline

__all__ = [
    "REFERENCE",
    "ask",
    "ask_draw",
    "ask_trial",
    "errors_of",
    "keep",
    "probe_index",
]

#: The reference where none is named; the torch backend with its device.
REFERENCE = "torch:cpu"
#: How often a draw is repeated with its first noise changed in the last bits, and inputs far from the
#: ordinary.
_NUDGES = 2
#: By how many units in the last place such inputs are changed at most.
_BITS = 8
#: A reference's own error, over what is right, with which nothing can be judged any more.
_LOST = {"float32": 1e-3}
_LOST_HALF = 0.1
#: By how much values are made smaller where it is.
_LESS = 8.0


def ask(
    component: ComponentSpec,
    probe: Probe,
    truth: ReferencePipeline,
    own: Mapping[str, DiffusionPipeline],
    seed: int,
    nudges: int = 0,
) -> tuple[list[Arrays], list[Arrays], dict[str, Any]]:
    """Make the calls of a probe.

    Args:
        component: The component.
        probe: What to ask it.
        truth: The reference in float64.
        own: The reference in each precision.
        seed: Of the inputs.
        nudges: How often inputs are changed in their last bits: the error is then the worst of all.

    Returns:
        The inputs, the outputs in float64, and the entry of a bundle's index.
    """
    calls = inputs_of(component, probe, seed=seed)
    program = truth.program(probe.component)
    program.calls.clear()
    for inputs in calls:
        program(**inputs)
    exact = [outputs for _, outputs in program.calls]
    given = [calls, *([_nudged(call, n) for call in calls] for n in range(nudges))]
    errors = {
        precision: _worst([errors_of(pipe, probe.component, each, exact) for each in given])
        for precision, pipe in own.items()
    }
    meta = probe_index(probe, calls)
    return calls, exact, meta | {"rounds_alike": program.rounds_alike, "errors": errors}


def _nudged(inputs: Arrays, seed: int) -> Arrays:
    """Every number moved by a few last bits, or left; those below one by as many of one.

    What is computed of zeros, or of numbers near them, is as exact as of the ordinary numbers that are
    added to them on the way; and where all are alike, a normalisation enlarges what is rounded in its
    sums, which are of hundreds of numbers.
    """
    random = np.random.Generator(np.random.PCG64(seed))

    def moved(array: Any) -> Any:
        if array.dtype.kind != "f":
            return array
        way = random.integers(-_BITS, _BITS + 1, size=array.shape)
        return array + way.astype(array.dtype) * np.spacing(np.maximum(np.abs(array), 1))

    return {name: moved(array) for name, array in inputs.items()}


def _worst(runs: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """The largest error of each output and call; NaN where one is."""
    return {name: np.max([run[name] for run in runs], axis=0).tolist() for name in runs[0]}


def ask_trial(
    trial: Trial,
    name: str,
    id: str,
    truth: ReferencePipeline,
    own: Mapping[str, DiffusionPipeline],
) -> tuple[Trial, list[Arrays], list[Arrays], dict[str, Any]]:
    """Make a trial's call.

    Values that PyTorch itself is lost with, at one of these precisions, are made smaller.

    Returns:
        The trial as it was asked, and what ``ask`` returns.
    """
    component = truth.spec.components[name]
    while True:
        probe = probe_for(truth.spec, component, trial, id)
        nudges = _NUDGES if trial.scale != 1 else 0
        calls, exact, meta = ask(component, probe, truth, own, trial.numbers, nudges)
        meta |= {"trial": str(trial), "far": trial.scale != 1}
        if trial.scale == 1 or not _lost(exact, meta["errors"]):
            return trial, calls, exact, meta
        trial = replace(trial, scale=max(trial.scale / _LESS, 1.0))


def _lost(exact: Sequence[Arrays], errors: Mapping[str, Mapping[str, Sequence[float]]]) -> bool:
    """Whether the reference's own error says that nothing is left of what is right."""
    return any(
        not error <= _LOST.get(precision, _LOST_HALF) * rms(call[name])  # NaN is not
        for precision, by_output in errors.items()
        for name, row in by_output.items()
        for error, call in zip(row, exact, strict=True)
        if error != 0
    )


def probe_index(probe: Probe, calls: list[Arrays]) -> dict[str, Any]:
    return {
        "component": probe.component,
        "manner": probe.manner,
        "dims": dict(probe.dims),
        "calls": len(calls),
        "sha256": hash_of(_flat(calls)),
    }


def _flat(calls: list[Arrays]) -> Arrays:
    return {f"{i}/{name}": array for i, call in enumerate(calls) for name, array in call.items()}


def keep(tensors: dict[str, Any], probe: str, calls: list[Arrays], exact: list[Arrays]) -> None:
    """Put the inputs and outputs of a probe among a bundle's tensors."""
    for i, (inputs, outputs) in enumerate(zip(calls, exact, strict=True)):
        tensors.update({f"{probe}/{i}/in/{name}": array for name, array in inputs.items()})
        tensors.update({f"{probe}/{i}/out/{name}": array for name, array in outputs.items()})


def errors_of(
    pipe: DiffusionPipeline, component: str, calls: list[Arrays], exact: list[Arrays]
) -> dict[str, list[float]]:
    """The reference's own RMSE in a precision, by output, for each call."""
    program = pipe.program(component)
    errors: dict[str, list[float]] = {name: [] for name in exact[0]}
    for inputs, outputs in zip(calls, exact, strict=True):
        found = program(**inputs)
        for name, array in outputs.items():
            errors[name].append(rmse(np.asarray(found[name]), array))
    return errors


def ask_draw(
    draw: Draw, truth: ReferencePipeline, own: Mapping[str, DiffusionPipeline]
) -> tuple[Arrays, list[tuple[Arrays, Arrays]], dict[str, Any]]:
    """Draw a picture with the reference.

    Returns:
        Its latents and images, the denoiser's calls, and the entry of a bundle's index.
    """
    program = truth.program(truth.spec.denoiser.name)
    program.calls.clear()
    drawn = run_draw(truth, draw)
    meta = {
        "inputs": json.loads(json.dumps(dict(draw.inputs))),
        "steps": len(drawn["latents"]),
        **_own_errors(own, draw, drawn),
    }
    return drawn, list(program.calls), meta


def _own_errors(
    own: Mapping[str, DiffusionPipeline], draw: Draw, truth: Arrays
) -> dict[str, dict[str, Any]]:
    """What the reference itself misses by in each precision: the worst of it as it is and nudged.

    ``errors`` of the latents, a step; and ``pictures``, the measures of the worst picture.
    """
    errors, pictures = {}, {}
    for precision, pipe in own.items():
        # In half precision the rounding of every step is more than a last bit of the first noise.
        nudges = range(_NUDGES) if precision == "float32" else ()
        runs = [run_draw(pipe, draw, nudge=nudge) for nudge in (None, *nudges)]
        errors[precision] = [
            max(rmse(run["latents"][step], exact) for run in runs)
            for step, exact in enumerate(truth["latents"])
        ]
        pairs = [pair for run in runs for pair in zip(run["images"], truth["images"], strict=True)]
        pictures[precision] = {
            name: worst(measure(*pair) for pair in pairs)
            for name, (measure, worst) in PICTURE_MEASURES.items()
        }
    return {"errors": errors, "pictures": pictures}
