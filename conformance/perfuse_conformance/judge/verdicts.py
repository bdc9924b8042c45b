"""Judges results: compares a worker's answers with a bundle's truth, by the suite's limits."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfuse.backend import PRECISIONS
from perfuse.spec import Signature
from perfuse_conformance.cases.bundle import Bundle
from perfuse_conformance.cases.catalogue import Case
from perfuse_conformance.cases.probes import Arrays
from perfuse_conformance.judge import metrics
from perfuse_conformance.judge.results import Metric, Result, Status
from perfuse_conformance.judge.tolerances import Limit, Tolerances

__all__ = [
    "PICTURE_MEASURES",
    "Measured",
    "begin",
    "fail",
    "judge_calls",
    "judge_draw",
    "judge_same",
    "raised",
]

#: From this share of a limit on, a pass is a warning.
_WARN = 0.5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The worst of several measurements, and where it was."""

    metrics: tuple[Metric, ...]
    curve: tuple[float | None, ...] = ()
    worst_call: int | None = None
    worst_output: str | None = None


def begin(case: Case, bundle: Bundle | None) -> Result:
    """A result with the fields of its case filled in."""
    sha = ""
    if bundle is not None and case.subject in bundle.index["probes"]:
        sha = str(bundle.index["probes"][case.subject]["sha256"])
    return Result(
        id=case.id,
        level=case.level,
        profiles=case.profiles,
        status=Status.NOT_RUN,
        component=case.component,
        precision=case.precision,
        input_sha256=sha,
    )


def fail(result: Result, status: Status, code: str, reason: str) -> Result:
    return replace(result, status=status, reason_code=code, reason=reason)


def raised(result: Result, error: Mapping[str, Any]) -> Result:
    """The result of a case that raised, by the class of the exception."""
    said = f"{error['type']}: {error['message']}"
    if not error["ours"]:
        code = "system-exit" if error["type"] == "SystemExit" else "foreign-exception"
        return fail(
            result,
            Status.FAIL_CONTRACT if code == "system-exit" else Status.FAIL_RUN,
            code,
            f"raised {said}; a backend raises perfuse's own errors",
        )
    bases = error["bases"]
    if "UnsupportedError" in bases:
        return fail(
            result, Status.FAIL_COMPILE, "over-declared", f"declared, and then refused: {said}"
        )
    if "ExportError" in bases or "ArtifactError" in bases:
        return fail(result, Status.FAIL_COMPILE, "not-lowered", said)
    if "PluginError" in bases:
        return fail(result, Status.FAIL_CONTRACT, "breaks-contract", said)
    if "DeviceNotFoundError" in bases or "EngineMissingError" in bases:
        return fail(result, Status.ENV_MISSING, "not-here", said)
    return fail(result, Status.FAIL_RUN, "failed", said)


# One component's calls


def judge_calls(
    result: Result,
    case: Case,
    answer: Mapping[str, Any],
    found: Sequence[Arrays],
    bundle: Bundle,
    signature: Signature,
    tolerances: Tolerances,
) -> Result:
    """The verdict on the calls of a probe."""
    assert case.subject is not None and case.precision is not None
    result = _executed(result, answer)
    truth = [bundle.truth(case.subject, i) for i in range(len(found))]
    problem = _shape_problem(result, answer["notes"], found, truth, signature)
    if problem is not None:
        return problem
    kind = "forced" if case.kind == "forced" else "component"
    precision = _held_to(result, case)
    meta = bundle.index["probes"][case.subject]
    errors = meta["errors"]
    own = errors.get(precision) or errors.get(case.precision)
    limits = tolerances.limits(kind, precision)
    if meta.get("far", False):
        limits = _limits_of_far(kind, precision, tolerances)
    measured = _measure(found, truth, own, limits)
    result = _with(result, measured)
    if not answer["is_torch"] and own is not None and not meta.get("rounds_alike", False):
        answer = {**answer, "pytorch_s_own": _identical(found, truth, own)}
    if case.subject.endswith("/same-twice"):
        again = _same(found, own, tolerances.limits("repeat", precision))
        result = replace(result, metrics=(*result.metrics, *again))
        if not all(metric.fits for metric in again):
            return fail(
                result,
                Status.FAIL_MISMATCH,
                "not-repeatable",
                "the same inputs gave other outputs the second time: "
                + _told(again, result.worst_output),
            )
    return _verdict(result, case, answer)


