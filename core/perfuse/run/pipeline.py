"""``DiffusionPipeline``: a source, a placement and the user's own components, ready to call."""

import dataclasses
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from perfuse.bridge.code import custom_class
from perfuse.bridge.opening import class_by_name, has_diffusers, is_accelerated, open_bridged
from perfuse.contract.quantized import KEPT
from perfuse.contract.source import Source
from perfuse.contract.target import PRECISIONS, Placement
from perfuse.errors import InputError, NotNativeError
from perfuse.run.adding import with_added
from perfuse.run.arguments import Opening, dtype_name, read_arguments
from perfuse.run.assembled import Assembled
from perfuse.run.classes import as_class, manifest_of, named_class
from perfuse.run.exporting import export
from perfuse.run.image_prompts import ImagePrompts
from perfuse.run.lora_state import Loras
from perfuse.run.loras import LoraMethods
from perfuse.run.moving import moved_modules, read_where
from perfuse.run.options import check_scopes
from perfuse.run.output import PipelineOutput
from perfuse.run.placing import check_placement, natural_backend, target_of, torch_device
from perfuse.run.precisions import check_precision, general, read_precision
from perfuse.run.programs import Programs
from perfuse.run.safety import check_parts
from perfuse.run.saving import index_of, save
from perfuse.run.steering import Steering
from perfuse.run.transforms import find_transforms
from perfuse.schedulers import scheduler_from_config
from perfuse.schedulers.config import Config
from perfuse.sources.opening import SchedulerFrom, open_model
from perfuse.sources.store import ArtifactStore

__all__ = ["SETTINGS", "DiffusionPipeline", "PipelineOutput"]


