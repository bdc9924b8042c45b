"""Guiders: a file each, found by the class that it defines. Importing this imports none.

A guider is picked with ``pipe(…, guider=…)``; a task makes the usual one of ``guidance_scale``.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse._lazy import lazy

if TYPE_CHECKING:
    from perfuse.tasks.guiders.classifier_free import (
        ClassifierFreeGuidance as ClassifierFreeGuidance,
    )
    from perfuse.tasks.guiders.embedded import EmbeddedGuidance as EmbeddedGuidance
    from perfuse.tasks.guiders.none import NoGuidance as NoGuidance

_CLASS = re.compile(r"^class ([A-Z]\w*)\(Guider\):", re.MULTILINE)

__getattr__, __dir__ = lazy(
    __name__,
    {
        file.stem: _CLASS.findall(file.read_text(encoding="utf-8"))
        for file in sorted(Path(__file__).parent.glob("*.py"))
    },
)
