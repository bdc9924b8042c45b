"""Unconditional diffusion: DDPM and DDIM."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_TASKS = "perfuse.tasks.unconditional"

PIPELINES = (
    PipelineManifest(
        class_name="DDPMPipeline",
        tasks={"unconditional": f"{_TASKS}:UNCONDITIONAL"},
        needs=("unet", "scheduler"),
    ),
    PipelineManifest(
        class_name="DDIMPipeline",
        tasks={"unconditional": f"{_TASKS}:DDIM"},
        needs=("unet", "scheduler"),
        scheduler="DDIMScheduler",
    ),
)
