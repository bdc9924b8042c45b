"""Calling a pipeline, with the arguments and results of Diffusers' pipelines."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from perfuse.arrays import is_torch, place
from perfuse.contract.hooks import PipelineManifest
from perfuse.contract.steps import Event, Task
from perfuse.errors import InputError, NonFiniteError
from perfuse.plugins import host
from perfuse.run.output import PipelineOutput
from perfuse.run.parts import Parts
from perfuse.run.placing import torch_device
from perfuse.run.precisions import general
from perfuse.run.preview import decoded, guess, preview_decoder
from perfuse.run.progress_bar import progress_bar
from perfuse.run.record import recorded
from perfuse.run.tools import PipelineTools
from perfuse.tasks.callback import Answer, stoppable, tensors_of, with_callback
from perfuse.tasks.choosing import choose
from perfuse.tasks.safety import check_safety

__all__ = ["Calling"]

Callback = Callable[[Any, int, Any, dict[str, Any]], Mapping[str, Any] | None]

#: What Diffusers' classes pass on to attentions; ``scale`` in it says how much adapters count.
_ATTENTIONS = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
#: What else a pipeline of Diffusers shows of the call that runs, or ran last.
_SHOWN = (
    "clip_skip",
    "denoising_end",
    "denoising_start",
    "guidance_rescale",
    "image_guidance_scale",
    "pag_adaptive_scale",
    "pag_scale",
    "skip_guidance_layers",
)


class Calling(Parts):
    """A pipeline's call, its progress bar, and what a callback reads and sets."""

    _progress_bar_config: dict[str, Any]
    _guidance_scale: float | None = None
    _num_timesteps: int = 0
    _interrupt: bool = False
    _running: Task | None = None
    _given: Mapping[str, Any] = {}
    _attentions: Mapping[str, Any] = {}
    _current_timestep: Any = None

    def __call__(
        self,
        *arguments: Any,
        task: str | None = None,
        output: str | Sequence[str] | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        callback: Callable[[int, Any, Any], None] | None = None,
        callback_steps: int | None = None,
        **inputs: Any,
    ) -> Any:
        """Run the pipeline's task. Its inputs are named as in Diffusers.

        Args:
            *arguments: Inputs by position, in the order of the Diffusers class: a prompt first,
                for a task that takes text.
            task: The task's name; by default the task that fits the inputs given.
            output: A name of the task's state, or several, to return instead of pictures: what its
                steps gave.
            return_dict: Whether to return a ``PipelineOutput``, or a tuple of Diffusers' results.
            callback_on_step_end: ``(pipe, index, timestep, tensors) -> tensors``, called after each
                step; what it returns is used from there on. It may set ``pipe._interrupt``.
            callback_on_step_end_tensor_inputs: The tensors that it is given; the latents by
                default.
            callback: Deprecated, as in Diffusers: ``(index, timestep, latents)``.
            callback_steps: Deprecated: after how many steps that is called.
            **inputs: See ``pipe.task.inputs``.

        Returns:
            A ``PipelineOutput``; for ``output`` the value of that name, or a dict of several.

        Raises:
            InputError: an input cannot be used, or nothing in the task gives ``output``.
            BackendError: a target cannot run a component, or failed.
            ExportError: a component could not be exported to its target's format.
            NonFiniteError: the result holds NaN.
        """
        chosen, given, factor = self._chosen(arguments, inputs, task)
        wanted = ("images",) if output is None else (output,) if isinstance(output, str) else output
        _check_known(chosen, wanted)
        chosen = self._with_callback(
            chosen, callback_on_step_end, callback_on_step_end_tensor_inputs or ("latents",)
        )
        if callback is not None or callback_steps is not None:
            chosen = self._with_callback(
                chosen, _legacy(callback, callback_steps or 1), ("latents",)
            )
        state: Mapping[str, Any] = {}
        with _Bar(self._progress_bar_config) as bar:
            for event in self._run(chosen, given, factor):
                state = event.state
                bar.show(event)
        if output is not None:
            found = {name: state[name] for name in wanted}
            return found[output] if isinstance(output, str) else found
        result = PipelineOutput(
            images=_in(state["images"], self._shown_dtype),
            nsfw_content_detected=state.get("nsfw_content_detected"),
            seeds=state.get("seeds", ()),
        )
        manifest = self._manifest()
        returns = ("images",) if manifest is None else manifest.returns
        return result if return_dict else tuple(getattr(result, name) for name in returns)

    def stream(self, *arguments: Any, task: str | None = None, **inputs: Any) -> Iterator[Event]:
        """Run as a call does, one step at a time: for progress, previews and cancelling.

        Each event names its step and holds the state; the last one's has ``images``.
        """
        return self._run(*self._chosen(arguments, inputs, task))

    def preview(self, event: Event, *, vae: Any = None) -> Any:
        """The pictures that a running task aims at: the clean sample that a step predicted.

        Args:
            event: An event of ``stream``, of the run that began last.
            vae: A small autoencoder that decodes it, such as TAESD: an ``AutoencoderTiny``, its
                folder or Hub id. It runs where the pipeline's own does. By default that one decodes.

        Returns:
            PIL images; ``None`` if the event is not that of a denoising step.

        Raises:
            CheckpointError: the folder cannot be read.
            InputError: ``vae`` is no autoencoder of the pipeline's latents.
        """
        task = self._running
        latents = None if task is None else guess(task, event)
        if task is None or latents is None:
            return None
        decoder = preview_decoder(self, vae) if vae is not None else None
        return decoded(PipelineTools(self), task, event, latents, decoder)

    def _run(self, task: Task, inputs: Mapping[str, Any], lora_factor: Any) -> Iterator[Event]:
        self._set_lora_factor(lora_factor if self._loras.names else 1.0)
        self._interrupt, self._running, self._given = False, task, inputs
        scale = inputs.get("guidance_scale")
        usual = task.inputs.get("guidance_scale")
        self._guidance_scale = usual.default if scale is None and usual is not None else scale
        tools = PipelineTools(self)
        events = stoppable(task, _interrupted).run(tools, inputs)
        try:
            for event in recorded(self, task, inputs, events):
                if "schedule" in event.state:
                    self._num_timesteps = len(event.state["schedule"].timesteps)
                yield event
        except NonFiniteError as exc:
            raise NonFiniteError(f"{exc}{tools.witness.told(self)}") from exc

    def _manifest(self) -> PipelineManifest | None:
        """The manifest of the pipeline's class; ``None`` for a class of the user's own."""
        return host().pipelines().get(self._spec.class_name)

    def _chosen(
        self, arguments: Sequence[Any], inputs: Mapping[str, Any], asked: str | None
    ) -> tuple[Task, dict[str, Any], Any]:
        """The task of a call, its inputs by name, and how much adapters count in it."""
        manifest, tasks = self._manifest(), self.tasks
        order = manifest.arguments if manifest is not None else ()
        order = order or tuple(next(iter(tasks.values())).inputs)
        if len(arguments) > len(order):
            raise InputError(
                f"{len(arguments)} inputs were given by position; {self._spec.class_name} takes "
                f"{len(order)}: {', '.join(order)}."
            )
        by_position = dict(zip(order, arguments, strict=False))
        if twice := [name for name in by_position if name in inputs]:
            raise InputError(f"{', '.join(twice)} was given by position and by name. Give it once.")
        asked_for = {**by_position, **inputs}
        self._attentions = {name: asked_for.get(name) for name in _ATTENTIONS}
        given, factor = _without_scale(asked_for)
        known = {name for one in tasks.values() for name in one.inputs}
        # ``None`` is without, also where perfuse has no such input.
        given = {n: value for n, value in given.items() if n in known or value is not None}
        return choose(tasks, given, asked), given, factor

    def _with_callback(self, task: Task, callback: Callback | None, names: Sequence[str]) -> Task:
        if callback is None:
            return task
        if not callable(callback):
            raise InputError(
                f"callback_on_step_end={callback!r} was given; give a function of the pipeline, the "
                "step's number, its timestep and a dict of tensors."
            )
        names = getattr(callback, "tensor_inputs", names)

        def call(index: int, timestep: Any, tensors: dict[str, Any]) -> Answer:
            before, self._current_timestep = self._guidance_scale, timestep
            try:
                returned = callback(self, index, timestep, tensors)
            finally:
                self._current_timestep = None
            after = self._guidance_scale
            if returned is not None and not isinstance(returned, Mapping):
                raise InputError(
                    f"callback_on_step_end returned a {type(returned).__name__}; return the dict of "
                    "tensors that it was given, or None."
                )
            return Answer(
                tensors=returned if returned is not None else {},
                guidance_scale=after if after != before else None,
            )

        return with_callback(
            task, call, names, denoiser=self.spec.denoiser, dtype=self._shown_dtype
        )

    # What Diffusers' pipelines show while they run

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not an ordinary attribute, as ``Parts`` has it.
        task = self.__dict__.get("_running")
        if task is not None and name in _ATTENTIONS:
            return self._attentions.get(name)
        if task is not None and name in _SHOWN and name in task.inputs:
            return self._given.get(name, task.inputs[name].default)
        return super().__getattr__(name)

    @property
    def _callback_tensor_inputs(self) -> list[str]:
        return list(tensors_of(self.task, self.spec.denoiser))

    @property
    def current_timestep(self) -> Any:
        """The timestep of the step that a callback is called after; ``None`` elsewhere."""
        return self._current_timestep

    @property
    def guidance_scale(self) -> float | None:
        """The guidance scale of the last call; a callback changes it by ``_guidance_scale``."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call ran with and without the prompt."""
        return self._guidance_scale is not None and self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """How many steps the last call had."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call that runs is to end after the current step; set ``_interrupt``."""
        return self._interrupt

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Set tqdm's settings: ``disable=True`` for no bar, ``desc``, ``leave`` …"""
        self._progress_bar_config = settings

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A bar over an iterable, or one of ``total`` steps, for a loop of the caller's own.

        Raises:
            InputError: neither was given, or both.
        """
        if (iterable is None) == (total is None):
            raise InputError("progress_bar takes either an iterable or total=.")
        return progress_bar(iterable, total, self._progress_bar_config)

    def run_safety_checker(
        self, image: Any, device: Any = None, dtype: Any = None
    ) -> tuple[Any, list[bool] | None]:
        """What the safety checker says of pictures, for a loop of the caller's own.

        Args:
            image: Pictures [B, C, H, W] in about [-1, 1].
            device: Of no effect: the checker runs where the pipeline has it run.
            dtype: Of no effect.

        Returns:
            The pictures, black where it objects, and for each whether it does; ``None`` for a
            pipeline without a checker.
        """
        done = check_safety.run(PipelineTools(self), image, "pt")
        return done["decoded"], done["nsfw_content_detected"]

    # Prompts

    def encode_prompt(self, *arguments: Any, **inputs: Any) -> tuple[Any, ...]:
        """Text states of prompts, with the arguments and results of the Diffusers class.

        Returns:
            Of Stable Diffusion ``(prompt_embeds, negative_prompt_embeds)``; of other families what
            their class of Diffusers returns: pooled states, masks, position ids. What was not asked
            for is ``None``.

        Raises:
            InputError: the pipeline encodes no prompts, or an argument cannot be used.
        """
        task = self.task
        if task.encoding is None:
            raise InputError(f"{self.spec.class_name} has no encode_prompt: it encodes no prompts.")
        given = {**dict(zip(task.encoding.order, arguments, strict=False)), **inputs}
        for name in ("device", "dtype"):  # those of the pipeline
            given.pop(name, None)
        scale = given.pop("lora_scale", None)
        self._set_lora_factor(1.0 if scale is None else scale)
        chosen = given.pop(task.encoding.chosen, None) or 0
        if "do_classifier_free_guidance" in task.encoding.order:
            given["guidance_scale"] = 2.0 if given.pop("do_classifier_free_guidance", True) else 0.0
        usual = task.encoding.defaults
        given = {**usual, **given}
        given = {name: one for name, one in given.items() if one is not None or name in usual}
        conditions: Mapping[str, Mapping[str, Any]] = {}
        for event in task.run(PipelineTools(self), given):
            if event.step == "encode_prompt":
                conditions = event.state["conditions"]
                break
        device = torch_device(self.placement[self.spec.denoiser.name])
        dtype = self._shown_dtype
        results = task.encoding.results(conditions)
        if task.encoding.chosen:
            results = _one_of(task.encoding.chosen, chosen, results)
        return tuple(_in(_owned(one, device), dtype) for one in results)

    @property
    def _shown_dtype(self) -> Any:
        """The torch dtype of the tensors that a caller is given; ``None`` for float32, as they are."""
        name = general(self.precision)
        return None if name == "float32" else getattr(sys.modules.get("torch"), name, None)


def _without_scale(given: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """A call's inputs without the ``scale`` of its attentions, and that: how much adapters count.

    Raises:
        InputError: what is given for its attentions is no dict.
    """
    rest, scale = dict(given), 1.0
    for name in _ATTENTIONS:
        if (asked := given.get(name)) is None:
            continue
        if not isinstance(asked, Mapping):
            raise InputError(f"{name}={asked!r} was given; give a dict, {{'scale': 0.5}} for one.")
        others = dict(asked)
        scale = others.pop("scale", scale)
        rest[name] = others or None
    return rest, scale


def _in(array: Any, dtype: Any) -> Any:
    """torch's tensors of floats in a dtype; anything else as it is."""
    if isinstance(array, list):
        return [_in(one, dtype) for one in array]
    if dtype is None or not is_torch(array) or not array.dtype.is_floating_point:
        return array
    return array.to(dtype)


