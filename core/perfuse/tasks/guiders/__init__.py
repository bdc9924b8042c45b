"""Guidance methods (guiders): one file each. Importing this package imports none of them.

Pass one as ``pipe(…, guider=…)``; by default a task makes one from ``guidance_scale``.
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