class DiffusionPipeline(ImagePrompts, LoraMethods, Steering):
    """A pipeline that is ready to run; make one with ``from_pretrained``.

    Components are attributes, as in Diffusers. Set one to a torch module or a ``Program`` to
    replace it, or to ``None`` to remove it; the scheduler likewise:
    ``pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)``. Attributes of
    other names are free for the user's own values.

    A class of the user's own may have an ``__init__`` that takes components and passes them to
    ``register_modules``, and a ``__call__`` of its own.
    """

    def __init__(self, **components: Any) -> None:
        """Make a pipeline of components in memory, as Diffusers' classes are made.

        Raises:
            InputError: a component that the class needs is missing.
        """
        self._start(Assembled.of(self._class_of(), (), {}))
        if components:
            manifest = manifest_of(type(self))
            needs = () if manifest is None else manifest.needs
            if missing := [name for name in needs if components.get(name) is None]:
                raise InputError(
                    f"{type(self).__name__} was to be made of {', '.join(components)}; it also "
                    f"needs {', '.join(missing)}. To share all of another pipeline: "
                    f"{type(self).__name__}.from_pipe(pipe)."
                )
            self.register_modules(**components)

    def _start(
        self,
        source: Source,
        *,
        placement: Placement | None = None,
        precision: str | None = None,
        store: ArtifactStore | None = None,
        options: Mapping[str, str] | None = None,
        transforms: Sequence[str] = (),
        programs: Programs | None = None,
    ) -> Self:
        """Set what every pipeline has; its own class decides the tasks."""
        manifest = manifest_of(type(self))
        self._source = source
        self._spec = source.spec
        if manifest is not None:
            self._spec = as_class(source.spec, manifest, model=source.model)
        if placement is None:
            placement = Placement.parse(natural_backend(source))
        self.placement = placement
        self.precision = check_precision(precision, self._spec)
        self._store = store
        config = self._spec.scheduler
        self._scheduler = scheduler_from_config(config) if config else None
        self._transforms = find_transforms(transforms)
        self._options = dict(options or {})
        self._tasks = {}
        self._programs = Programs() if programs is None else programs
        self._beside = {}
        self._models = {}
        self._tokenizers = {}
        self._others = {}
        self._settings: dict[str, Any] = {}
        self._progress_bar_config = {}
        self._perturbed = {}
        self._adapters = ()
        self._loras, self._lora_factor, self._outdated = Loras(), 1.0, set()
        self._one_at_a_time, self._budget, self._in_turns = False, None, False
        self._plan = None
        return self

    @classmethod
    def of(
        cls,
        source: Source,
        *,
        placement: Placement,
        precision: str | None = None,
        store: ArtifactStore | None = None,
        options: Mapping[str, str] | None = None,
        transforms: Sequence[str] = (),
    ) -> Self:
        """A pipeline of a source that is open already, without a check of where it runs.

        Raises:
            InputError: the source has no scheduler config, or is not one for this class.
        """
        if not source.spec.scheduler:
            raise InputError(
                f"{source.model} has no scheduler config. Pass a model that has one: "
                "scheduler_from=, or --scheduler-from CHECKPOINT."
            )
        kind = cls
        if manifest_of(cls) is None and not _has_own_init(cls) and cls is DiffusionPipeline:
            kind = named_class(cls, source.spec.class_name)
        return kind.__new__(kind)._start(
            source,
            placement=placement,
            precision=precision,
            store=store,
            options=options,
            transforms=transforms,
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | Source | None = None,
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
        bridged: bool | None = None,
        custom_pipeline: str | os.PathLike[str] | None = None,
        custom_revision: str | None = None,
        trust_remote_code: bool = False,
        **components: Any,
    ) -> Self:
        """Open a model and choose where it runs. No weights are loaded until they are needed.

        ``DiffusionPipeline`` opens it as the class that the model names; a named class, or one of the
        user's own, as that class. A class that perfuse has no models of its own for is opened by
        Diffusers, where that is installed, and its modules run on the backend: what is returned is
        Diffusers' pipeline, as ``perfuse.accelerate`` returns it.

        Args:
            pretrained_model_name_or_path: A Diffusers checkpoint's folder, an exported folder, a
                Hub id or a ``Source``; without one, the bundled ``shapes`` model.
            backend: ``"openvino:GPU"``, or one per component:
                ``"unet=openvino:GPU,vae_decoder=torch"``. By default torch for a checkpoint, and
                the engine of its format for an exported folder.
            precision: ``"float32"``, ``"float16"`` or ``"bfloat16"``; ``"int8"`` or ``"int4"`` for
                weights in fewer bits, ``"int8+bfloat16"`` for both; and one per component:
                ``"unet=int8,vae_decoder=bfloat16"``.
            revision: Branch, tag or commit of a Hub repository.
            variant: Weight files to prefer, e.g. ``"fp16"``.
            offline: Use only what the Hub's cache holds.
            options: The backend's options, e.g. ``{"compile": "true"}``.
            store: The cache for exports that a backend needs.
            transforms: Transforms of the pipeline, ``"NAME"`` or ``"NAME:key=value"``.
            scheduler_from: Where to take the scheduler from, for a folder without one: the folder
                of a checkpoint or of an export, a ``scheduler_config.json``, a Hub id or a config.
            bridged: Whether Diffusers' own code runs; by default only where perfuse has no own.
            custom_pipeline: A file of Python with the pipeline's class, or a folder with
                ``pipeline.py``; a Hub repository, or the name of one of Diffusers' community
                pipelines, which need ``trust_remote_code=True`` and ``custom_revision``.
            custom_revision: The commit of that repository, in full.
            trust_remote_code: Whether code from a repository may run.
            **components: Replacements, e.g. ``unet=my_unet`` or ``scheduler=my_scheduler``; a
                model's folder or Hub id, or its file: ``vae="madebyollin/taesd"``. ``None`` for a pipeline without that component. And Diffusers' own arguments:
                ``torch_dtype``, ``use_safetensors``, ``local_files_only``, ``cache_dir``,
                ``token``, ``device_map`` …

        Raises:
            CheckpointError: the checkpoint cannot be read.
            ArtifactError: the exported folder is incomplete.
            BackendError: the backend is unknown or its engine is not installed.
            InputError: a component, a transform or an argument is unknown, or does not fit.
        """
        model = pretrained_model_name_or_path
        precision, schemes = read_precision(precision)
        settings: dict[str, Any] = {
            "backend": backend,
            "precision": precision,
            "revision": revision,
            "variant": variant,
            "offline": offline,
            "options": options,
            "store": store,
            "transforms": (
                *schemes,
                *([transforms] if isinstance(transforms, str) else transforms),
            ),
            "scheduler_from": scheduler_from,
            **components,
        }
        trusted: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if custom_pipeline is not None:
            kind = custom_class(custom_pipeline, model, custom_revision, offline=offline, **trusted)
            if issubclass(kind, DiffusionPipeline):
                return cast("Self", kind._native(model, **settings))
            return cast("Self", open_bridged(model, kind.from_pretrained, **trusted, **settings))
        if bridged or is_accelerated(model):
            named = class_by_name(cls.__name__).from_pretrained
            return cast("Self", open_bridged(model, named, **trusted, **settings))
        try:
            return cls._native(model, **settings)
        except NotNativeError:
            if bridged is False or cls is not DiffusionPipeline or not has_diffusers():
                raise
        return cast("Self", open_bridged(model, **trusted, **settings))

    @classmethod
    def _native(
        cls,
        model: str | os.PathLike[str] | Source | None,
        *,
        backend: str | None,
        precision: str | None,
        revision: str | None,
        variant: str | None,
        offline: bool | None,
        options: Mapping[str, str] | None,
        store: ArtifactStore | None,
        transforms: Sequence[str],
        scheduler_from: SchedulerFrom | None,
        **components: Any,
    ) -> Self:
        """``from_pretrained`` for a model that perfuse has models of its own for.

        Raises:
            NotNativeError: it has none.
        """
        asked = read_arguments(components)
        offline = asked.offline if offline is None else offline
        source = open_model(
            model,
            revision=revision,
            variant=variant,
            offline=offline,
            scheduler_from=scheduler_from,
            hub=asked.hub,
            unknown_as=cls.__name__,
        )
        source, rest = with_added(source, asked.components, variant=variant, offline=offline)
        asked = dataclasses.replace(asked, components=rest)
        natural = partial(natural_backend, source)
        backend = backend if backend is not None else natural()
        settings: dict[str, Any] = {
            "placement": Placement.parse(backend, default=natural),
            "precision": precision if precision is not None else asked.precision,
            "store": store,
            "options": options,
            "transforms": transforms,
        }
        if _has_own_init(cls):
            pipe = cls._made_of(source, asked, settings)
        else:
            pipe = cls.of(source, **settings)
            pipe._set_all(asked.components)
        check_parts(source.spec, pipe._spec)
        check_placement(source, pipe.spec, pipe.placement)
        check_scopes(
            options or {},
            backends={
                target_of(pipe.placement, pipe.spec, one).backend for one in pipe.spec.components
            },
            components=pipe.spec.components,
        )
        return pipe.to(asked.device) if asked.device is not None else pipe

    @classmethod
    def _made_of(cls, source: Source, asked: Opening, settings: Mapping[str, Any]) -> Self:
        """A pipeline of a class with an ``__init__`` of its own, from the models of a source."""
        opened = named_class(DiffusionPipeline, source.spec.class_name)
        inner = opened.__new__(opened)._start(source, **settings)
        inner._set_all({n: value for n, value in asked.components.items() if n in inner._known()})
        given: dict[str, Any] = {}
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if name == "self" or parameter.kind in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                continue
            if name in asked.components:
                given[name] = asked.components[name]
            elif name in inner._known() or name in inner._unknown():
                given[name] = getattr(inner, name)
            elif name in source.spec.options:
                given[name] = source.spec.options[name]
            elif parameter.default is inspect.Parameter.empty:
                raise InputError(
                    f"{cls.__name__} takes {name}; {source.model} has {', '.join(inner._known())}. "
                    f"Give it: {cls.__name__}.from_pretrained(model, {name}=…)."
                )
        pipe = cls(**given)
        for name in ("placement", "precision", "_store", "_options", "_transforms"):
            object.__setattr__(pipe, name, getattr(inner, name))
        return pipe

    def _set_all(self, components: Mapping[str, Any]) -> None:
        """Set the components that ``from_pretrained`` was given."""
        for name, value in components.items():
            if name in self._known():
                setattr(self, name, value)
            elif name in self._unknown():
                if value is not None:
                    raise InputError(
                        f"{name}= was given; no task of {self._spec.class_name} runs it. Leave it "
                        f"out, or give {name}=None."
                    )
            elif name in self._spec.options or name in SETTINGS:
                self.register_to_config(**{name: value})
            elif value is not None or not name.isidentifier():
                raise InputError(
                    f"{name}= was given; {self._spec.class_name} has {', '.join(self._known())}."
                )

    @classmethod
    def from_pipe(cls, pipeline: "DiffusionPipeline", **components: Any) -> Self:
        """Another pipeline of the same models: nothing is loaded twice.

        Args:
            pipeline: The pipeline whose source, models and programs it shares.
            **components: Replacements, and ``torch_dtype``.

        Raises:
            InputError: the pipeline lacks a component of this class.
        """
        asked = read_arguments(components)
        kind = cls
        if cls is DiffusionPipeline:
            kind = named_class(cls, pipeline.spec.class_name)
        shared = pipeline._programs.shared
        source, rest = with_added(pipeline._source, asked.components)
        asked = dataclasses.replace(asked, components=rest)
        pipe = kind.__new__(kind)
        pipe._start(source, placement=pipeline.placement, programs=Programs(shared))
        manifest = manifest_of(kind)
        spec = pipeline._spec if source is pipeline._source else source.spec
        if manifest is not None:
            spec = as_class(spec, manifest, model=source.model)
        pipe._spec = spec
        pipe.precision = asked.precision if asked.precision is not None else pipeline.precision
        pipe._scheduler = pipeline._scheduler
        pipe._store, pipe._transforms = pipeline._store, pipeline._transforms
        pipe._adapters = pipeline._adapters
        pipe._learned, pipe._loras = pipeline._learned, pipeline._loras
        for name in ("_options", "_models", "_tokenizers", "_others", "_settings"):
            object.__setattr__(pipe, name, dict(getattr(pipeline, name)))
        pipe._set_all(asked.components)
        return pipe.to(asked.device) if asked.device is not None else pipe

    @classmethod
    def from_single_file(
        cls,
        file: str | os.PathLike[str],
        *,
        config: str | os.PathLike[str] | None = None,
        tokenizer_from: str | os.PathLike[str] | None = None,
        prediction_type: str | None = None,
        extract_ema: bool = False,
        revision: str | None = None,
        offline: bool | None = None,
        scheduler_from: SchedulerFrom | None = None,
        **settings: Any,
    ) -> Self:
        """Open a single-file checkpoint: safetensors in an original layout, or GGUF.

        Args:
            file: A file, its URL on the Hub, or OWNER/NAME/FILE. It is recognised by its tensors.
            config: A checkpoint in Diffusers' layout, a folder or a Hub id: its configs, scheduler
                and tokenizers are used, and its weights of models that the file has not.
            tokenizer_from: A folder with CLIP's tokenizer, or with one folder for each tokenizer.
            prediction_type: ``"epsilon"`` or ``"v_prediction"``, which no tensor tells.
            extract_ema: Take the UNet's averages that training kept, where the file has them.
            revision: Branch, tag or commit of a Hub repository.
            offline: Use only what the Hub's cache holds.
            scheduler_from: Where to take the scheduler from instead.
            **settings: As for ``from_pretrained``. Models that are given need not be in the file. And,
                of a GGUF file, Diffusers' ``quantization_config``, with what to compute in.

        Raises:
            CheckpointError: the file's architecture is unknown, or it lacks a model.
            WeightsError: it is a pickle or damaged.
            InputError: an argument cannot be used.
        """
        from perfuse.sources.single_file import SingleFile

        blocks = settings.pop("quantization_config", None)
        if blocks is not None:
            from perfuse.models.model import compute_dtype

            computed = settings.pop("torch_dtype", None) or compute_dtype(blocks)
            settings.setdefault("precision", f"{KEPT}+{dtype_name(computed)}")
        asked = read_arguments(settings)
        source: Source = SingleFile.open(
            file,
            revision=revision,
            offline=asked.offline if offline is None else offline,
            config=config,
            tokenizer_from=tokenizer_from,
            prediction_type=prediction_type,
            extract_ema=extract_ema,
            given=asked.components,
            hub=asked.hub,
        )
        return cls.from_pretrained(
            source, offline=offline, scheduler_from=scheduler_from, **settings
        )

    # Description

    def _class_of(self) -> str:
        manifest = manifest_of(type(self))
        return type(self).__name__ if manifest is None else manifest.class_name

    @property
    def class_name(self) -> str:
        """The class that ``model_index.json`` names when the pipeline is saved."""
        manifest = manifest_of(type(self))
        ours = manifest is not None and not _has_own_init(type(self))
        return self._spec.class_name if ours else type(self).__name__

    @property
    def config(self) -> Config:
        """``model_index.json`` as it would be saved: entries are attributes too."""
        return Config({**index_of(self), **self._settings, "_name_or_path": self._source.model})

    @property
    def name_or_path(self) -> str:
        """What the pipeline was opened from."""
        return self._source.model

    @property
    def device(self) -> Any:
        """The ``torch.device`` that the pipeline runs on; that of the CPU for engines without."""
        import torch

        for module in moved_modules(self._models, self._others):
            for tensor in module.parameters():
                return tensor.device
        return torch.device(torch_device(self.placement.default) or "cpu")

    @property
    def _execution_device(self) -> Any:
        return self.device

    @property
    def dtype(self) -> Any:
        """The ``torch.dtype`` that the pipeline computes in."""
        import torch

        return getattr(torch, general(self.precision))

    def __repr__(self) -> str:
        parts = [
            f"{name}={self.target(name)} ({one.class_name})"
            for name, one in self.spec.components.items()
        ]
        parts += [f"{name} ({type(getattr(self, name)).__name__})" for name in self.spec.tokenizers]
        if self._scheduler is not None:
            parts.append(f"scheduler ({type(self._scheduler).__name__})")
        return f"{type(self).__name__}({', '.join(parts)})"

    # Components

    def register_modules(self, **modules: Any) -> None:
        """Make these models, tokenizers and scheduler the pipeline's: attributes that are saved.

        Raises:
            CheckpointError: a model's class cannot take its config.
        """
        if not isinstance(self._source, Assembled):
            for name, module in modules.items():
                if name not in self._known():
                    self._others[name] = module
                else:
                    setattr(self, name, module)
            return
        manifest = manifest_of(type(self))
        tasks = () if manifest is None else tuple(manifest.tasks)
        source = Assembled.of(self._class_of(), tasks, {**self._source.modules, **modules})
        self._source, self._spec = source, source.spec
        self._models, self._tokenizers = source.models, source.tokenizers
        self._others, self._plan = source.others, None
        self.scheduler = source.modules.get("scheduler")
        if self.precision is None:
            names = {dtype_name(one.dtype) for one in source.models.values()}
            self.precision = next(iter(names & set(PRECISIONS[1:])), None)
        self.close()

    def register_to_config(self, **settings: Any) -> None:
        """Put settings into ``config``; those of the class change how it runs."""
        known = {**self._spec.options, **{n: v for n, v in settings.items() if not _hidden(n)}}
        self._spec = dataclasses.replace(self._spec, options=known)
        self._settings |= settings
        self._plan = None

    # Other targets, and files

    def to(self, *where: Any, **named: Any) -> Self:
        """Run on another target or in another precision from now on; programs are released.

        Args:
            *where: A target, ``"openvino:GPU"``; a device of the backend in use, ``"cuda"`` or a
                ``torch.device``; a ``torch.dtype``; or a device and a dtype.
            **named: ``device``, ``dtype``, as in Diffusers.

        Raises:
            InputError: an argument is none of these, or names an unknown component.
            BackendError: the backend is unknown or its engine is not installed.
        """
        placement, precision = read_where(self.placement, (*where, *_by_name(named)))
        precision = check_precision(self.precision if precision is None else precision, self._spec)
        check_placement(self._source, self.spec, placement)
        self.close()
        self.placement = placement
        device = torch_device(placement.default) if self._models or self._others else None
        for module in moved_modules(self._models, self._others):
            module.to(device, None if precision == self.precision else _torch_dtype(precision))
        self.precision, self._plan = precision, None
        return self

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
        return export(
            self,
            Path(folder),
            to=to,
            height=height,
            width=width,
            batch=batch,
            sizes=sizes,
            options=options or {},
        )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        **rest: Any,
    ) -> None:
        """Write a Diffusers checkpoint, which Diffusers and perfuse open.

        Args:
            save_directory: The folder.
            safe_serialization: ``True``: weights are written as safetensors alone.
            variant: Part of the weight files' names: ``"fp16"``.
            push_to_hub: Not taken: upload the folder with ``hf upload``.
            **rest: Not taken.

        Raises:
            InputError: an argument is not taken, or a component has no weights to save.
        """
        asked = {"push_to_hub": push_to_hub or None, **rest}
        refused = [n for n, value in asked.items() if value is not None and n != "max_shard_size"]
        if refused or not safe_serialization:
            raise InputError(
                f"save_pretrained was given {', '.join(refused or ['safe_serialization=False'])}; it "
                "writes a folder of safetensors files, and `hf upload` uploads it."
            )
        save(self, Path(save_directory), variant=variant)

    @staticmethod
    def numpy_to_pil(images: Any) -> Any:
        """Pictures [B, H, W, C] in [0, 1] as PIL images."""
        from perfuse.arrays.vae_image_processor import VaeImageProcessor

        return VaeImageProcessor.numpy_to_pil(images)


#: Settings of Diffusers' classes that a checkpoint need not name.
SETTINGS = (
    "requires_safety_checker",
    "force_zeros_for_empty_prompt",
    "add_watermarker",
    "pag_applied_layers",
    "requires_aesthetics_score",
    "is_cosxl_edit",
    "is_distilled",
    "max_noise_level",
    "sample_sigmas",
    "id2label",
)


def _has_own_init(kind: type[DiffusionPipeline]) -> bool:
    """Whether a class of the user's takes components itself."""
    return kind.__init__ is not DiffusionPipeline.__init__


def _hidden(name: str) -> bool:
    return name.startswith("_")


def _by_name(named: Mapping[str, Any]) -> Iterable[Any]:
    """The device and the dtype that were given to ``to`` by name."""
    known = ("device", "torch_device", "dtype", "torch_dtype", "silence_dtype_warnings")
    if unknown := [name for name in named if name not in known]:
        raise InputError(f"pipe.to was given {', '.join(unknown)}; it takes device and dtype.")
    return [named[name] for name in known[:4] if named.get(name) is not None]


def _torch_dtype(precision: str | None) -> Any:
    import torch

    return getattr(torch, general(precision))
