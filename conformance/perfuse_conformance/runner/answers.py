"""What a worker answered, as arrays and as a verdict on its manners."""

from pathlib import Path

import numpy as np

from perfuse_conformance.cases.probes import Arrays
from perfuse_conformance.judge.results import Result, Status
from perfuse_conformance.judge.verdicts import fail
from perfuse_conformance.runner.process import Answer

__all__ = ["calls_in", "mannered"]


def calls_in(path: Path) -> list[Arrays]:
    """The arrays of each call, as the worker left them."""
    calls: dict[int, Arrays] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            index, _, name = key.partition("/")
            calls.setdefault(int(index), {})[name] = file[key]
    return [calls[index] for index in sorted(calls)]


def mannered(result: Result, answer: Answer) -> Result:
    """The result; failed if the backend printed or changed process settings."""
    if result.status.failed:
        return result
    if answer.printed:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "printed",
            f"it wrote to standard output: {' '.join(answer.printed.split())[:200]!r}; use logging",
        )
    if answer.changed:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "changed-process",
            f"it changed {', '.join(answer.changed)} and did not put it back",
        )
    return result