def _one_of(name: str, number: Any, results: tuple[Any, ...]) -> tuple[Any, ...]:
    """The results of one of several text encoders; ``InputError`` where there is no such one."""
    if type(number) is not int or not 0 <= number < len(results):
        raise InputError(f"{name}={number!r} was given; it is 0 to {len(results) - 1}.")
    found: tuple[Any, ...] = results[number]
    return found


def _owned(array: Any, device: str | None) -> Any:
    """An array on the denoiser's device, whose owner may write to it, as to a program's he may not."""
    if array is None or isinstance(array, list):
        return array and [_owned(one, device) for one in array]
    placed = place(array, device)
    return placed.clone() if is_torch(placed) else placed


def _check_known(task: Task, names: Sequence[str]) -> None:
    """Raise ``InputError`` unless a task's steps give these names, or its inputs are called so."""
    if missing := [name for name in names if name not in task.known]:
        raise InputError(
            f"{', '.join(missing)} was to be returned; task {task.name!r} gives "
            f"{', '.join(sorted(task.known - set(task.inputs)))}. Ask for one of these: output=NAME."
        )


def _interrupted(tools: Any) -> bool:
    return bool(tools.interrupt)


def _legacy(callback: Callable[[int, Any, Any], None] | None, every: int) -> Callback | None:
    """Diffusers' former callback as one of today's."""
    warnings.warn(
        "Passing callback and callback_steps is deprecated, as it is in Diffusers. Use "
        "callback_on_step_end.",
        FutureWarning,
        stacklevel=3,
    )
    if callback is None:
        return None

    def call(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index % every == 0:
            callback(index // getattr(pipe.scheduler, "order", 1), timestep, tensors["latents"])
        return tensors

    return call


class _Bar:
    """The bar of a call, made when its loop has begun."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings, self._bar = settings, None

    def __enter__(self) -> Self:
        return self

    def show(self, event: Event) -> None:
        """Move on, if the event is an iteration of a loop."""
        if event.total > 1 and self._bar is None:
            self._bar = progress_bar(None, event.total, self._settings)
        if self._bar is not None and event.total > 1:
            self._bar.update()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
