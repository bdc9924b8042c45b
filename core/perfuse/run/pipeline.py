"""The pipeline: a spec, its weights, its placement; what a person calls."""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from perfuse.contract.backend import (
    PRECISIONS,
    Component,
    Placement,
    Program,
    Request,
    Support,
    Target,
)
from perfuse.contract.spec import ComponentSpec, PipelineSpec
from perfuse.errors import BackendError, InputError, UnsupportedError
from perfuse.plugins.host import host
from perfuse.progress import working
from perfuse.run.export import component_options, export_pipeline
from perfuse.run.fixed_batch import FixedBatch, fixed_batch
from perfuse.run.per_size import PerSize
from perfuse.run.record import recorded
from perfuse.run.transforms import Transform, find_transforms, transformed, transformed_task
from perfuse.schedulers import Scheduler, scheduler_from_config
from perfuse.sources.artifact import Artifact
from perfuse.sources.manifest import is_artifact
from perfuse.sources.readers import read_folder, scheduler_config, with_scheduler
from perfuse.sources.store import ArtifactStore
from perfuse.sources.tokenizer import Tokenizer
from perfuse.tasks import task_of
from perfuse.tasks.steps import Event, Task

if TYPE_CHECKING:
    from torch import nn

    from perfuse.sources.checkpoint import Checkpoint

__all__ = ["DiffusionPipeline", "PipelineOutput", "open_model"]


#: Where a pipeline's components come from.
Source: TypeAlias = "Checkpoint | Artifact"
#: Where a scheduler comes from: a folder, a file, a Hub id, or its config.
SchedulerFrom: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]


def open_model(
    model: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    offline: bool | None = None,
    scheduler_from: SchedulerFrom | None = None,
) -> "Source":
    """Open an exported folder, a local checkpoint or a Hub id; without one, the bundled ``shapes``.

    A folder that another tool exported is read where a plugin knows its layout.

    Raises:
        CheckpointError: it is neither, or cannot be read.
        ArtifactError: an exported folder is incomplete.
    """
    scheduler = None
    if scheduler_from is not None:
        scheduler = scheduler_config(scheduler_from, offline=offline)
    source: Source | None = None
    if model is not None and is_artifact(Path(model)):
        source = Artifact.open(model)
    elif model is not None:
        source = read_folder(Path(model).expanduser(), scheduler=scheduler)
    if source is None:
        from perfuse.shapes import CHECKPOINT
        from perfuse.sources.checkpoint import Checkpoint

        where = CHECKPOINT if model is None else model
        found = Checkpoint.open(where, revision=revision, variant=variant, offline=offline)
        # The bundled one by its name: where it lies differs from machine to machine.
        source = found if model is not None else dataclasses.replace(found, model="shapes")
    return source if scheduler is None else with_scheduler(source, scheduler)


@dataclass(frozen=True, kw_only=True)
class PipelineOutput:
    """What a pipeline drew."""

    #: PIL pictures, or an array [B, H, W, C] in [0, 1], or latents [B, C, h, w], as asked for.
    images: Any
    #: The seed of each noise stream; ``None`` for a generator that the caller gave.
    seeds: tuple[int | None, ...]


