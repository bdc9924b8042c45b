"""The cases of level L0: the contract that the host relies on. They need no device."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from perfuse.backend import PRECISIONS, Target
from perfuse.errors import PerfuseError
from perfuse.plugins import host
from perfuse_conformance.cases.catalogue import Capability, Case
from perfuse_conformance.judge.results import Result, Status
from perfuse_conformance.judge.verdicts import fail, raised
from perfuse_conformance.runner.process import Answer

__all__ = ["judge_host"]


class Asked(Protocol):
    """The part of a session that these cases use."""

    target: Target
    device: Mapping[str, Any]
    capabilities: dict[tuple[str, str, str], Capability]

    def ask(self, request: Mapping[str, Any], *, prepares: bool = False) -> Answer: ...


def judge_host(case: Case, result: Result, session: Asked) -> Result:
    """Judge one of ``cases.HOST_CASES``.

    Raises:
        Failure: the worker is gone.
    """
    judge: Callable[[Result, Asked], Result] = {
        "manifest": _manifest,
        "import-light": _import_light,
        "devices": _devices,
        "supports": _supports,
        "unknown-device": _unknown_device,
        "unknown-option": _unknown_option,
        "unknown-precision": _unknown_precision,
    }[str(case.subject)]
    return judge(result, session)


def _passed(result: Result) -> Result:
    return replace(result, status=Status.PASS)


def _manifest(result: Result, session: Asked) -> Result:
    name = session.target.backend
    try:
        manifest = host().backends().get(name)
    except PerfuseError as exc:
        return fail(result, Status.FAIL_CONTRACT, "no-manifest", str(exc))
    if manifest is None:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "no-manifest",
            f"no plugin offers {name!r}; `perfuse backends` says which there are, and why not",
        )
    if ":" not in manifest.impl or not manifest.summary or not manifest.install:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "thin-manifest",
            "the manifest needs impl='module:Class', a summary, and the command that installs it",
        )
    return _passed(result)


_IMPORTS = """
import json, sys
from perfuse.plugins import host
manifest = host().backends()[sys.argv[1]]
heavy = {*manifest.requires, "torch", "transformers"}
print(json.dumps(sorted(name for name in heavy if name in sys.modules)))
"""


def _import_light(result: Result, session: Asked) -> Result:
    """In a process of its own: listing the backend must import no engine."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, session.target.backend],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return fail(result, Status.FAIL_RUN, "not-listed", f"it could not be listed: {last}")
    imported = json.loads(lines[-1])
    if imported:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "heavy-manifest",
            f"listing it imports {', '.join(imported)}; import them where they are used",
        )
    return _passed(result)


def _devices(result: Result, session: Asked) -> Result:
    answer = session.ask({"do": "devices"})
    if answer.value is None:
        judged = raised(result, answer.error or {})
        return replace(judged, reason=f"devices(): {judged.reason}")
    devices = answer.value["devices"]
    if not devices:
        return fail(result, Status.ENV_MISSING, "no-device", "devices() lists none on this machine")
    names = [device["name"] for device in devices]
    if len(set(names)) != len(names) or not all(names):
        return fail(
            result, Status.FAIL_CONTRACT, "device-names", f"devices() lists {names}; each one once"
        )
    for device in devices:
        odd = [p for p in device["precisions"] if p not in PRECISIONS]
        if odd or not device["precisions"]:
            return fail(
                result,
                Status.FAIL_CONTRACT,
                "device-precisions",
                f"{device['name']} lists the precisions {device['precisions']}; "
                f"they are among {', '.join(PRECISIONS)}",
            )
    if not session.device:
        return fail(
            result,
            Status.ENV_MISSING,
            "no-device",
            f"{session.target} was asked for; this machine has {', '.join(names)}",
        )
    return _printed(_passed(result), answer)


def _supports(result: Result, session: Asked) -> Result:
    if not session.device:
        return fail(result, Status.ENV_MISSING, "no-device", "there is no device to ask about")
    if not session.capabilities:
        answer = session.ask({"do": "supports"})
        if answer.error is None:
            return fail(result, Status.FAIL_RUN, "failed", "supports() answers only now and then")
        judged = raised(result, answer.error)
        return replace(judged, reason=f"supports(): {judged.reason}")
    silent = [
        "/".join(key)
        for key, said in session.capabilities.items()
        if said.level not in ("full", "unknown") and not said.reason
    ]
    if silent:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "no-reason",
            f"supports() gives no reason for {silent[0]}" + _more(silent),
        )
    listed = session.device["precisions"]
    for precision in PRECISIONS:
        said = {s.level for (_, p, _), s in session.capabilities.items() if p == precision}
        # What a device does not list may still be stored in it, under a condition that is named.
        if precision in listed and not said & {"full", "conditional", "unknown"}:
            how = "lists it and supports() declines it for every component"
        elif precision not in listed and "full" in said:
            how = "does not list it and supports() accepts it without a condition"
        else:
            continue
        return fail(
            result, Status.FAIL_CONTRACT, "precisions-differ", f"{precision}: the device {how}"
        )
    return _passed(result)


def _more(items: list[str]) -> str:
    return f" and {len(items) - 1} more" if len(items) > 1 else ""


def _unknown_device(result: Result, session: Asked) -> Result:
    request: dict[str, Any] = {"device": "no-such-device", "options": {}, "precision": "float32"}
    return _refused(result, session, request, ("DeviceNotFoundError",), "an unknown device")


def _unknown_option(result: Result, session: Asked) -> Result:
    request: dict[str, Any] = {
        "device": None,
        "options": {"no-such-option": "1"},
        "precision": "float32",
    }
    return _refused(result, session, request, ("InputError",), "an unknown option")


def _unknown_precision(result: Result, session: Asked) -> Result:
    request: dict[str, Any] = {"device": None, "options": {}, "precision": "float7"}
    return _refused(
        result, session, request, ("UnsupportedError", "InputError"), "an unknown precision"
    )


def _refused(
    result: Result,
    session: Asked,
    request: Mapping[str, Any],
    wanted: tuple[str, ...],
    what: str,
) -> Result:
    if not session.device and request["device"] is None:
        return fail(result, Status.ENV_MISSING, "no-device", "there is no device to prepare for")
    answer = session.ask({"do": "prepare_odd", **request}, prepares=True)
    if answer.error is None:
        return fail(
            result,
            Status.FAIL_UNREFUSED,
            "not-refused",
            f"prepare took {what} and made a program; it raises {' or '.join(wanted)}",
        )
    error = answer.error
    if not set(wanted) & set(error["bases"]):
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "wrong-error",
            f"prepare answers {what} with {error['type']}: {error['message']}; "
            f"it raises {' or '.join(wanted)}",
        )
    return _printed(_passed(result), answer)


def _printed(result: Result, answer: Answer) -> Result:
    if answer.printed:
        return fail(
            result,
            Status.FAIL_CONTRACT,
            "printed",
            f"it wrote to standard output: {' '.join(answer.printed.split())[:200]!r}; use logging",
        )
    return result
