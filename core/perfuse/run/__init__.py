"""Pipelines: placing components, preparing programs, running tasks, exporting."""

from typing import TYPE_CHECKING

from perfuse._lazy import lazy

if TYPE_CHECKING:
    from perfuse.run.export import exported as exported
    from perfuse.run.graphs import Apart as Apart
    from perfuse.run.graphs import Bound as Bound
    from perfuse.run.graphs import apart as apart
    from perfuse.run.graphs import bound as bound
    from perfuse.run.pipeline import DiffusionPipeline as DiffusionPipeline
    from perfuse.run.pipeline import PipelineOutput as PipelineOutput
    from perfuse.run.plan import Planned as Planned

__getattr__, __dir__ = lazy(
    __name__,
    {
        "export": ("exported",),
        "graphs": ("Apart", "Bound", "apart", "bound"),
        "pipeline": (
            "DiffusionPipeline",
            "PipelineOutput",
        ),
        "plan": ("Planned",),
    },
)
