"""DiT."""

from perfuse.contract.hooks import PipelineManifest

__all__ = ["PIPELINES"]

PIPELINES = (
    PipelineManifest(
        class_name="DiTPipeline",
        tasks={"class-to-image": "perfuse.tasks.dit:DIT_CLASS_TO_IMAGE"},
        needs=("transformer", "vae", "scheduler"),
        arguments=(
            "class_labels",
            "guidance_scale",
            "generator",
            "num_inference_steps",
            "output_type",
        ),
    ),
)
