"""Measures a backend on a pipeline that runs through Diffusers: its modules' calls, and what it draws.

The calls are those that the pipeline itself makes. Each is answered by the backend and by PyTorch, from
the same inputs; afterwards a weight of each module is changed, and the next answer must follow.
"""

import datetime
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import perfuse
from perfuse import ArtifactStore, DiffusionPipeline
from perfuse.backend import Target
from perfuse.bridge import call_by_name, inputs_of
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.sources import scratch_folder, tool_versions
from perfuse_conformance import SUITE_VERSION
from perfuse_conformance.cases.models import path_of
from perfuse_conformance.judge import metrics
from perfuse_conformance.judge.results import Claim, Metric, Result, Run, Status
from perfuse_conformance.judge.tolerances import Tolerances

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["run_bridged"]

#: The least signal-to-noise ratio of a call's answer, and the least peak ratio of what is drawn (2 of 255
#: is 42 dB), by precision.
_LIMITS = {"float32": (60.0, 42.0), "float16": (30.0, 30.0), "bfloat16": (20.0, 20.0)}
_PROFILE = ("bridged",)
#: What is drawn where nothing else is asked for.
_USUAL: Mapping[str, Any] = {"prompt": "a red circle", "num_inference_steps": 2}
#: Arguments that are pictures, and that a pipeline may need.
_PICTURES = ("image", "control_image", "mask_image", "images", "video")


@dataclass(kw_only=True)
class _Spy:
    """Takes a stand-in's place, and asks PyTorch what the backend was asked."""

    stand_in: Any
    ratios: list[float] = field(default_factory=list)
    #: The arguments of the last call.
    last: tuple[Sequence[Any], Mapping[str, Any]] | None = None
    #: Part of the module's description, as a stand-in is not.
    stands_in: bool = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.stand_in(*args, **kwargs)
        self.last = (args, kwargs)
        self.ratios.append(_ratio(answer, self.stand_in.original(*args, **kwargs)))
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stand_in, name)


def run_bridged(
    target: str,
    *,
    model: str,
    level: str = "L2",
    arguments: Mapping[str, Any] | None = None,
    precision: str | None = None,
    options: Mapping[str, str] | None = None,
    transforms: Sequence[str] = (),
    seed: int = 0,
    command: str = "",
    watch: Callable[[Result], None] = lambda result: None,
) -> Run:
    """Measure a backend on a pipeline of Diffusers.

    Args:
        target: ``"openvino:CPU"``.
        model: A checkpoint's folder or Hub id, or one of ``RANDOM_MODELS``.
        level: ``"L1"`` for the modules' calls; ``"L2"`` for what is drawn, too.
        arguments: Of the pipeline's call; by default a prompt, two steps, and pictures of noise where
            it needs pictures.
        precision: Of the backend; by default that of the weights.
        options: Of the backend.
        transforms: As ``perfuse.accelerate`` takes them.
        seed: Of the noise.
        command: The command line, for the record.
        watch: Is told each result as it comes.

    Raises:
        InputError: the pipeline cannot be called with the arguments.
        CheckpointError: Diffusers cannot open the model.
        BackendError: the backend is unknown, or its engine is not installed.
    """
    pipe: Any = DiffusionPipeline.from_pretrained(path_of(model), bridged=True)
    pipe.set_progress_bar_config(disable=True)
    inputs = _inputs(pipe, arguments or {}, seed)
    expected = _drawn(pipe, inputs, seed)
    results: list[Result] = []

    def say(result: Result) -> None:
        results.append(result)
        watch(result)

    with scratch_folder("perfuse-conformance-") as folder:
        store = ArtifactStore(folder)
        perfuse.accelerate(
            pipe, target, precision=precision, store=store, options=options, transforms=transforms
        )
        with _spying(pipe) as spies:
            found = _drawn(pipe, inputs, seed)
        asked = precision if precision is not None else "float32"
        for name, spy in spies.items():
            if spy.last is not None:
                say(_called(name, spy, asked))
            if spy.last is not None and spy.tally.calls:
                say(_changed(name, spy, asked))
        if level != "L1":
            say(_picture(found, expected, asked))
        pipe.perfuse.restore()
    return _run(target, model, level, command, results)


