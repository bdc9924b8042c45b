"""The level that results grant, and the cases that block the next one."""

from collections.abc import Mapping, Sequence

from perfuse_conformance.cases.catalogue import LEVELS, PROFILES, Capability
from perfuse_conformance.judge.results import Claim, Result, Status

__all__ = ["MEANING", "claim_of"]

#: The meaning of each level, in a sentence.
MEANING: Mapping[str, str] = {
    "none": "not even the host can rely on it",
    "L0": "the host can rely on it: it lists, refuses and cleans up as it should",
    "L1": "every component computes what the reference computes",
    "L2": "whole pipelines draw what the reference draws",
    "L3": "what it draws is as good as what the reference draws",
}


def claim_of(
    results: Sequence[Result],
    capabilities: Mapping[tuple[str, str, str], Capability],
    level: str,
) -> Claim:
    """The highest level of which every case counts and at least one was executed.

    A profile is granted where every case of it counts and at least one passed. A backend that does
    not say what it can do gets no further than L0.
    """
    granted = "none"
    blockers: list[str] = []
    asked = LEVELS[: LEVELS.index(level) + 1]
    unknown = any(said.level == "unknown" for said in capabilities.values())
    for name in asked:
        own = [result for result in results if result.level == name and not result.profiles]
        stand = [result.id for result in own if not result.status.counts]
        ran = any(_passed(result) for result in own)
        if not stand and not ran:
            stand = [f"no case of {name} was executed"]
        if name == "L1":
            ran_in = {result.component for result in results if _passed(result)}
            parts = dict.fromkeys(component for component, _, _ in capabilities)
            stand += [f"no case of {part} was executed" for part in parts if part not in ran_in]
        if name != "L0" and unknown:
            stand = ["supports() answers unknown", *stand]
        if stand:
            blockers = stand
            break
        granted = name
    profiles = []
    if granted not in ("none", "L0"):
        for profile in PROFILES:
            own = [
                result
                for result in results
                if profile in result.profiles and result.level <= granted
            ]
            stand = [result.id for result in own if not result.status.counts]
            if stand:
                blockers += stand
            elif any(_passed(result) for result in own):
                profiles.append(profile)
    return Claim(level=granted, profiles=tuple(profiles), blockers=tuple(blockers))


def _passed(result: Result) -> bool:
    return result.status in (Status.PASS, Status.QUALITY_WARNING, Status.WAIVED)
