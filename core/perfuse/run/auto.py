"""Pipelines by task: the class that fits a model, as Diffusers' ``AutoPipelineFor…`` choose it."""

import os
from typing import Any, ClassVar, NoReturn

from perfuse.bridge.classes import from_pipe
from perfuse.bridge.opening import class_by_name, has_diffusers, open_bridged
from perfuse.contract.source import Source
from perfuse.errors import NotNativeError
from perfuse.run.adding import with_added
from perfuse.run.arguments import read_arguments
from perfuse.run.classes import family_of, named_class, relative
from perfuse.run.pipeline import DiffusionPipeline
from perfuse.sources.opening import open_model

__all__ = [
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
]


class _AutoPipeline:
    """Chooses a pipeline class by a model's own class and the task."""

    task: ClassVar[str]

    def __init__(self, *_: Any, **__: Any) -> None:
        self._refuse()

    @classmethod
    def _refuse(cls) -> NoReturn:
        raise TypeError(
            f"{cls.__name__} makes pipelines of other classes: use {cls.__name__}.from_pretrained "
            "or from_pipe."
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | Source | None = None,
        **settings: Any,
    ) -> Any:
        """Open a model as the class of its family for the task.

        Args:
            pretrained_model_name_or_path: As for ``DiffusionPipeline.from_pretrained``.
            **settings: As there, and ``enable_pag``, for perturbed-attention guidance.

        Returns:
            A ``DiffusionPipeline``; one of Diffusers' where perfuse has no models of its own.

        Raises:
            InputError: no class of the model's family has the task.
        """
        enable_pag = settings.pop("enable_pag", None)
        asked = read_arguments(settings)
        offline = settings.get("offline")
        try:
            source = open_model(
                pretrained_model_name_or_path,
                revision=settings.get("revision"),
                variant=settings.get("variant"),
                offline=asked.offline if offline is None else offline,
                scheduler_from=settings.get("scheduler_from"),
                hub=asked.hub,
            )
        except NotNativeError:
            if enable_pag is not None or not has_diffusers():
                raise
            opening = class_by_name(cls.__name__).from_pretrained
            return open_bridged(pretrained_model_name_or_path, opening, **settings)
        added, _ = with_added(
            source, asked.components, variant=settings.get("variant"), offline=offline
        )
        for name in ("revision", "variant", "scheduler_from"):
            settings.pop(name, None)
        kind = cls._class(added.spec.class_name, enable_pag)
        return kind.from_pretrained(source, **settings)

    @classmethod
    def from_pipe(cls, pipeline: Any, **settings: Any) -> Any:
        """A pipeline for the task that shares the models of another one, native or Diffusers'.

        Raises:
            InputError: no class of the pipeline's family has the task.
        """
        if not isinstance(pipeline, DiffusionPipeline):
            return from_pipe(class_by_name(cls.__name__).from_pipe, pipeline, **settings)
        enable_pag = settings.pop("enable_pag", None)
        added, _ = with_added(pipeline.source, read_arguments(settings).components)
        spec = pipeline.spec if added is pipeline.source else added.spec
        return cls._class(spec.class_name, enable_pag).from_pipe(pipeline, **settings)

    @classmethod
    def _class(cls, class_name: str, enable_pag: bool | None) -> type[DiffusionPipeline]:
        """The class for the task; ``enable_pag`` of ``None`` leaves that as it is."""
        if enable_pag is not None:
            class_name = f"{family_of(class_name).removesuffix('PAG')}{'PAG' * enable_pag}Pipeline"
        return named_class(DiffusionPipeline, relative(class_name, cls.task))


class AutoPipelineForText2Image(_AutoPipeline):
    """Opens a model as the text-to-image class of its family."""

    task = "text-to-image"


class AutoPipelineForImage2Image(_AutoPipeline):
    """Opens a model as the image-to-image class of its family."""

    task = "image-to-image"


class AutoPipelineForInpainting(_AutoPipeline):
    """Opens a model as the inpainting class of its family."""

    task = "inpainting"