def _inputs(pipe: Any, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    takes = inputs_of(pipe)
    if unknown := [name for name in given if name not in takes]:
        raise InputError(
            f"{', '.join(unknown)} was given; {type(pipe).__name__} takes {', '.join(takes)}."
        )
    found = {name: value for name, value in _USUAL.items() if name in takes}
    found |= {n: _noise(seed) for n in _PICTURES if n in takes and takes[n] is None}
    if "output_type" in takes:
        found["output_type"] = "np"
    return found | dict(given)


def _noise(seed: int) -> Any:
    from PIL import Image

    values = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    return Image.fromarray(values)


def _drawn(pipe: Any, inputs: Mapping[str, Any], seed: int) -> list[Any]:
    """What a pipeline makes, as arrays."""
    import torch

    own: dict[str, Any] = {}
    if "generator" in inputs_of(pipe):
        own["generator"] = torch.Generator("cpu").manual_seed(seed)
    torch.manual_seed(seed)
    try:
        with torch.no_grad():
            return _arrays(call_by_name(pipe, {**inputs, **own}))
    except (TypeError, ValueError) as exc:
        raise InputError(
            f"{type(pipe).__name__} was called with {', '.join(inputs)}; it raised "
            f"{type(exc).__name__}: {exc}. Give other arguments: --arg NAME=VALUE."
        ) from exc


def _arrays(value: Any) -> list[Any]:
    """The numbers in an answer, in the order in which they stand."""
    from torch.utils import _pytree as pytree

    arrays = []
    for leaf in pytree.tree_leaves(dict(value) if hasattr(value, "to_tuple") else value):
        inner = getattr(leaf, "parameters", leaf)  # an autoencoder's distribution
        if hasattr(inner, "detach"):
            arrays.append(inner.detach().float().cpu().numpy())
        elif isinstance(inner, np.ndarray) or hasattr(inner, "getbands"):
            arrays.append(np.asarray(inner, np.float32))
    return arrays


def _ratio(answer: Any, truth: Any) -> float:
    """The signal-to-noise ratio of the worst tensor of an answer, in decibels."""
    ours, true = _arrays(answer), _arrays(truth)
    if [one.shape for one in ours] != [one.shape for one in true]:
        return -metrics.DB_CAP
    return min(
        (metrics.snr_db(a, b) for a, b in zip(ours, true, strict=True)), default=metrics.DB_CAP
    )


@contextmanager
def _spying(pipe: Any) -> Iterator[dict[str, _Spy]]:
    spies: dict[str, _Spy] = {}
    for module in pipe.components.values():
        for entry, value in list(getattr(module, "__dict__", {}).items()):
            if getattr(value, "stands_in", False):
                spies[value.name] = _Spy(stand_in=value)
                setattr(module, entry, spies[value.name])
    try:
        yield spies
    finally:
        for spy in spies.values():
            setattr(spy.module, spy.entry, spy.stand_in)


def _result(id: str, name: str | None, precision: str, level: str, **rest: Any) -> Result:
    return Result(
        id=id, level=level, profiles=_PROFILE, component=name, precision=precision, **rest
    )


def _called(name: str, spy: _Spy, precision: str) -> Result:
    """The result of all calls of a module that the pipeline made."""
    limit, _ = _LIMITS[precision]
    id = f"bridged/{name}/{precision}/called"
    worst = int(np.argmin(spy.ratios))
    metric = Metric(name="snr_db", value=spy.ratios[worst], limit=limit, bound="min")
    told = {"metrics": (metric,), "worst_call": worst}
    if spy.tally.torch_calls:
        return _result(
            id,
            name,
            precision,
            "L1",
            status=Status.PASS_FALLBACK,
            reason_code="stayed-on-torch",
            reason="; ".join(spy.tally.reasons),
            fallbacks=("torch",),
            **told,
        )
    if not metric.fits:
        reason = f"call {worst + 1} of {len(spy.ratios)}: {metric.value:.1f} dB of PyTorch's answer"
        return _result(
            id,
            name,
            precision,
            "L1",
            status=Status.FAIL_MISMATCH,
            reason_code="mismatch",
            reason=reason,
            **told,
        )
    return _result(id, name, precision, "L1", status=Status.PASS, **told)


def _changed(name: str, spy: _Spy, precision: str) -> Result:
    """Change a weight, and see whether the next answer follows."""
    import torch

    assert spy.last is not None
    args, kwargs = spy.last
    id, limit = f"bridged/{name}/{precision}/changed", _LIMITS[precision][0]
    with torch.no_grad():
        before = spy.original(*args, **kwargs)
        weight = _weight_that_matters(spy, before)
        if weight is None:
            return _result(
                id,
                name,
                precision,
                "L1",
                status=Status.NOT_RUN,
                reason_code="no-weight",
                reason="no weight changes its answer",
            )
        weight.data.mul_(1.5)
        spy.stand_in.suspect = True  # as at the beginning of a call of the pipeline
        truth = spy.original(*args, **kwargs)
        answer = spy.stand_in(*args, **kwargs)
        weight.data.div_(1.5)
        spy.stand_in.suspect = True
    metric = Metric(name="snr_db", value=_ratio(answer, truth), limit=limit, bound="min")
    stale = not metric.fits
    return _result(
        id,
        name,
        precision,
        "L1",
        status=Status.FAIL_MISMATCH if stale else Status.PASS,
        reason_code="stale" if stale else "",
        reason="a weight was changed, and the next answer did not follow" if stale else "",
        metrics=(metric,),
    )


def _weight_that_matters(spy: _Spy, before: Any) -> "Tensor | None":
    """The first of a module's weights whose change its answer shows."""
    module: nn.Module = spy.module
    for weight in module.parameters():
        if not weight.is_floating_point() or not bool(weight.data.any()):
            continue
        weight.data.mul_(1.5)
        assert spy.last is not None
        after = spy.original(*spy.last[0], **spy.last[1])
        weight.data.div_(1.5)
        if _ratio(after, before) < 40.0:
            return weight
    return None


def _picture(found: Sequence[Any], expected: Sequence[Any], precision: str) -> Result:
    """The result of what was drawn beside what PyTorch draws."""
    ratios = [-metrics.DB_CAP]
    if [one.shape for one in found] == [one.shape for one in expected]:
        ratios = [_peak(a, b) for a, b in zip(found, expected, strict=True)]
    metric = Metric(name="psnr_db", value=min(ratios), limit=_LIMITS[precision][1], bound="min")
    right = metric.fits
    return _result(
        f"bridged/pipeline/{precision}/drawn",
        None,
        precision,
        "L2",
        status=Status.PASS if right else Status.FAIL_MISMATCH,
        reason_code="" if right else "mismatch",
        reason="" if right else f"{metric.value:.1f} dB of what PyTorch draws",
        metrics=(metric,),
    )


def _peak(ours: Any, true: Any) -> float:
    """The peak signal-to-noise ratio, in decibels, of arrays of any shape."""
    peak = float(np.abs(true).max()) or 1.0
    error = metrics.rmse(ours / peak, true / peak)
    return metrics.DB_CAP if error == 0 else min(-20 * float(np.log10(error)), metrics.DB_CAP)


def _claim(results: Sequence[Result], level: str) -> Claim:
    granted, blockers = "none", []
    for one in ("L1", "L2"):
        if one > level:
            break
        own = [result for result in results if result.level == one]
        ran = [result for result in own if result.status is Status.PASS]
        # A module without a weight that matters cannot be changed.
        stand = [r.id for r in own if not (r.status.counts or r.status is Status.NOT_RUN)]
        if stand or not ran:
            blockers = stand or [f"no case of {one} was executed"]
            break
        granted = one
    profiles = _PROFILE if granted != "none" else ()
    return Claim(level=granted, profiles=profiles, blockers=tuple(blockers))


def _run(target: str, model: str, level: str, command: str, results: Sequence[Result]) -> Run:
    import diffusers
    import torch

    parsed, tolerances = Target.parse(target), Tolerances.load()
    row = host().brought_by(parsed.backend)
    return Run(
        suite={
            "version": SUITE_VERSION,
            "tolerances": tolerances.version,
            "tolerances_sha256": tolerances.sha256,
        },
        run={
            "id": uuid.uuid4().hex,
            "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "level": level,
            "command": command,
            "model": model,
            "reference": f"Diffusers {diffusers.__version__}, torch {torch.__version__}",
        },
        host={
            "os": platform.platform(),
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "packages": tool_versions(
                (
                    "perfuse",
                    "torch",
                    "numpy",
                    "diffusers",
                    "transformers",
                    "onnxruntime",
                    "openvino",
                )
            ),
        },
        backend={
            "target": str(parsed),
            "distribution": row.distribution if row is not None else "?",
            "version": row.version if row is not None else "?",
            "engine": parsed.backend,
            "device": parsed.device or "",
            "description": "",
            "interprets": host().backends()[parsed.backend].interprets,
        },
        capabilities={},
        claim=_claim(results, level),
        results=tuple(results),
    )
