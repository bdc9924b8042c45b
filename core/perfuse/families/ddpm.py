"""Unconditional diffusion: DDPM and DDIM."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

_UNCONDITIONAL = {"unconditional": "perfuse.tasks.unconditional:UNCONDITIONAL"}

PIPELINES = (
    PipelineManifest(class_name="DDPMPipeline", tasks=_UNCONDITIONAL, needs=("unet", "scheduler")),
    PipelineManifest(
        class_name="DDIMPipeline",
        tasks=_UNCONDITIONAL,
        needs=("unet", "scheduler"),
        scheduler="DDIMScheduler",
        defaults={"num_inference_steps": 50},
    ),
)