def _limits_of_far(kind: str, precision: str, tolerances: Tolerances) -> tuple[Limit, ...]:
    """The limits for values out of the ordinary: the signal to noise that is asked of halves.

    Where all values are alike, normalisations divide by what rounding left in their sums, and every
    engine sums otherwise: ONNX Runtime keeps 67 dB of a grey picture, PyTorch 126.
    """
    coarser = max(precision, "float16", key=PRECISIONS.index)
    return tuple(one for one in tolerances.limits(kind, coarser) if one.metric == "snr_db")


def _held_to(result: Result, case: Case) -> str:
    """The precision by whose limits a case is judged: the one asked for, or a coarser one that ran
    and was declared as a fallback. Weights that were rounded to it stay rounded in a finer one."""
    asked, ran = str(case.precision), result.executed_precision
    if result.fallbacks and ran in PRECISIONS:
        return max(asked, ran, key=PRECISIONS.index)
    return asked


def _shape_problem(
    result: Result,
    notes: Sequence[str],
    found: Sequence[Arrays],
    truth: Sequence[Arrays],
    signature: Signature,
) -> Result | None:
    """Gate A: names, shapes, dtypes, finite; and nothing done to the inputs."""
    wrong = [note for note in notes if not note.startswith("inputs-overwritten")]
    if wrong:
        code, _, what = wrong[0].partition(": ")
        return fail(result, Status.FAIL_CONTRACT, code, what)
    for i, (arrays, exact) in enumerate(zip(found, truth, strict=True)):
        if set(arrays) != set(signature.output_names):
            return fail(
                result,
                Status.FAIL_CONTRACT,
                "wrong-names",
                f"call {i + 1} returned {', '.join(arrays) or 'nothing'}; the signature has "
                f"{', '.join(signature.output_names)}",
            )
        for name, array in arrays.items():
            if array.shape != exact[name].shape:
                return fail(
                    result,
                    Status.FAIL_CONTRACT,
                    "wrong-shape",
                    f"call {i + 1} returned {name} of shape {array.shape}, not {exact[name].shape}",
                )
            if array.dtype != np.float32:
                return fail(
                    result,
                    Status.FAIL_CONTRACT,
                    "wrong-dtype",
                    f"call {i + 1} returned {name} as {array.dtype}, not float32",
                )
            if not np.isfinite(array).all():
                count = int(np.count_nonzero(~np.isfinite(array)))
                return fail(
                    result,
                    Status.FAIL_NONFINITE,
                    "not-finite",
                    f"call {i + 1}: {count} of {array.size} numbers of {name} are NaN or infinite",
                )
    overwritten = [note for note in notes if note.startswith("inputs-overwritten")]
    if overwritten:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "inputs-overwritten",
            overwritten[0].partition(": ")[2] + "; a program never writes to its inputs",
        )
    return None


def _measure(
    found: Sequence[Arrays],
    truth: Sequence[Arrays],
    own: Mapping[str, Sequence[float]] | None,
    limits: Iterable[Limit],
) -> Measured:
    """Every judged metric at its worst over calls and outputs."""
    worst: dict[str, tuple[float, Metric, int, str]] = {}
    curve: list[float | None] = []
    limits = tuple(limits)
    for i, (arrays, exact) in enumerate(zip(found, truth, strict=True)):
        step: float | None = None
        for name, array in arrays.items():
            for limit in limits:
                error = own[name][i] if own else None
                reached = {"snr_db": _snr_db(exact[name], error)} if error else {}
                value = _value(limit, array, exact[name], error)
                metric = _widened(limit, reached).measured(value)
                share = _used(metric)
                if limit.metric == "rmse_ratio":
                    step = max(step or 0.0, share)
                if limit.metric not in worst or share > worst[limit.metric][0]:
                    worst[limit.metric] = (share, metric, i, name)
        curve.append(step)
    if not worst:
        return Measured(metrics=())
    _, _, call, output = max(worst.values(), key=lambda item: item[0])
    return Measured(
        metrics=tuple(metric for _, metric, _, _ in worst.values()),
        curve=tuple(curve) if len(curve) > 1 else (),
        worst_call=call,
        worst_output=output,
    )


def _identical(
    found: Sequence[Arrays], truth: Sequence[Arrays], own: Mapping[str, Sequence[float]]
) -> bool:
    """Whether the errors are the reference's to the last bit: another engine sums otherwise."""
    return all(
        metrics.rmse(array, exact[name]) == own[name][i] > 0
        for i, (arrays, exact) in enumerate(zip(found, truth, strict=True))
        for name, array in arrays.items()
    )


