"""How many inputs a test tries: few and the same ones in CI, others and more in ``make fuzz``."""

import os

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
