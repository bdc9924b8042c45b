"""How many inputs a test tries: few and the same ones in CI, others and more in ``make fuzz``."""

import os
from typing import Any

from hypothesis import HealthCheck, settings

_MANY = os.environ.get("FUZZ_INPUTS")

settings.register_profile(
    "perfuse",
    max_examples=8 if _MANY is None else int(_MANY),
    derandomize=_MANY is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("perfuse")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many inputs were tried, by all processes together."""
    reports = [one for kind in terminalreporter.stats.values() for one in kind]
    told = [pair for one in reports for pair in getattr(one, "user_properties", ())]
    counts = [count for name, count in told if name == "inputs"]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} inputs tried in {len(counts)} tests")