def _snr_db(exact: Any, error: float) -> float:
    """The reference's own, from its error."""
    signal = metrics.rms(exact)
    return 20 * math.log10(signal / error) if signal > 0 else 0.0


def _value(limit: Limit, array: Any, exact: Any, own: float | None) -> float:
    if limit.metric == "snr_db":
        return metrics.snr_db(array, exact)
    if own is None:  # the reference has not run this precision: nothing to hold it against
        return math.nan
    return metrics.rmse_ratio(array, exact, reference_rmse=own, floor=limit.floor)


def _used(metric: Metric) -> float:
    """The fraction of its limit that a metric uses; infinite if it could not be computed."""
    if metric.limit is not None and metric.value is None:
        return math.inf
    return metric.used or 0.0


def _same(
    found: Sequence[Arrays],
    own: Mapping[str, Sequence[float]] | None,
    limits: Iterable[Limit],
) -> tuple[Metric, ...]:
    """How far the second and later calls are from the first, over the reference's own error."""
    worst: dict[str, Metric] = {}
    for limit in limits:
        for i, arrays in enumerate(found[1:], 1):
            for name, array in arrays.items():
                first = np.asarray(found[0][name], dtype=np.float64)
                allowed = (own[name][i] if own else 0.0) + limit.floor * metrics.rms(first)
                error = metrics.rmse(array, first)
                metric = limit.measured(error / allowed if error > 0 and allowed > 0 else error)
                metric = replace(metric, name=f"repeat_{limit.metric}")
                if limit.metric not in worst or _used(metric) > _used(worst[limit.metric]):
                    worst[limit.metric] = metric
    return tuple(worst.values())


# Pictures


def judge_draw(
    result: Result,
    case: Case,
    answer: Mapping[str, Any],
    drawn: Arrays,
    bundle: Bundle,
    tolerances: Tolerances,
) -> Result:
    """The verdict on a whole run: its latents step by step, and its pictures, the worst of them."""
    assert case.subject is not None and case.precision is not None
    result = _executed(result, answer)
    truth = bundle.drawn(case.subject)
    for name in ("latents", "images"):
        if drawn[name].shape != truth[name].shape:
            return fail(
                result,
                Status.FAIL_CONTRACT,
                "wrong-shape",
                f"{name} have the shape {drawn[name].shape}, not {truth[name].shape}",
            )
        if not np.isfinite(drawn[name]).all():
            return fail(result, Status.FAIL_NONFINITE, "not-finite", f"{name} hold NaN or infinity")
    for i, (picture, right) in enumerate(zip(drawn["images"], truth["images"], strict=True)):
        if metrics.is_constant(picture) and not metrics.is_constant(right):
            return fail(
                result, Status.FAIL_NONFINITE, "constant-picture", f"picture {i} is one colour"
            )
    precision = _held_to(result, case)
    errors = bundle.index["draws"][case.subject]["errors"]
    own = errors.get(precision) or errors.get(case.precision)
    steps = _measure(
        [{"latents": step} for step in drawn["latents"]],
        [{"latents": step} for step in truth["latents"]],
        {"latents": own} if own else None,
        tolerances.limits("free", precision),
    )
    seen = _pictures(
        drawn["images"],
        truth["images"],
        bundle.index["draws"][case.subject]["pictures"].get(precision, {}),
        tolerances.limits("picture", precision),
    )
    result = _with(result, replace(steps, metrics=(*steps.metrics, *seen)))
    return _verdict(result, case, answer)


def _pictures(
    found: Any, truth: Any, own: Mapping[str, float], limits: Iterable[Limit]
) -> tuple[Metric, ...]:
    """The worst picture by each measure. Where the reference itself is further from the truth than
    a limit, as guidance on a model of random weights makes it in half precision, twice its error is
    the limit."""
    worst: list[Metric] = []
    for limit in limits:
        measure, _ = PICTURE_MEASURES[limit.metric]
        candidates = [
            _widened(limit, own).measured(measure(picture, right))
            for picture, right in zip(found, truth, strict=True)
        ]
        worst.append(max(candidates, key=_used))
    distances = [
        metrics.lpips(picture, right)[0] for picture, right in zip(found, truth, strict=True)
    ]
    known = [distance for distance in distances if distance is not None]
    if known:  # shown, not judged: its weights are not everywhere
        worst.append(Metric(name="lpips", value=max(known)))
    return tuple(worst)


