"""The parts of a pipeline: models, tokenizers and scheduler as attributes, and their programs."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from perfuse import _diffusers
from perfuse.arrays.image_processor import ImageProcessor
from perfuse.arrays.vae_image_processor import VaeImageProcessor
from perfuse.contract.backend import Program
from perfuse.contract.component import Component
from perfuse.contract.guider import Perturbation
from perfuse.contract.source import Source
from perfuse.contract.spec import PipelineSpec, Role
from perfuse.contract.steps import Task
from perfuse.contract.target import Placement, Target
from perfuse.contract.transform import Plan
from perfuse.errors import InputError
from perfuse.memory import return_memory
from perfuse.models.changing import with_changes
from perfuse.models.ip_adapter.description import ImageAdapter
from perfuse.models.registry import perturbed
from perfuse.plugins import host
from perfuse.progress import working
from perfuse.run.adding import Several, addable, extended, is_one_of
from perfuse.run.graphs import known_weights
from perfuse.run.image_prompts import with_adapters
from perfuse.run.lora_state import Loras, finite
from perfuse.run.loras import with_loras
from perfuse.run.options import options_for
from perfuse.run.part_loras import PartLoras
from perfuse.run.placing import target_of, torch_device
from perfuse.run.plan import added, parts_of, plan_of, respecified, without
from perfuse.run.precisions import general, precision_of
from perfuse.run.preparing import prepare
from perfuse.run.programs import Programs
from perfuse.run.residency import Residency, residency
from perfuse.run.safety import FEATURE_EXTRACTOR, processor_config
from perfuse.run.sizes import fixed_dims, usual_sizes
from perfuse.run.tools import PipelineTools
from perfuse.run.transforms import Chosen, applied, approximate, rewriting
from perfuse.schedulers import Scheduler, scheduler_from_config
from perfuse.sources.store import ArtifactStore
from perfuse.sources.tokenizer import Tokenizer
from perfuse.sources.tokenizer_face import PromptTokenizer, as_ours
from perfuse.sources.weight_maps import shapes_of
from perfuse.tasks.choosing import tasks_of
from perfuse.tasks.dit import class_names

__all__ = ["Parts"]

#: Methods of Diffusers that perfuse leaves out, and what takes their place. Those of them that
#: only compute are Diffusers' own, where that is installed.
_LEFT_OUT = {
    "push_to_hub": "Save the pipeline, pipe.save_pretrained(folder), and upload the folder: "
    "hf upload OWNER/NAME FOLDER.",
    "prepare_latents": "Draw them by perfuse.utils.torch_utils.randn_tensor, or give latents= to the "
    "pipeline; without them it draws its own.",
    "upcast_vae": "Give the autoencoder a precision: precision='unet=float16,vae=float32'. One that "
    "overflows in float16 stays in float32 by itself.",
    "check_inputs": "A call checks its inputs before anything is computed.",
    "save_lora_weights": "Train and save with Diffusers or PEFT; load_lora_weights reads what they write.",
    "load_lora_into_unet": "load_lora_weights takes the tensors as they are, for all parts.",
    "load_lora_into_transformer": "load_lora_weights takes the tensors as they are, for all parts.",
    "load_lora_into_text_encoder": "load_lora_weights takes the tensors as they are, for all parts.",
    "lora_state_dict": "load_lora_weights takes a file, a folder or the tensors as they are.",
}
#: How methods begin that change Diffusers' pipeline; one of perfuse's they would not change.
_CHANGING = (
    *("disable_", "enable_", "fuse_", "load_", "maybe_", "push_", "remove_", "reset_", "save_"),
    *("set_", "unload_", "upcast_"),
)


def _vae_scale_factor(spec: PipelineSpec) -> int:
    """How often the autoencoder halves a picture, as a factor; its latents may be made patches of then."""
    for decoder in spec.having(Role.LATENT_DECODER):
        if blocks := decoder.config.get("block_out_channels"):
            return 1 << (len(blocks) - 1)
    return spec.latents.downscale


#: Attributes that a pipeline has unless the user, or a class of the user's, sets others.
_DERIVED: Mapping[str, Callable[[PipelineSpec], Any]] = {
    "vae_scale_factor": _vae_scale_factor,
    "default_sample_size": lambda spec: (spec.denoiser.sample_size or (64,))[0],
    "patch_size": lambda spec: spec.denoiser.config.get("patch_size", 1),
    "latent_channels": lambda spec: spec.latents.channels,
    "image_processor": lambda spec: VaeImageProcessor(vae_scale_factor=spec.latents.downscale),
    "mask_processor": lambda spec: VaeImageProcessor(
        vae_scale_factor=spec.latents.downscale,
        do_normalize=False,
        do_binarize=True,
        do_convert_grayscale=True,
    ),
    "control_image_processor": lambda spec: VaeImageProcessor(
        vae_scale_factor=spec.latents.downscale, do_convert_rgb=True, do_normalize=False
    ),
}
#: A setting of a pipeline whose model draws classes, and the attribute with what they are called.
_ID2LABEL, _LABELS = "id2label", "labels"


class Parts:
    """What a pipeline is made of. Models, tokenizers and the scheduler are attributes.

    Set one to a torch module or a ``Program`` to replace it, or to ``None`` to remove it.
    Attributes of other names are free for the user's own values.
    """

    _source: Source
    _spec: PipelineSpec
    placement: Placement
    precision: str | None
    _store: ArtifactStore | None
    _scheduler: Scheduler | None
    _transforms: tuple[Chosen, ...]
    _options: dict[str, str]
    _tasks: dict[str, Task]  # tasks that the user set
    _programs: Programs
    _beside: dict[Hashable, Program]  # of components that are not the pipeline's
    _models: dict[str, Any]  # by attribute: models that the user set or may change
    _tokenizers: dict[str, Any]  # ours, or what the user set
    _others: dict[str, Any]  # registered, and run by no task
    _perturbed: dict[str, Perturbation]  # worse versions that guiders asked for
    _adapters: tuple[ImageAdapter, ...]  # IP-Adapters
    _loras: Loras
    _lora_factor: float  # how much adapters that are not fused count in the call that runs
    _outdated: set[str]  # components whose adapters changed since their programs were prepared
    _one_at_a_time: bool
    _budget: int | None  # bytes that the weights of prepared components may take
    _plan: Plan | None

    # Description

    @property
    def plan(self) -> Plan:
        """What will run: the source's components and tasks after all transforms."""
        if self._plan is None:
            plan = plan_of(self._source, self._spec, precision=self.precision, models=self._models)
            plan = with_adapters(plan, self._adapters, general(self.precision))
            plan = applied(plan, self._transforms, exported=self._source.transforms)
            for one in self._perturbed.values():
                denoiser = plan.components[plan.spec.denoiser.name]
                plan = plan.with_component(perturbed(denoiser, one))
            self._plan = with_loras(plan, self._loras, self._lora_factor)
        return self._plan

    @property
    def spec(self) -> PipelineSpec:
        """The description of what will run. Without transforms, reading it opens no weights."""
        changed = self._transforms or self._perturbed or self._adapters
        return self.plan.spec if changed else self._spec

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
    def approximate(self) -> tuple[str, ...]:
        """Those of the transforms that change pictures by more than rounding."""
        if not self._transforms and not self._source.transforms:
            return ()
        plan = plan_of(self._source, self._spec, precision=self.precision, models=self._models)
        return approximate(plan, self._transforms, exported=self._source.transforms)

    @property
    def rewriting(self) -> tuple[str, ...]:
        """Those of the transforms that change components, and not the tasks alone."""
        plan = plan_of(self._source, self._spec, precision=self.precision, models=self._models)
        return tuple(rewriting(plan, self._transforms))

    @property
    def loras(self) -> Loras:
        """The adapters that are loaded, and how much each counts."""
        return self._loras

    @property
    def lora_factor(self) -> float:
        """How much the adapters that are not fused counted in the last call, beside their weights."""
        return self._lora_factor

    @property
    def replaced(self) -> tuple[str, ...]:
        """The attributes whose models the user replaced, or has read and may have changed."""
        return tuple(self._models)

    @property
    def store(self) -> ArtifactStore:
        """The cache for exports that a backend needs."""
        if self._store is None:
            self._store = ArtifactStore.default()
        return self._store

    @property
    def class_name(self) -> str:
        """The class that ``model_index.json`` names when the pipeline is saved."""
        return self._spec.class_name

    @property
    def others(self) -> Mapping[str, Any]:
        """What was registered and is neither a known model, a tokenizer nor the scheduler."""
        return dict(self._others)

    @property
    def optional(self) -> tuple[str, ...]:
        """The names of what a pipeline of this class may have, and this one has not."""
        there = {*parts_of(self._spec), *self._spec.processors, *self._others}
        return tuple(name for name in self._optional() if name not in there)

    def model(self, name: str) -> Any:
        """The model of an attribute, with what is fused into it, only to be read."""
        changes = self._loras.fused_changes(name)
        if name in self._models and changes is None:
            return self._models[name]
        from perfuse.models.building import unwrap

        first = parts_of(self._spec)[name][0]
        if changes is None:
            return unwrap(self._source.component(first, precision=self._precision(first)))
        plan = plan_of(self._source, self._spec, precision=self.precision, models=self._models)
        return unwrap(with_changes(plan.components[first], changes))

    def _precision(self, component: str) -> str | None:
        return precision_of(self._spec.components[component], self.precision)

    def asks(self, setting: str, of_model: str) -> bool:
        """Whether a setting of the pipeline is on, or one of a model that the user read or set."""
        models = self._models.values()
        return bool(getattr(self, setting)) or any(
            getattr(model, of_model, False) is True for model in models
        )

    def target(self, component: str) -> Target:
        """The target that a component runs on."""
        return target_of(self.placement, self.spec, component)

    # Scheduler and tokenizers

    @property
    def scheduler(self) -> Any:
        """The scheduler. A Diffusers scheduler may be set; perfuse's of the same class is used."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._scheduler = _ours(scheduler)

    def prompt_tokenizer(self, name: str) -> Tokenizer:
        """A tokenizer as the steps use it: texts to a ``TokenBatch``. Read on first use.

        Raises:
            InputError: the pipeline has no such tokenizer.
        """
        if name not in self._tokenizers:
            if name not in self._spec.tokenizers:
                raise InputError(
                    f"{self._spec.class_name} has no {name}; give prompt_embeds, not prompt."
                )
            self._tokenizers[name] = self._source.tokenizer(name)
        return as_ours(self._tokenizers[name])

    def _tokenizer(self, name: str) -> Any:
        """A tokenizer as the user sees it: called as Transformers' are."""
        ours = self.prompt_tokenizer(name)
        known = self._tokenizers[name]
        return PromptTokenizer(ours) if isinstance(known, Tokenizer) else known

    # Programs

    def program(self, component: str) -> Program:
        """The program of a component, prepared on its target on first use.

        Raises:
            InputError: the pipeline has no such component.
            BackendError: its target cannot run it.
            ExportError: it could not be exported to its target's format.
        """
        self._adopt()
        if component in self._outdated:
            self._renew(component)
        program = self._programs.get(component)
        if program is None:
            self._make_room(component)
            with working("prepare", f"Preparing {component}", subject=component):
                program = self._prepare(component)
        return program

    def entry(self, perturbation: Perturbation) -> str:
        """The name of the component that is a worse version of the denoiser; made on first use.

        Raises:
            InputError: the denoiser is exported, or a program, or has no worse versions.
        """
        name, denoiser = perturbation.entry, self.spec.denoiser.name
        if name in self.spec.components:
            return name
        if self._source.format is not None:
            raise InputError(
                f"A guider asked for {name}, a worse version of {denoiser}; {self._source.model} was "
                "exported without it. Export the checkpoint again with --transform "
                f"'{perturbation.text}'."
            )
        component = self.plan.components[denoiser]
        if component.build is None:
            raise InputError(
                f"A guider asked for a worse version of {denoiser}, which was replaced by a program. "
                "Use a guider that needs none, such as classifier-free."
            )
        perturbed(component, perturbation)  # refuses before anything changes
        self._perturbed[name] = perturbation
        self._plan = None
        return name

    @property
    def perturbed(self) -> Mapping[str, Perturbation]:
        """The worse versions of the denoiser that guiders asked for, by component."""
        return dict(self._perturbed)

    def programs(self) -> Mapping[str, Program]:
        """The programs that are prepared so far, by component."""
        return self._programs.all()

    def close(self) -> None:
        """Release every prepared program; those that another pipeline shares stay with it."""
        for name in self._programs.all():
            self._programs.release(name)
        while self._beside:
            self._beside.popitem()[1].close()

    @property
    def residency(self) -> Residency:
        """How large the weights of the components are, and which are needed together."""
        components = self.plan.components
        targets = {name: self._equipped(name) for name in components}
        engines = {n: (host().backend(one.backend), one) for n, one in targets.items()}
        return residency(self._source, components, self.spec, engines)

    def keep_within(self, memory: int | str | None) -> None:
        """Run within so much memory, from now on.

        Components are prepared when their turn comes; before that others are released until there
        is room, those that run in turns with it excepted. One that has no room as a whole runs in
        pieces, where its engine can do that.

        Args:
            memory: Bytes, or ``"6GB"``; ``"low"`` for the least, ``"auto"`` for six tenths of
                what the machine has; ``None`` to keep all.

        Raises:
            InputError: it is less than the least that would do, which the message says.
        """
        self._budget = self.residency.budget(memory) if memory is not None else None
        self.close()

    def _make_room(self, component: str) -> None:
        """Release programs before one more is prepared, as far as that was asked for."""
        budget = -1 if self._one_at_a_time else self._budget
        if budget is not None:
            held = list(self._programs.all())
            for name in self.residency.released(held, component, budget):
                self._programs.release(name)
            return_memory()

    def _prepare(self, name: str) -> Program:
        component = self.component(name)
        replaced = self._models.get(component.spec.part)
        if isinstance(replaced, Program):
            return self._programs.prepare(name, id(replaced), lambda: replaced)
        target = self._equipped(name)
        room = self.residency.room(name, self._budget) if self._budget is not None else None

        def make() -> Program:
            return prepare(
                component,
                target,
                self.store,
                usual=self.usual_sizes(name),
                model=self._source.model,
                room=room,
            )

        return self._programs.prepare(name, (component, target, room), make)

    def weight_shapes(self, component: Component) -> dict[str, tuple[int, ...]]:
        """The shapes of a component's weights by their names in its model's state dict.

        Raises:
            InputError: the component is exported, and its engine takes no other weights.
        """
        component = component.unchanged
        if component.build is None:
            target = self.target(component.name)
            shapes = host().backend(target.backend).weights(component)
            if shapes is None:
                raise InputError(
                    f"A LoRA was to be loaded; {self._source.model} is an export, and {target} takes "
                    f"the weights of its {component.name} as they are. Load it into the checkpoint, "
                    "and export that: perfuse export --lora FILE."
                )
            return dict(shapes)
        for format in host().backends()[self.target(component.name).backend].formats:
            known = known_weights(component, format, self.store)
            if known is not None:
                return shapes_of(known)
        from perfuse.models.changed_weights import named_weights

        weights = named_weights(component.build())
        return {name: tuple(weight.shape) for name, weight in weights.items()}

    def _adapters_changed(self) -> None:
        """Plan anew; programs take the adapters when they run next."""
        self._plan = None
        self._outdated.update(self._programs.all())

    def _set_lora_factor(self, factor: float) -> None:
        """How much the adapters that are not fused count from now on, beside the weight of each."""
        factor = finite(factor, "The scale of the adapters")
        if factor != self._lora_factor:
            self._lora_factor = factor
            self._adapters_changed()

    def _renew(self, name: str) -> None:
        """Have a program take the adapters of its component, or release it."""
        self._outdated.discard(name)
        component = self.component(name)
        if not isinstance(self._models.get(component.spec.part), Program):
            room = self.residency.room(name, self._budget) if self._budget is not None else None
            key = component, self._equipped(name), room
            self._programs.renew(name, key, lambda program: program.rebind(component))

    def _equipped(self, name: str) -> Target:
        """The target that a component runs on, with the component's options."""
        target, described = self.target(name), self.spec.components[name]
        used = {self.target(one).backend for one in self.spec.components}
        options = options_for(
            target,
            self._options,
            host().backend(target.backend),
            len(used) > 1,
            component=described.entry_of if described.entry_of is not None else name,
        )
        return dataclasses.replace(target, options=options)

    def prepare_beside(self, component: Component, like: str) -> Program:
        """The program of a component that is not the pipeline's, where one that is its runs.

        It is prepared once, and released with the pipeline's own.

        Args:
            component: What to run.
            like: The pipeline's component whose target, options and sizes it takes.

        Raises:
            BackendError: the target cannot run it.
            ExportError: it could not be exported to the target's format.
        """
        target = self._equipped(like)
        key = (component, target)
        if key not in self._beside:
            known = {**self.spec.latents.dims(*self.spec.default_size), "batch": 1}
            with working("prepare", f"Preparing {component.name}", subject=component.name):
                self._beside[key] = prepare(
                    component,
                    target,
                    self.store,
                    usual=usual_sizes(component.spec, known),
                    model=component.name,
                )
        return self._beside[key]

    def usual_sizes(self, name: str) -> dict[str, int]:
        """The dimensions of a component for one picture of the checkpoint's default size."""
        known = self.fixed_dims(*self.spec.default_size, 1)[name]
        return usual_sizes(self.spec.components[name], known)

    def fixed_dims(
        self, height: int | None, width: int | None, batch: int | None
    ) -> dict[str, dict[str, int]]:
        """For each component, the dimensions to fix for a size in pixels.

        Raises:
            InputError: the model cannot take the size.
        """

        def lengths() -> list[int]:
            told = (task.inputs.get("max_sequence_length") for task in self.tasks.values())
            most = [int(one.default) for one in told if one is not None]
            return most or [self.prompt_tokenizer(n).model_max_length for n in self.spec.tokenizers]

        return fixed_dims(PipelineTools(self), height, width, batch, lengths)

    def precision_of(self, component: str) -> str | None:
        """What a component computes in; ``None`` if the pipeline was opened without it."""
        found = self.plan.components.get(component)
        return found.precision if found is not None else None

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
        manifest = host().pipelines().get(self._spec.class_name)
        optional = () if manifest is None else manifest.optional
        others = (*source.tokenizers, *source.processors, *source.schedulers, "scheduler")
        return {**{name: [] for name in (*optional, *others)}, **parts_of(source)}

    def _optional(self) -> tuple[str, ...]:
        """The names of what a pipeline of this class may have, or be without."""
        manifest = host().pipelines().get(self._spec.class_name)
        return () if manifest is None else (*manifest.optional, *manifest.unused)

    @property
    def components(self) -> dict[str, Any]:
        """Every model, tokenizer and the scheduler by attribute, ``None`` where there is none.

        Reading this loads the models. ``X.from_pipe(pipe)`` shares them without.
        """
        several = addable(self._source.spec)
        names = (*self._known(), *self._unknown())
        return {
            name: getattr(self, name)
            for name in names
            if not any(name != one and is_one_of(name, one) for one in several)
        }

    def _unknown(self) -> tuple[str, ...]:
        """The names of what only holds a value: optional parts, and others that were registered."""
        return tuple(
            name
            for name in dict.fromkeys((*self._others, *self._optional()))
            if name not in self._known()
        )

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not an ordinary attribute: a component's model, or a tokenizer.
        if "_source" not in self.__dict__ or "_spec" not in self.__dict__:
            raise AttributeError(name)
        if name in _LEFT_OUT or name.startswith("_"):
            return self._of_diffusers(name)
        manifest = host().pipelines().get(self._spec.class_name)
        if manifest is not None and name in manifest.attributes:
            return manifest.attributes[name]
        if name in _DERIVED:
            return _DERIVED[name](self._spec)
        if name == _LABELS and _ID2LABEL in self._spec.options:
            return dict(sorted(class_names(self._spec.options[_ID2LABEL]).items()))
        parts = parts_of(self._spec)
        if name in self._spec.tokenizers:
            return self._tokenizer(name)
        if name in self._spec.processors:
            return ImageProcessor.from_config(self._spec.processors[name])
        if name in self._spec.schedulers:
            return scheduler_from_config(self._spec.schedulers[name])
        if name not in parts:
            if name in self._known():
                return None  # it was removed, or never there
            if name in self._unknown():
                return self._others.get(name)
            return self._of_diffusers(name)
        each = [one for one in parts if is_one_of(one, name)]
        if len(each) > 1 and name in addable(self._source.spec):
            return Several(nets=tuple(self._one(one) for one in each))
        return self._one(name)

    def _one(self, name: str) -> Any:
        """The model of a name, also where it is one of several."""
        if name not in self._models:
            if self._source.format is not None:
                return self.program(parts_of(self._spec)[name][0])
            self._replace(name, self._opened(name))
        return self._with_loras(name)

    def _with_loras(self, name: str) -> Any:
        """The model of an attribute, whose adapters are this pipeline's."""
        model = self._models[name]
        if hasattr(type(model), "adapted_by"):
            model.adapted_by(PartLoras(self, name))
        return model

    def _of_diffusers(self, name: str) -> Any:
        """A method of Diffusers' class that a call here has no need of, for loops of one's own.

        Raises:
            AttributeError: that class has none of this name, or Diffusers is not installed.
        """
        method = _diffusers.method_of(self._spec.class_name, name)
        if method is not None and not name.startswith(_CHANGING):
            return method.__get__(self)
        if name in _LEFT_OUT:
            raise AttributeError(f"{name} is left out of perfuse. {_LEFT_OUT[name]}")
        raise AttributeError(
            f"{self._spec.class_name} has no {name!r}; it has {', '.join(self._known())}"
        )

    def _opened(self, name: str) -> Any:
        """The torch module of an attribute, which the user may change from here on."""
        device = torch_device(self.target(parts_of(self._spec)[name][0]))
        shared, key = self._programs.shared.modules, (name, self.precision, device)
        if key not in shared:
            shared[key] = self._opened_anew(name)
        return shared[key]

    def _opened_anew(self, name: str) -> Any:
        from perfuse.models.building import unwrap

        first = parts_of(self._spec)[name][0]
        device = torch_device(self.target(first))
        module = unwrap(self._source.component(first, precision=self._precision(first)))
        return module if device is None else module.to(device)

    def _adopt(self) -> None:
        """Run the modules that were read from a pipeline that this one shares its models with."""
        for (name, precision, device), module in self._programs.shared.modules.items():
            names = parts_of(self._spec).get(name)
            if names is None or name in self._models or precision != self.precision:
                continue
            if torch_device(self.target(names[0])) == device:
                self._replace(name, module)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in ("scheduler", "task") or "_plan" not in self.__dict__:
            object.__setattr__(self, name, value)
        elif name in self._source.spec.tokenizers:
            self._set_tokenizer(name, value)
        elif name in self._source.spec.schedulers:
            self._set_scheduler(name, value)
        elif value is not None and name in addable(self._source.spec):
            self._extend(name, value)
        elif name == FEATURE_EXTRACTOR and name in self._known():
            self._set_processor(name, value)
        elif name in self._known():
            self._replace(name, value)
        elif name in self._others:
            self._others[name] = value
        else:
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name not in self.__dict__ and name in self._known():
            setattr(self, name, None)  # as Diffusers' users free a component
        else:
            object.__delattr__(self, name)

    def _set_tokenizer(self, name: str, tokenizer: Any) -> None:
        self._tokenizers.pop(name, None)
        if tokenizer is None:
            self._spec = without(self._spec, name)
            self._plan = None
        else:
            ours = isinstance(tokenizer, PromptTokenizer)
            self._tokenizers[name] = tokenizer.ours if ours else tokenizer

    def _set_scheduler(self, name: str, scheduler: Any) -> None:
        """Replace a further scheduler, such as that of an upscaling model's noise."""
        ours = _ours(scheduler)
        if ours is None:
            raise InputError(f"{name} was set to None; {self._spec.class_name} needs it.")
        config = {**ours.config, "_class_name": type(ours).__name__}
        schedulers = {**self._spec.schedulers, name: config}
        self._spec = dataclasses.replace(self._spec, schedulers=schedulers)
        self._plan = None

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
        model = self._uncompiled(part, model)
        spec = self._spec
        names = parts_of(self._source.spec).get(part) or parts_of(spec).get(part, [])
        if part not in parts_of(spec) and names:  # it was removed before
            back = {name: self._source.spec.components[name] for name in names}
            rest = {name: one for name, one in spec.left_out.items() if name not in names}
            components = {**spec.components, **back}
            spec = dataclasses.replace(spec, components=components, left_out=rest)
        if model is None:
            self._spec = without(spec, part)
            self._models.pop(part, None)
        else:
            self._spec = respecified(spec, part, model) if names else added(spec, part, model)
            self._models[part] = model
            self._with_loras(part)
        planned = self._plan.spec.components.values() if self._plan is not None else ()
        entries = [one.name for one in planned if one.entry_of in names]
        self._plan = None
        for name in entries:
            self._perturbed.pop(name, None)  # made anew when a guider asks for it
        for name in (*names, *entries):
            if self._programs.get(name) is not model:
                self._programs.release(name)

    def _extend(self, part: str, model: Any) -> None:
        """Add a component, as one that ``from_pretrained`` is given."""
        former, now = self._source.spec, self._spec
        self._source = extended(self._source, {part: model})
        spec = self._source.spec
        for name in [one for one in self._models if is_one_of(one, part)]:
            del self._models[name]  # they are replaced
        for name in parts_of(former).keys() - parts_of(now).keys():
            spec = without(spec, name)  # as the user left it
        for name, replaced in self._models.items():
            spec = respecified(spec, name, replaced)
        self._spec, self._plan = spec, None
        self.close()
        # What was read before under this name stays with the pipelines that share it.
        read = {name for name, *_ in self._programs.shared.modules if is_one_of(name, part)}
        for name in read & parts_of(self._spec).keys():
            self._replace(name, self._opened_anew(name))

    def _uncompiled(self, part: str, model: Any) -> Any:
        """The model inside one that ``torch.compile`` returned; its components are compiled then."""
        inner = getattr(model, "_orig_mod", None)
        if inner is None:
            return model
        for name in parts_of(self._source.spec).get(part, [part]):
            if "compile" in host().backend(self.placement[name].backend).options:
                self._options[f"{name}.compile"] = "true"
        return inner


def _ours(scheduler: Any) -> Scheduler | None:
    """The scheduler if it is perfuse's; for one of Diffusers, perfuse's of its class and config.

    Raises:
        InputError: it is no scheduler, or perfuse has no scheduler of its class.
    """
    if scheduler is None or isinstance(scheduler, Scheduler):
        return scheduler
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping) or not hasattr(scheduler, "set_timesteps"):
        raise InputError(
            f"scheduler must be a scheduler of perfuse or Diffusers; got {scheduler!r}."
        )
    return scheduler_from_config({**config, "_class_name": type(scheduler).__name__})