class DiffusionPipeline:
    """A pipeline that is ready to run; make one with ``from_pretrained``.

    Components are attributes, as in Diffusers, and can be replaced by torch modules or by
    programs: ``pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)``.
    """

    scheduler: Scheduler

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
        if precision is not None and precision not in PRECISIONS:
            raise InputError(
                f"Precision {precision!r} was asked for; use one of {', '.join(PRECISIONS)}."
            )
        self._source = source
        self.spec = source.spec
        self.placement = placement
        self.precision = precision
        self._store = store
        if not self.spec.scheduler:
            raise InputError(
                f"{source.model} was to be run; it names no scheduler, and without one nobody knows "
                "how its noise was made. Name a model that does: --scheduler-from CHECKPOINT."
            )
        self.scheduler = scheduler_from_config(self.spec.scheduler)
        self._transforms = find_transforms(transforms)
        if isinstance(source, Artifact):
            _check_transforms(source, self._transforms)
        self.task: Task = transformed_task(task_of(self.spec), self._transforms)
        self._options = dict(options or {})
        self._programs: dict[str, Program] = {}
        self._models: dict[str, Any] = {}  # by part: torch modules that are the user's to change
        self._tokenizers: dict[str, Tokenizer] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
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
        """Open a model and choose where it runs. Nothing is loaded until it is needed.

        Args:
            model: A Diffusers checkpoint's folder, an exported folder or a Hub id; without one,
                the bundled ``shapes`` model.
            backend: ``"openvino:GPU"``, or one a component:
                ``"unet=openvino:GPU,vae_decoder=torch"``. By default what runs the model as it
                is: torch for a checkpoint, the engine of its format for an exported folder.
            precision: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
            revision: Branch, tag or commit of a Hub repository.
            variant: Weight files to prefer, e.g. ``"fp16"``.
            offline: Use only what the Hub's cache holds.
            options: The backend's own switches, e.g. ``{"compile": "true"}``.
            store: Where exports made on the way are kept.
            transforms: Accelerations to put on, by the names that their plugins give them.
            scheduler_from: A checkpoint's folder, an exported folder, a ``scheduler_config.json``, a
                Hub id or a config to take the scheduler from, for folders that name none.
            **components: Replacements, e.g. ``unet=my_unet`` or ``scheduler=my_scheduler``.

        Raises:
            CheckpointError: the checkpoint cannot be read.
            ArtifactError: the exported folder is incomplete.
            BackendError: the backend is unknown or its engine is not installed.
            InputError: a transform is unknown, or rewrites what is exported already.
        """
        source = open_model(
            model,
            revision=revision,
            variant=variant,
            offline=offline,
            scheduler_from=scheduler_from,
        )
        natural = partial(_natural_backend, source)
        placement = Placement.parse(backend if backend is not None else natural(), default=natural)
        pipe = cls(
            source,
            placement=placement,
            precision=precision,
            store=store,
            options=options,
            transforms=transforms,
        )
        pipe._check_placement(placement)
        for name, component in components.items():
            setattr(pipe, name, component)
        return pipe

    def _check_placement(self, placement: Placement) -> None:
        """Say before any work that a component or a backend is unknown, or an engine missing."""
        unknown = set(placement.components) - set(self.spec.components)
        if unknown:
            raise InputError(
                f"A target was given for {', '.join(sorted(unknown))}; this pipeline has "
                f"{', '.join(self.spec.components)}."
            )
        for name in dict.fromkeys(placement[name].backend for name in self.spec.components):
            host().backend(name)
            if isinstance(self._source, Artifact):
                _check_format(self._source, name)

    @property
    def store(self) -> ArtifactStore:
        """Where exports made on the way are kept."""
        if self._store is None:
            self._store = ArtifactStore.default()
        return self._store

    # Running

    def __call__(self, prompt: Any = None, **inputs: Any) -> PipelineOutput:
        """Draw. The inputs are those of the pipeline's task, named as in Diffusers.

        Raises:
            InputError: an input cannot be used.
            NonFiniteError: the result holds NaN.
        """
        state: Mapping[str, Any] = {}
        for event in self.stream(prompt, **inputs):
            state = event.state
        return PipelineOutput(images=state["images"], seeds=state["seeds"])

    def stream(self, prompt: Any = None, **inputs: Any) -> Iterator[Event]:
        """The same, one step at a time: for progress, for previews, and to stop.

        Each event names its step and holds the state; the last one's has ``images``.
        """
        if prompt is not None:
            inputs["prompt"] = prompt
        return recorded(self, inputs, self.task.run(self, inputs))

    def program(self, component: str) -> Program:
        """A component, prepared on its target the first time it is asked for.

        Raises:
            BackendError: its target cannot run it.
            ExportError: it could not be lowered to its target's format.
        """
        program = self._programs.get(component)
        if program is None:
            with working("prepare", f"Preparing {component}", subject=component):
                program = self._programs[component] = self._prepare(component)
        return program

    def _prepare(self, name: str) -> Program:
        component = self._component(name)
        replaced = self._models.get(_part(component.spec))
        if isinstance(replaced, Program):
            return replaced
        target = self.placement[name]
        options = {**self._options, **target.options}
        target = dataclasses.replace(target, options=options)
        backend = host().backend(target.backend)
        support = backend.supports(Request.of(component, target))
        if support.works:
            program = backend.prepare(component, target, self.store)
            size = fixed_batch(program.signature.inputs)
            return FixedBatch(program, size) if size is not None else program
        usual = self._usual_sizes(component.spec)
        fixed = dataclasses.replace(component, static={**usual, **component.static})
        support_fixed = backend.supports(Request.of(fixed, target))
        if not support_fixed.works:
            raise UnsupportedError(_refusal(component, target, support, support_fixed))
        if component.build is None:
            raise UnsupportedError(
                f"{name} was to run on {target}; {self._source.model} does not fix its sizes, and "
                f"{support.reason} Export the checkpoint again with --height H --width W --batch "
                f"B, or run the checkpoint itself on {target}."
            )

        def make(dims: Mapping[str, int]) -> Program:
            sized = dataclasses.replace(component, static=dims)
            return backend.prepare(sized, target, self.store)

        return PerSize(component.spec, make, usual=usual)

    def _usual_sizes(self, component: ComponentSpec) -> dict[str, int]:
        """Every dimension of a component where the checkpoint's own size is drawn, one picture."""
        height, width = self.spec.default_size
        known = self._static(height, width, 1)[component.name]
        # A dimension that only a plugin's component has: the least that it can be.
        return {
            dim: known.get(dim, component.multiples.get(dim, 1)) for dim in component.signature.dims
        }

    def _component(self, name: str, *, static: Mapping[str, int] | None = None) -> Component:
        component = self._original(name, static)
        # What an export holds was rewritten when it was made.
        return transformed(component, self._transforms) if component.build else component

    def _original(self, name: str, static: Mapping[str, int] | None) -> Component:
        spec = self.spec.components[name]
        replaced = self._models.get(_part(spec))
        if replaced is None:
            return self._source.component(name, precision=self._precision_of(spec), static=static)

        def build() -> "nn.Module":
            from perfuse.models.components import wrap

            return wrap(spec, replaced).eval()

        return Component(
            spec=spec,
            precision=self._precision_of(spec) or "float32",
            static=static or {},
            build=build,
        )

    def _precision_of(self, spec: ComponentSpec) -> str | None:
        # Some autoencoders overflow in half precision, and their config says so (SD XL's does).
        if self.precision == "float16" and spec.config.get("force_upcast"):
            return "float32"
        return self.precision

    def tokenizer(self, name: str) -> Tokenizer:
        """A tokenizer of the model, read the first time it is asked for."""
        if name not in self._tokenizers:
            if name not in self.spec.tokenizers:
                raise InputError(
                    f"{self.spec.class_name} has no {name}; give prompt_embeds, not prompt."
                )
            self._tokenizers[name] = self._source.tokenizer(name)
        return self._tokenizers[name]

    # Components as attributes

    def _parts(self) -> dict[str, list[str]]:
        """The attributes that hold models, each with the components that it is."""
        parts: dict[str, list[str]] = {}
        for component in self.spec.components.values():
            parts.setdefault(_part(component), []).append(component.name)
        return parts

    def __getattr__(self, name: str) -> Any:
        # Only for what is not an ordinary attribute: a component's model.
        if name.startswith("_") or "spec" not in self.__dict__:
            raise AttributeError(name)
        parts = self._parts()
        if name not in parts:
            raise AttributeError(
                f"{self.spec.class_name} has no {name!r}; it has {', '.join(parts)}, scheduler"
            )
        if name not in self._models:
            if isinstance(self._source, Artifact):
                return self.program(parts[name][0])
            from perfuse.models.components import unwrap

            part = self._source.component(parts[name][0], precision=self.precision)
            # From here on the module is the user's to change, and what runs.
            self._replace(name, unwrap(part))
        return self._models[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("scheduler", "spec", "placement", "precision", "task") or (
            name.startswith("_")
        ):
            object.__setattr__(self, name, value)
        elif name in self._parts():
            self._replace(name, value)
        elif name in self.spec.tokenizers:
            self._tokenizers[name] = value
        else:
            known = [*self._parts(), *self.spec.tokenizers, "scheduler", "task"]
            raise InputError(
                f"{name!r} cannot be set on {self.spec.class_name}; set one of {', '.join(known)}."
            )

    def _replace(self, part: str, model: Any) -> None:
        """Put a model in the place of a part; what its config says is the pipeline's from now on.

        Raises:
            CheckpointError: its config is not one that its class can take.
            InputError: it has other components than the part it replaces.
        """
        names = self._parts()[part]
        self.spec = _respecified(self.spec, part, names, model)
        self._models[part] = model
        for name in names:
            program = self._programs.pop(name, None)
            if program is not None and program is not model:
                program.close()

    # Elsewhere

    def to(self, backend: str) -> Self:
        """Run on another target from here on; what was prepared is released.

        Raises:
            InputError: it is no target, or for a component that the pipeline has not.
            BackendError: the backend is unknown or its engine is not installed.
        """
        placement = Placement.parse(backend, default=self.placement.default.backend)
        self._check_placement(placement)
        self.close()
        self.placement = placement
        return self

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
            folder: Where; it is complete or absent, whatever happens.
            to: A format of the installed exporters: ``"onnx"``, ``"openvino"``.
            height: Fix the height in pixels; without it and ``width``, any size, or the
                checkpoint's own where the format holds fixed sizes alone.
            width: Fix the width in pixels.
            batch: Fix the batch of every component; larger batches are then run in parts.
            sizes: Several heights and widths in pixels, for a file that takes each of them.
            options: The exporter's switches, ``{"palettize": "6"}``, or those of one component,
                ``{"unet.palettize": "6"}``.

        Raises:
            InputError: the source is itself an artifact, the folder holds something else, or a
                size or an option cannot be used.
            ExportError: a component could not be lowered, or the folder not be written.
        """
        from perfuse.sources.checkpoint import Checkpoint

        source = self._source
        if not isinstance(source, Checkpoint):
            raise InputError(
                f"{source.model} is an export already; export the checkpoint it came from."
            )
        if sizes and (height is not None or width is not None):
            raise InputError("Give either sizes, or one height and width.")
        fixed = host().exporter(to).fixed
        if len(sizes) > 1 and not fixed:
            raise InputError(f"{to} takes any size in one file; leave the sizes out, or give one.")
        shapes = self._shapes(list(sizes) or [(height, width)], batch, fixed=fixed)
        switches = component_options(options or {}, tuple(self.spec.components))

        def component(name: str) -> Component:
            static, listed = shapes[name]
            one = self._component(name, static=static)
            return dataclasses.replace(one, sizes=listed, options=switches[name])

        def copy(partial: Path) -> None:
            for name, path in source.files_to_copy().items():
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
        """For an export's manifest: the transforms that its components went through."""
        names = [transform.name for transform in self._transforms if transform.rewrites_components]
        return {"transforms": ",".join(names)} if names else {}

    def _spec_now(self) -> PipelineSpec:
        """The spec with the scheduler that is in place now."""
        config = dict(self.scheduler.config)
        config["_class_name"] = type(self.scheduler).__name__
        return dataclasses.replace(self.spec, scheduler=config)

    def _shapes(
        self,
        sizes: Sequence[tuple[int | None, int | None]],
        batch: int | None,
        *,
        fixed: bool,
    ) -> dict[str, tuple[dict[str, int], tuple[dict[str, int], ...]]]:
        """For each component, the dimensions to fix, and the sizes that the others may have."""
        if fixed:
            sizes = [self.spec.default_size if size == (None, None) else size for size in sizes]
        each = [self._static(height, width, batch) for height, width in sizes]
        shapes = {}
        for name, component in self.spec.components.items():
            own = [one[name] for one in each]
            static = {dim: n for dim, n in own[0].items() if all(one[dim] == n for one in own)}
            if fixed and "batch" in component.signature.dims:
                static.setdefault("batch", component.guided_batch)
            open_dims = [dim for dim in own[0] if dim not in static]
            listed = [{dim: one[dim] for dim in open_dims} for one in own] if open_dims else []
            shapes[name] = (static, tuple(s for i, s in enumerate(listed) if s not in listed[:i]))
        return shapes

    def _static(
        self, height: int | None, width: int | None, batch: int | None
    ) -> dict[str, dict[str, int]]:
        """For each component, the dimensions to fix."""
        from perfuse.tasks.denoise import check_size

        sizes: dict[str, int] = {}
        if batch is not None:
            if batch < 1:
                raise InputError(f"batch must be at least 1; got {batch}.")
            sizes["batch"] = batch
        if height is not None or width is not None:
            pixels = check_size(self, height, width)
            scale = self.spec.latents.downscale if self.spec.latents is not None else 1
            sizes |= {"height": pixels[0], "width": pixels[1]}
            sizes |= {"latent_height": pixels[0] // scale, "latent_width": pixels[1] // scale}
            if self.spec.tokenizers:
                lengths = [self.tokenizer(name).model_max_length for name in self.spec.tokenizers]
                sizes["sequence"] = max(lengths)
        return {
            name: {dim: sizes[dim] for dim in component.signature.dims if dim in sizes}
            for name, component in self.spec.components.items()
        }

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={self.placement[name]}" for name in self.spec.components)
        return f"{self.spec.class_name}({parts})"


def _refusal(component: Component, target: Target, symbolic: Support, fixed: Support) -> str:
    """Why a component cannot run: for any size, and for one size where that is another reason."""
    text = (
        f"{component.name} was to run on {target} in {component.precision}: "
        f"{symbolic.level.value}; {symbolic.reason}"
    )
    if fixed == symbolic:
        return text
    return f"{text} For one size alone: {fixed.level.value}; {fixed.reason}"


def _part(component: ComponentSpec) -> str:
    """The attribute that holds a component's model; one model may be several components."""
    return component.folder if component.folder != "." else component.name


def _respecified(spec: PipelineSpec, part: str, names: list[str], model: Any) -> PipelineSpec:
    """The spec with a part's components as a new model's class and config describe them."""
    from perfuse.models.architectures import describe, latents_of

    config = getattr(model, "config", None)
    class_name = type(model).__name__
    if config is None or not any(a.class_name == class_name for a in host().architectures()):
        return spec  # a program, or a module of the user's that has the part's signature
    fields = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    former = spec.components[names[0]]
    described = describe(class_name, part, former.folder, fields)
    if [component.name for component in described] != names:
        raise InputError(
            f"{part} was to be replaced by a {class_name}; {spec.class_name} needs a "
            f"{former.class_name} there, or another model of the components {', '.join(names)}."
        )
    components = {**spec.components, **{component.name: component for component in described}}
    latents = latents_of(fields) if class_name == "AutoencoderKL" else spec.latents
    return dataclasses.replace(spec, components=components, latents=latents)


def _check_format(artifact: Artifact, backend: str) -> None:
    """Raise ``BackendError`` where a backend does not load what an exported folder holds."""
    backends = host().backends()
    formats = backends[backend].formats
    if artifact.format not in formats:
        fitting = [n for n, m in backends.items() if artifact.format in m.formats]
        fitting.sort(key=lambda name: bool(backends[name].interprets))
        raise BackendError(
            f"Backend {backend!r} was asked for; {artifact.model} holds {artifact.format}, and it "
            f"loads {', '.join(formats) or 'checkpoints alone'}. Use "
            + (f"--backend {fitting[0]}, or " if fitting else "")
            + "the checkpoint that was exported."
        )


def _check_transforms(artifact: Artifact, transforms: Sequence[Transform]) -> None:
    """Raise ``InputError`` where a transform rewrites components that are exported as they were."""
    done = (artifact.manifest.source.get("transforms") or "").split(",")
    late = [t.name for t in transforms if t.rewrites_components and t.name not in done]
    if late:
        raise InputError(
            f"Transform {late[0]!r} was asked for; it rewrites components, and {artifact.model} is "
            f"an export already. Export the checkpoint again with --transform {late[0]}."
        )


def _natural_backend(source: Source) -> str:
    """The backend that runs a model as it is.

    Raises:
        BackendError: none that is known does.
    """
    wanted = source.format if isinstance(source, Artifact) else None
    fitting = [
        (name, manifest.interprets)
        for name, manifest in host().backends().items()
        if (wanted in manifest.formats if wanted is not None else not manifest.formats)
    ]
    for name, interprets in fitting:
        if not interprets:  # whoever wants an engine's files interpreted says so
            return name
    hint = f" To interpret it: --backend {fitting[0][0]}." if fitting else ""
    raise BackendError(
        f"{source.model} holds {wanted or 'a checkpoint'}; no plugin that is installed runs that as "
        f"it is. Install one that does; `perfuse backends` lists those that are there.{hint}"
    )
