"""Runs a few cases by their ids, for an author who is repairing one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from perfuse.errors import InputError
from perfuse_conformance.cases.catalogue import Case
from perfuse_conformance.cases.trials import Trial
from perfuse_conformance.judge.results import Result
from perfuse_conformance.report.presentation import (
    call_said,
    log_said,
    metric_label,
    metric_said,
    used_of_limit,
)
from perfuse_conformance.runner.session import open_session

__all__ = ["judge_single", "lines_of"]


def judge_single(target: str, ids: Sequence[str], **settings: Any) -> list[Result]:
    """The results of some cases of a backend. They grant no level.

    Args:
        target: ``"openvino:CPU"``.
        ids: As in a report: ``"component/unet/float32/static/late"``.
        settings: Those of ``open_session``.

    Raises:
        InputError: the backend has no such case at this level.
    """
    session = open_session(target, **settings)
    try:
        cases = {case.id: case for case in session.cases()}
        for id in ids:
            if id.partition(":")[0] not in cases:
                near = get_close_matches(id, cases, n=3) or [f"{len(cases)} others"]
                raise InputError(
                    f"Case {id!r} was asked for; for {target} at level {session.level} there is "
                    f"{', '.join(near)}. Ids are those of a report; --level may have to be higher."
                )
        return [session.judge(_case(cases, id)) for id in ids]
    finally:
        session.close()


def _case(cases: Mapping[str, Case], id: str) -> Case:
    """The case of an id. Behind a colon a trial's says what to ask, whatever a seed draws."""
    name, colon, trial = id.partition(":")
    if not colon:
        return cases[name]
    if cases[name].kind != "trial":
        raise InputError(
            f"Case {id!r} was asked for; {name} is no trial. Leave {colon}{trial} out."
        )
    return replace(cases[name], id=id, trials=(Trial.parse(trial),))


def lines_of(result: Result) -> list[str]:
    """A result for a terminal: its status, its reason, its numbers."""
    lines = [f"{result.status}  {result.id}"]
    if result.reason:
        lines.append(f"  {result.reason}")
    for metric in result.metrics:
        used = "" if metric.used is None else f", {used_of_limit(metric.used)}"
        lines.append(f"  {metric_label(metric.name)} {metric_said(metric)}{used}")
    where = " ".join(filter(None, (call_said(result), result.worst_output)))
    if where:
        lines.append(f"  worst at {where}")
    if result.curve:
        steps = " ".join("NaN" if v is None else f"{v:.3g}" for v in result.curve)
        lines.append(f"  error over the limit, call by call: {steps}")
    if result.rerun and result.status.failed:
        lines.append(f"  again: {result.rerun}")
    return lines + [f"  | {line}" for line in log_said(result.log).splitlines()]