def _widened(limit: Limit, own: Mapping[str, float]) -> Limit:
    """The limit, or twice the reference's own error where that is more."""
    reached = own.get(limit.metric)
    if reached is None:
        return limit
    twice = {
        "snr_db": reached - 20 * math.log10(2),
        "psnr_db": reached - 20 * math.log10(2),
        "ssim": 1 - 2 * (1 - reached),
        "flip": 2 * reached,
    }[limit.metric]
    wider = max if limit.bound == "max" else min
    return replace(limit, limit=wider(limit.limit, twice))


def _flip(picture: Any, right: Any) -> float:
    return metrics.flip(picture, right)[0]


#: Each measure of a picture, and which of several values is the worst.
PICTURE_MEASURES: Mapping[str, tuple[Callable[[Any, Any], float], Callable[..., float]]] = {
    "psnr_db": (metrics.psnr_db, min),
    "ssim": (metrics.ssim, min),
    "flip": (_flip, max),
}


def judge_same(result: Result, first: Arrays, second: Arrays, tolerances: Tolerances) -> Result:
    """The verdict on drawing the same picture twice."""
    assert result.precision is not None
    metrics_ = _same([first, second], None, tolerances.limits("repeat", result.precision))
    result = replace(result, metrics=metrics_)
    if not all(metric.fits for metric in metrics_):
        return fail(
            result,
            Status.FAIL_MISMATCH,
            "not-repeatable",
            "the same seed drew another picture: " + _told(metrics_, None),
        )
    return _graded(result)


# What all verdicts share


def _executed(result: Result, answer: Mapping[str, Any]) -> Result:
    report = answer["report"]
    return replace(
        result,
        executed_precision=report["precision"],
        fallbacks=tuple(answer.get("fallbacks", report["fallbacks"])),
        prepare_s=round(float(answer.get("prepare_s", 0.0)), 4),
        run_s=round(float(answer["run_s"]), 4),
    )


def _with(result: Result, measured: Measured) -> Result:
    return replace(
        result,
        metrics=measured.metrics,
        curve=tuple(None if c is None else round(c, 6) for c in measured.curve),
        worst_call=measured.worst_call,
        worst_output=measured.worst_output,
    )


def _verdict(result: Result, case: Case, answer: Mapping[str, Any]) -> Result:
    """Pass or mismatch by the metrics, then notes on how it ran."""
    if not all(metric.fits for metric in result.metrics):
        where = f" at call {result.worst_call + 1}" if result.worst_call is not None else ""
        return fail(
            result,
            Status.FAIL_MISMATCH,
            "mismatch",
            _told(result.metrics, result.worst_output) + where,
        )
    operators = answer.get("torch_operators") or {}
    if operators and not result.fallbacks:
        counted = ", ".join(f"{name} ×{count}" for name, count in sorted(operators.items()))
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "undeclared-fallback",
            f"the report says {answer['report']['engine']} and no fallback; torch computed {counted}",
        )
    if answer.get("pytorch_s_own") and not result.fallbacks:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "undeclared-fallback",
            f"the report says {answer['report']['engine']} and no fallback; every number is "
            "PyTorch's own to the last bit",
        )
    if result.fallbacks:
        return fail(
            result,
            Status.PASS_FALLBACK,
            "fallback",
            "; ".join(result.fallbacks),
        )
    if result.executed_precision != case.precision:
        return fail(
            result,
            Status.PASS_FALLBACK,
            "other-precision",
            f"ran in {result.executed_precision}, not {case.precision}",
        )
    return _graded(result)


def _graded(result: Result) -> Result:
    share = max((_used(metric) for metric in result.metrics), default=0.0)
    return replace(result, status=Status.QUALITY_WARNING if share > _WARN else Status.PASS)


def _told(metrics_: Iterable[Metric], output: str | None) -> str:
    """The metrics that do not fit, in words."""
    said = []
    for metric in metrics_:
        if metric.fits:
            continue
        value = "not a number" if metric.value is None else f"{metric.value:.4g}"
        word = "at most" if metric.bound == "max" else "at least"
        said.append(f"{metric.name} {value} ({word} {metric.limit:g})")
    return (f"{output}: " if output else "") + ", ".join(said)
