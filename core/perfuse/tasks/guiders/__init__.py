"""Guidance methods (guiders): one file each. Importing this package imports none of them.

Pass one as ``pipe(…, guider=…)``; by default a task makes one from ``guidance_scale``.
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

#: File to the guiders that it defines.
FILES = {
    file.stem: tuple(_CLASS.findall(file.read_text(encoding="utf-8")))
    for file in sorted(Path(__file__).parent.glob("*.py"))
}

__getattr__, __dir__ = lazy(__name__, FILES)
