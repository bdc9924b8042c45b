"""Results as JUnit XML, which every continuous integration reads: a suite a run, a case a result."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse.sources import replacing
from perfuse_conformance.judge.results import Result, Run, Status
from perfuse_conformance.report.presentation import LOOKS, metric_said

if TYPE_CHECKING:
    from junitparser import TestCase, TestSuite

__all__ = ["write_junit"]

#: What a report has to mark as not passed, though it is no failure.
_SKIPPED = (
    Status.NOT_SUPPORTED,
    Status.ENV_MISSING,
    Status.NOT_RUN,
    Status.XFAIL,
    Status.WAIVED,
    Status.PASS_FALLBACK,
)
#: XML 1.0 has no way to write these; a log may hold any.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(runs: Sequence[Run], path: Path) -> None:
    """Write the results of runs into one JUnit file; it is whole or absent."""
    from junitparser import JUnitXml

    xml = JUnitXml("perfuse conformance")
    for run in runs:
        xml.add_testsuite(_suite(run))
    with replacing(path) as partial:
        xml.write(str(partial), pretty=True)


def _suite(run: Run) -> "TestSuite":
    from junitparser import TestSuite

    suite = TestSuite(_clean(f"{run.backend['target']} {run.run['model']}"))
    suite.timestamp = _clean(run.run["utc"])
    properties = {
        "claim": str(run.claim),
        "target": run.backend["target"],
        "engine": run.backend["engine"],
        "manner": f"interprets {run.interprets}" if run.interprets else "executed",
        "distribution": f"{run.backend['distribution']} {run.backend['version']}",
        "model": run.run["model"],
        "reference": run.run["reference"],
        "suite version": run.suite["version"],
        "tolerances": f"{run.suite['tolerances']} {run.suite['tolerances_sha256']}",
    }
    for name, value in properties.items():
        suite.add_property(name, _clean(value))
    for result in run.results:
        suite.add_testcase(_case(result, run))
    suite.update_statistics()
    return suite


def _case(result: Result, run: Run) -> "TestCase":
    from junitparser import Failure, Skipped, TestCase

    folder, _, name = result.id.rpartition("/")
    case = TestCase(
        _clean(name),
        _clean(".".join((run.backend["target"], result.level, *folder.split("/")))),
        round(result.prepare_s + result.run_s, 4),
    )
    said = _clean(result.reason or LOOKS[result.status].meaning)
    if result.status.failed:
        failure = Failure(said, result.status.value)
        failure.text = _clean(_details(result))
        case.result = [failure]
    elif result.status in _SKIPPED:
        case.result = [Skipped(f"{result.status.value}: {said}", result.status.value)]
    if result.log:
        case.system_err = _clean(result.log)
    return case


def _details(result: Result) -> str:
    """Everything that is known of a failure, a line each."""
    facts = {
        "id": result.id,
        "code": result.reason_code,
        "component": result.component,
        "precision": result.precision,
        "executed in": result.executed_precision,
        "worst call, from 0": result.worst_call,
        "worst output": result.worst_output,
        **{metric.name: metric_said(metric) for metric in result.metrics},
        "inputs": result.input_sha256,
        "again": result.rerun,
    }
    return "\n".join(f"{name}: {value}" for name, value in facts.items() if value not in (None, ""))


def _clean(text: str) -> str:
    return _UNWRITABLE.sub("�", text)
