"""``DiffusionPipeline``: a source, a placement and the user's own components, ready to call."""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from perfuse.contract.backend import Program
from perfuse.contract.component import Component
from perfuse.contract.source import Source
from perfuse.contract.spec import PipelineSpec
from perfuse.contract.steps import Event, Task
from perfuse.contract.target import PRECISIONS, Placement, Target
from perfuse.contract.transform import Plan
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.progress import working
from perfuse.run.export import component_options, export_pipeline
from perfuse.run.image_prompts import ImagePrompts, with_adapters
from perfuse.run.options import check_scopes, options_for
from perfuse.run.placing import check_placement, natural_backend, target_of
from perfuse.run.plan import added, parts_of, plan_of, respecified, without
from perfuse.run.preparing import prepare
from perfuse.run.record import recorded
from perfuse.run.safety import (
    FEATURE_EXTRACTOR,
    REQUIRES,
    check_parts,
    processor_config,
    with_requirement,
)
from perfuse.run.sizes import fixed_dims, shapes_of, usual_sizes
from perfuse.run.transforms import applied, find_transforms, rewriting
from perfuse.schedulers import Scheduler, scheduler_from_config
from perfuse.sources.opening import SchedulerFrom, open_model
from perfuse.sources.store import ArtifactStore
from perfuse.sources.tokenizer import Tokenizer
from perfuse.tasks.choosing import choose, pipeline_manifest, tasks_of

__all__ = ["DiffusionPipeline", "PipelineOutput"]


@dataclass(frozen=True, kw_only=True)
class PipelineOutput:
    """The result of a call of a pipeline."""

    #: By ``output_type``: PIL pictures, an array [B, H, W, C] in [0, 1], or latents [B, C, h, w].
    images: Any
    #: The seed of each noise stream; ``None`` for a generator that the caller gave.
    seeds: tuple[int | None, ...]


