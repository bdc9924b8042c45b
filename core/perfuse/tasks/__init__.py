"""The tasks that pipelines run, and the pipeline classes that core knows. No task is imported."""

import dataclasses
from types import MappingProxyType
from typing import TYPE_CHECKING

from perfuse.contract.hooks import PipelineManifest
from perfuse.contract.spec import PipelineSpec
from perfuse.errors import CheckpointError, PluginError
from perfuse.plugins.host import host, resolve, said

if TYPE_CHECKING:
    from perfuse.tasks.steps import Task

__all__ = ["PIPELINES", "task_of"]

_TEXT = {"text-to-image": "perfuse.tasks.text_to_image:TEXT_TO_IMAGE"}
_TEXT_XL = {"text-to-image": "perfuse.tasks.text_to_image_xl:TEXT_TO_IMAGE_XL"}
_UNCONDITIONAL = {"unconditional": "perfuse.tasks.unconditional:UNCONDITIONAL"}
_SD = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_XL = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")  # the refiner has no other
_CLIPPED = {"steps_offset": 1, "clip_sample": False}
_SKIPPED = {"steps_offset": 1, "skip_prk_steps": True}
_CONSISTENCY = {"num_inference_steps": 4, "guidance_scale": 8.5}


#: The pipeline classes of Diffusers that core runs.
PIPELINES: tuple[PipelineManifest, ...] = (
    PipelineManifest(
        class_name="StableDiffusionPipeline", tasks=_TEXT, needs=_SD, corrects=_CLIPPED
    ),
    PipelineManifest(
        class_name="StableDiffusionImg2ImgPipeline", tasks=_TEXT, needs=_SD, corrects=_CLIPPED
    ),
    PipelineManifest(
        class_name="StableDiffusionInpaintPipeline", tasks=_TEXT, needs=_SD, corrects=_SKIPPED
    ),
    PipelineManifest(class_name="StableDiffusionXLPipeline", tasks=_TEXT_XL, needs=_XL),
    PipelineManifest(class_name="StableDiffusionXLImg2ImgPipeline", tasks=_TEXT_XL, needs=_XL),
    PipelineManifest(class_name="StableDiffusionXLInpaintPipeline", tasks=_TEXT_XL, needs=_XL),
    PipelineManifest(
        class_name="LatentConsistencyModelPipeline", tasks=_TEXT, needs=_SD, defaults=_CONSISTENCY
    ),
    PipelineManifest(class_name="LatentConsistencyModelImg2ImgPipeline", tasks=_TEXT, needs=_SD),
    PipelineManifest(class_name="DDPMPipeline", tasks=_UNCONDITIONAL, needs=("unet", "scheduler")),
    PipelineManifest(
        class_name="DDIMPipeline",
        tasks=_UNCONDITIONAL,
        needs=("unet", "scheduler"),
        scheduler="DDIMScheduler",
        defaults={"num_inference_steps": 50},
    ),
)


def task_of(spec: PipelineSpec) -> "Task":
    """The task that a bare call of a pipeline runs, with the defaults of its class.

    Raises:
        CheckpointError: no plugin brings the pipeline's class.
        PluginError: the plugin that does has no such task.
    """
    known = host().pipelines()
    if spec.class_name not in known:
        raise CheckpointError(
            f"The pipeline is a {spec.class_name}, which perfuse does not know; it knows "
            f"{', '.join(known)}. Install the plugin that brings it: hook perfuse_pipelines."
        )
    manifest = known[spec.class_name]
    task = _load(next(iter(manifest.tasks.values())), spec.class_name)
    return dataclasses.replace(task, inputs=MappingProxyType({**task.inputs, **manifest.defaults}))


def _load(reference: str, class_name: str) -> "Task":
    from perfuse.tasks.steps import Task

    try:
        task = resolve(reference)
    except Exception as exc:
        raise PluginError(
            f"The task of a {class_name} is {reference}; loading it raised {said(exc)}. Update "
            "or uninstall its plugin."
        ) from exc
    if not isinstance(task, Task):
        raise PluginError(f"The task of a {class_name} is {reference}, which is not a Task.")
    return task
