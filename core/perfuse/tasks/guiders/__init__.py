"""Guiders: a file each. Importing this imports none.

A guider is picked with ``pipe(…, guider=…)``; a task makes the usual one of ``guidance_scale``.
"""

from perfuse._lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "classifier_free": ("ClassifierFreeGuidance",),
        "embedded": ("EmbeddedGuidance",),
        "none": ("NoGuidance",),
    },
)