class DiffusionPipeline(ImagePrompts):
    """A pipeline that is ready to run; make one with ``from_pretrained``.

    Components are attributes, as in Diffusers. Set one to a torch module or a ``Program`` to
    replace it, or to ``None`` to remove it; the scheduler likewise:
    ``pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)``. Attributes of
    other names are free for the user's own values.
    """

    def __init__(
        self,
        source: Source,
        *,
        placement: Placement,
        precision: str | None = None,
        store: ArtifactStore | None = None,
        options: Mapping[str, str] | None = None,
        transforms: Sequence[str] = (),
    ) -> None:
        self._source = source
        self._spec = source.spec
        self.placement = placement
        self.precision = _checked(precision)
        self._store = store
        if not self._spec.scheduler:
            raise InputError(
                f"{source.model} has no scheduler config. Pass a model that has one: "
                "scheduler_from=, or --scheduler-from CHECKPOINT."
            )
        self._scheduler = scheduler_from_config(self._spec.scheduler)
        self._transforms = find_transforms(transforms)
        self._options = dict(options or {})
        self._tasks: dict[str, Task] = {}  # tasks that the user set
        self._programs: dict[str, Program] = {}
        self._models: dict[str, Any] = {}  # by attribute: models that the user set or may change
        self._tokenizers: dict[str, Tokenizer] = {}
        self._plan: Plan | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | Source | None = None,
        *,
        backend: str | None = None,
        precision: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        offline: bool | None = None,
        options: Mapping[str, str] | None = None,
        store: ArtifactStore | None = None,
        transforms: Sequence[str] = (),
        scheduler_from: SchedulerFrom | None = None,
        **components: Any,
    ) -> Self:
        """Open a model and choose where it runs. No weights are loaded until they are needed.

        Args:
            model: A Diffusers checkpoint's folder, an exported folder, a Hub id or a ``Source``;
                without one, the bundled ``shapes`` model.
            backend: ``"openvino:GPU"``, or one per component:
                ``"unet=openvino:GPU,vae_decoder=torch"``. By default torch for a checkpoint, and
                the engine of its format for an exported folder.
            precision: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
            revision: Branch, tag or commit of a Hub repository.
            variant: Weight files to prefer, e.g. ``"fp16"``.
            offline: Use only what the Hub's cache holds.
            options: The backend's options, e.g. ``{"compile": "true"}``.
            store: The cache for exports that a backend needs.
            transforms: Transforms of the pipeline, ``"NAME"`` or ``"NAME:key=value"``.
            scheduler_from: Where to take the scheduler from, for a folder without one: the folder
                of a checkpoint or of an export, a ``scheduler_config.json``, a Hub id or a config.
            **components: Replacements, e.g. ``unet=my_unet`` or ``scheduler=my_scheduler``;
                ``None`` for a pipeline without that component.

        Raises:
            CheckpointError: the checkpoint cannot be read.
            ArtifactError: the exported folder is incomplete.
            BackendError: the backend is unknown or its engine is not installed.
            InputError: a component or a transform is unknown, or does not fit.
        """
        source = open_model(
            model,
            revision=revision,
            variant=variant,
            offline=offline,
            scheduler_from=scheduler_from,
        )
        natural = partial(natural_backend, source)
        placement = Placement.parse(backend if backend is not None else natural(), default=natural)
        pipe = cls(
            source,
            placement=placement,
            precision=precision,
            store=store,
            options=options,
            transforms=transforms,
        )
        pipe._spec = with_requirement(pipe._spec, components.pop(REQUIRES, None))
        for name, component in components.items():
            if name not in pipe._known():
                raise InputError(
                    f"{name}= was given; {pipe._spec.class_name} has {', '.join(pipe._known())}."
                )
            setattr(pipe, name, component)
        check_parts(source.spec, pipe._spec)
        check_placement(source, pipe.spec, placement)
        check_scopes(
            options or {},
            backends={target_of(placement, pipe.spec, one).backend for one in pipe.spec.components},
            components=pipe.spec.components,
        )
        return pipe

    # Description

    @property
    def plan(self) -> Plan:
        """What will run: the source's components and tasks after all transforms."""
        if self._plan is None:
            plan = plan_of(self._source, self._spec, precision=self.precision, models=self._models)
            plan = with_adapters(plan, self._adapters, self.precision)
            self._plan = applied(plan, self._transforms, exported=self._source.transforms)
        return self._plan

    @property
    def spec(self) -> PipelineSpec:
        """The description of what will run. Without transforms, reading it opens no weights."""
        return self.plan.spec if self._transforms or self._adapters else self._spec

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks of the pipeline by name; the first is the default."""
        usual = self.plan.tasks if self._transforms else tasks_of(self._spec)
        return {**usual, **self._tasks}

    @property
    def task(self) -> Task:
        """The default task. Setting a task replaces the one of the same name."""
        return next(iter(self.tasks.values()))

    @task.setter
    def task(self, task: Task) -> None:
        self._tasks[task.name] = task

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler. A Diffusers scheduler may be set; perfuse's of the same class is used."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._scheduler = _ours(scheduler)

    @property
    def store(self) -> ArtifactStore:
        """The cache for exports that a backend needs."""
        if self._store is None:
            self._store = ArtifactStore.default()
        return self._store

    def tokenizer(self, name: str) -> Tokenizer:
        """A tokenizer of the model, read on first use.

        Raises:
            InputError: the pipeline has no such tokenizer.
        """
        if name not in self._tokenizers:
            if name not in self._spec.tokenizers:
                raise InputError(
                    f"{self._spec.class_name} has no {name}; give prompt_embeds, not prompt."
                )
            self._tokenizers[name] = self._source.tokenizer(name)
        return self._tokenizers[name]

    # Running

    def __call__(
        self, prompt: Any = None, *, task: str | None = None, **inputs: Any
    ) -> PipelineOutput:
        """Run the pipeline's task. Its inputs are named as in Diffusers.

        Args:
            prompt: The prompt, for a task that takes text.
            task: The task's name; by default the task that fits the inputs given.
            **inputs: See ``pipe.task.inputs``.

        Raises:
            InputError: an input cannot be used.
            BackendError: a target cannot run a component, or failed.
            ExportError: a component could not be exported to its target's format.
            NonFiniteError: the result holds NaN.
        """
        state: Mapping[str, Any] = {}
        for event in self.stream(prompt, task=task, **inputs):
            state = event.state
        return PipelineOutput(images=state["images"], seeds=state["seeds"])

    def stream(
        self, prompt: Any = None, *, task: str | None = None, **inputs: Any
    ) -> Iterator[Event]:
        """Run as ``__call__`` does, one step at a time: for progress, previews and cancelling.

        Each event names its step and holds the state; the last one's has ``images``.
        """
        if prompt is not None:
            inputs["prompt"] = prompt
        chosen = choose(self.tasks, inputs, task)
        return recorded(self, chosen, inputs, chosen.run(self, inputs))

    def program(self, component: str) -> Program:
        """The program of a component, prepared on its target on first use.

        Raises:
            InputError: the pipeline has no such component.
            BackendError: its target cannot run it.
            ExportError: it could not be exported to its target's format.
        """
        program = self._programs.get(component)
        if program is None:
            with working("prepare", f"Preparing {component}", subject=component):
                program = self._programs[component] = self._prepare(component)
        return program

    @property
    def source(self) -> Source:
        """The source that the pipeline was opened from."""
        return self._source

    @property
    def options(self) -> Mapping[str, str]:
        """The backends' options, as they were given."""
        return dict(self._options)

    @property
    def transforms(self) -> tuple[str, ...]:
        """The transforms, as they were given: ``"NAME"`` or ``"NAME:key=value"``."""
        return tuple(chosen.text for chosen in self._transforms)

    @property
    def replaced(self) -> tuple[str, ...]:
        """The attributes whose models the user replaced, or has read and may have changed."""
        return tuple(self._models)

    def target(self, component: str) -> Target:
        """The target that a component runs on."""
        return target_of(self.placement, self.spec, component)

    def programs(self) -> Mapping[str, Program]:
        """The programs that are prepared so far, by component."""
        return dict(self._programs)

    def _prepare(self, name: str) -> Program:
        component = self.component(name)
        replaced = self._models.get(component.spec.part)
        if isinstance(replaced, Program):
            return replaced
        target = target_of(self.placement, self.spec, name)
        used = {target_of(self.placement, self.spec, n).backend for n in self.spec.components}
        options = options_for(
            target,
            self._options,
            host().backend(target.backend),
            len(used) > 1,
            component=name,
        )
        target = dataclasses.replace(target, options=options)
        return prepare(
            component,
            target,
            self.store,
            usual=self.usual_sizes(name),
            model=self._source.model,
        )

    def usual_sizes(self, name: str) -> dict[str, int]:
        """The dimensions of a component for one picture of the checkpoint's default size."""
        known = self.fixed_dims(*self.spec.default_size, 1)[name]
        return usual_sizes(self.spec.components[name], known)

    def component(self, name: str, *, static: Mapping[str, int] | None = None) -> Component:
        """A component as it will run, with the dimensions in ``static`` fixed.

        Raises:
            InputError: the pipeline has no such component, or it cannot take such a size.
        """
        components = self.plan.components
        if name not in components:
            raise InputError(
                f"{self._spec.class_name} needs {name} for this, and has "
                f"{', '.join(components)}. Open it with that component, or give the component's "
                "outputs as inputs, for example prompt_embeds."
            )
        component = components[name]
        if static:
            component.spec.check_dims(static)
            component = dataclasses.replace(component, static=static)
        return component

    # Components as attributes

    def _known(self) -> dict[str, list[str]]:
        """The names of all that the pipeline has or may have, with those of their components."""
        source = self._source.spec
        optional = pipeline_manifest(source.class_name).optional
        names = (*optional, *source.tokenizers, *source.processors, "scheduler")
        return {**{name: [] for name in names}, **parts_of(source)}

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not an ordinary attribute: a component's model, or a tokenizer.
        if name.startswith("_") or "_source" not in self.__dict__:
            raise AttributeError(name)
        parts = parts_of(self._spec)
        if name in self._spec.tokenizers:
            return self.tokenizer(name)
        if name in self._spec.processors:
            from perfuse.arrays.image_processor import ImageProcessor

            return ImageProcessor.from_config(self._spec.processors[name])
        if name not in parts:
            if name in self._known():
                return None  # it was removed, or never there
            raise AttributeError(
                f"{self._spec.class_name} has no {name!r}; it has {', '.join(self._known())}"
            )
        if name not in self._models:
            if self._source.format is not None:
                return self.program(parts[name][0])
            from perfuse.models.building import unwrap

            part = self._source.component(parts[name][0], precision=self.precision)
            # The user may change the module from here on, so this very module has to run.
            self._replace(name, unwrap(part))
        return self._models[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in ("scheduler", "task") or "_plan" not in self.__dict__:
            object.__setattr__(self, name, value)
        elif name in self._source.spec.tokenizers:
            self._set_tokenizer(name, value)
        elif name == FEATURE_EXTRACTOR and name in self._known():
            self._set_processor(name, value)
        elif name in self._known():
            self._replace(name, value)
        else:
            object.__setattr__(self, name, value)

    def _set_tokenizer(self, name: str, tokenizer: Any) -> None:
        self._tokenizers.pop(name, None)
        if tokenizer is None:
            self._spec = without(self._spec, name)
            self._plan = None
        else:
            self._tokenizers[name] = tokenizer

    def _set_processor(self, name: str, processor: Any) -> None:
        known = {n: config for n, config in self._spec.processors.items() if n != name}
        if processor is not None:
            known[name] = processor_config(processor)
        self._spec = dataclasses.replace(self._spec, processors=known)
        self._plan = None

    def _replace(self, part: str, model: Any) -> None:
        """Replace the model of an attribute; the spec follows the new model's config.

        Raises:
            CheckpointError: the model's class cannot take its config.
            InputError: the model has other components than the one that it replaces.
        """
        spec = self._spec
        names = parts_of(self._source.spec).get(part) or parts_of(spec).get(part, [])
        if part not in parts_of(spec) and names:  # it was removed before
            back = {name: self._source.spec.components[name] for name in names}
            spec = dataclasses.replace(spec, components={**spec.components, **back})
        if model is None:
            self._spec = without(spec, part)
            self._models.pop(part, None)
        else:
            self._spec = respecified(spec, part, model) if names else added(spec, part, model)
            self._models[part] = model
        self._plan = None
        for name in names:
            program = self._programs.pop(name, None)
            if program is not None and program is not model:
                program.close()

    # Other targets, and exports

    def to(self, *where: Any) -> Self:
        """Run on another target or in another precision from now on; programs are released.

        Args:
            *where: A target, ``"openvino:GPU"``; a device of the backend in use, ``"cuda"`` or a
                ``torch.device``; a ``torch.dtype``; or a device and a dtype.

        Raises:
            InputError: an argument is none of these, or names an unknown component.
            BackendError: the backend is unknown or its engine is not installed.
        """
        placement, precision = self.placement, self.precision
        for one in where:
            kind = f"{type(one).__module__}.{type(one).__qualname__}"
            if kind == "torch.dtype":
                precision = _checked(str(one).removeprefix("torch."))
            elif isinstance(one, str) or kind == "torch.device":
                placement = self._placement(str(one))
            else:
                raise InputError(
                    f"pipe.to({one!r}) was called; give a target such as 'openvino:GPU', a device "
                    "such as 'cuda' or torch.device('cuda'), or a torch.dtype."
                )
        check_placement(self._source, self.spec, placement)
        self.close()
        self.placement, self.precision, self._plan = placement, precision, None
        return self

    def _placement(self, text: str) -> Placement:
        """Read an argument of ``to``: a placement, or a device of the backend in use."""
        current = self.placement.default.backend
        head = text.partition("=")[2].partition(":")[0] or text.partition(":")[0]
        if "," not in text and "=" not in text and head not in host().backends():
            devices = {one.name.partition(":")[0] for one in host().backend(current).devices()}
            if head in devices:
                text = f"{current}:{text}"
        return Placement.parse(text, default=current)

    def close(self) -> None:
        """Release every prepared program."""
        for program in self._programs.values():
            program.close()
        self._programs.clear()

    def export(
        self,
        folder: str | os.PathLike[str],
        *,
        to: str = "onnx",
        height: int | None = None,
        width: int | None = None,
        batch: int | None = None,
        sizes: Sequence[tuple[int, int]] = (),
        options: Mapping[str, str] | None = None,
    ) -> Path:
        """Write the pipeline as an artifact that runs without torch.

        Args:
            folder: Where to write. If the export fails, nothing is left there.
            to: A format of the installed exporters: ``"onnx"``, ``"openvino"``.
            height: Fix the height in pixels. Without ``height`` and ``width`` the files take any
                size, or the checkpoint's default size if the format needs a fixed one.
            width: Fix the width in pixels.
            batch: Fix the batch of every component; larger batches are then run in parts.
            sizes: Several ``(height, width)`` in pixels, for files that take each of them.
            options: The exporter's options, ``{"palettize": "6"}``, or those of one component,
                ``{"unet.palettize": "6"}``.

        Returns:
            The folder.

        Raises:
            InputError: the source is itself an artifact, the folder holds other files, or a size
                or an option cannot be used.
            ExportError: a component could not be exported, or the folder could not be written.
        """
        source = self._source
        if source.format is not None:
            raise InputError(
                f"{source.model} is an export already; export the checkpoint it came from."
            )
        if sizes and (height is not None or width is not None):
            raise InputError(
                f"sizes={list(sizes)!r} was given together with height or width. Give either "
                "sizes, or one height and width."
            )
        fixed = host().exporter(to).fixed
        if len(sizes) > 1 and not fixed:
            raise InputError(
                f"{len(sizes)} sizes were given for {to}, whose files take any size. Leave sizes "
                "out, or give one to fix it."
            )
        asked: list[tuple[int | None, int | None]] = list(sizes) or [(height, width)]
        if fixed:
            asked = [self.spec.default_size if one == (None, None) else one for one in asked]
        each = [self.fixed_dims(*one, batch) for one in asked]
        shapes = shapes_of(self.spec, each, fixed=fixed)
        switches = component_options(options or {}, tuple(self.spec.components))

        def component(name: str) -> Component:
            static, listed = shapes[name]
            one = self.component(name, static=static)
            return dataclasses.replace(one, sizes=listed, options=switches[name])

        def copy(partial: Path) -> None:
            for name, path in source.files().items():
                (partial / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, partial / name)
            self.scheduler.save_pretrained(partial / "scheduler")

        return export_pipeline(
            self._spec_now(),
            component,
            Path(folder),
            to=to,
            source={"model": source.model, "revision": source.revision, **self._rewritten()},
            copy=copy,
        )

    def _rewritten(self) -> dict[str, str]:
        """For an export's manifest: the transforms that changed its components."""
        plan = plan_of(self._source, self._spec, precision=self.precision, models=self._models)
        names = rewriting(plan, self._transforms)
        return {"transforms": ";".join(names)} if names else {}

    def _spec_now(self) -> PipelineSpec:
        """The spec with the current scheduler's config."""
        config = dict(self.scheduler.config)
        config["_class_name"] = type(self.scheduler).__name__
        return dataclasses.replace(self.spec, scheduler=config)

    def fixed_dims(
        self, height: int | None, width: int | None, batch: int | None
    ) -> dict[str, dict[str, int]]:
        """For each component, the dimensions to fix for a size in pixels.

        Raises:
            InputError: the model cannot take the size.
        """

        def lengths() -> list[int]:
            return [self.tokenizer(name).model_max_length for name in self.spec.tokenizers]

        return fixed_dims(self, height, width, batch, lengths)

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name}={target_of(self.placement, self.spec, name)}" for name in self.spec.components
        )
        return f"{self.spec.class_name}({parts})"


def _checked(precision: str | None) -> str | None:
    if precision is not None and precision not in PRECISIONS:
        raise InputError(
            f"Precision {precision!r} was asked for; use one of {', '.join(PRECISIONS)}."
        )
    return precision


def _ours(scheduler: Any) -> Scheduler:
    """The scheduler if it is perfuse's; for one of Diffusers, perfuse's of its class and config.

    Raises:
        InputError: it is no scheduler, or perfuse has no scheduler of its class.
    """
    if isinstance(scheduler, Scheduler):
        return scheduler
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping) or not hasattr(scheduler, "set_timesteps"):
        raise InputError(
            f"scheduler must be a scheduler of perfuse or Diffusers; got {scheduler!r}."
        )
    return scheduler_from_config({**config, "_class_name": type(scheduler).__name__})
