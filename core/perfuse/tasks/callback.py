"""A function of the caller's at the end of each denoising step, and a loop that can be stopped."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from perfuse.arrays import concatenate, is_torch, place
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array, ComponentSpec
from perfuse.contract.steps import Loop, State, Step, Task, Tools
from perfuse.errors import InputError
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import Batches
from perfuse.tasks.image_prompt import SCALES, scale_of_each

__all__ = ["Answer", "stoppable", "tensors_of", "with_callback"]

#: Diffusers' name of a tensor, the condition that it is of, and the denoiser's input. Without a
#: condition it is that of all that run, one after the other as Diffusers batches them; or of the
#: positive one alone, where they are not alike and run apart.
_CONDITIONS = (
    ("prompt_embeds", "", "encoder_hidden_states"),
    ("negative_prompt_embeds", "negative", "encoder_hidden_states"),
    ("prompt_embeds_2", "", "encoder_hidden_states_t5"),
    ("negative_prompt_embeds_2", "negative", "encoder_hidden_states_t5"),
    ("add_text_embeds", "", "text_embeds"),
    ("negative_pooled_prompt_embeds", "negative", "text_embeds"),
    ("add_time_ids", "", "time_ids"),
    ("negative_add_time_ids", "negative", "time_ids"),
    ("pooled_prompt_embeds", "", "pooled_projections"),
    ("negative_pooled_prompt_embeds", "negative", "pooled_projections"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What the caller's function returned."""

    #: Tensors by Diffusers' names; one that is left out stays as it is.
    tensors: Mapping[str, Any]
    #: The guidance scale from here on; ``None`` for the one there was.
    guidance_scale: float | None = None


Call = Callable[[int, Any, dict[str, Any]], Answer]


def tensors_of(denoiser: ComponentSpec) -> tuple[str, ...]:
    """The names of the tensors that a callback can be given."""
    return ("latents", *_conditions(denoiser))


def _conditions(denoiser: ComponentSpec) -> dict[str, tuple[str, str]]:
    """Diffusers' names of what the denoiser is given, each with its condition and input."""
    has = denoiser.signature.input
    return {name: (branch, key) for name, branch, key in _CONDITIONS if has(key) is not None}


def with_callback(task: Task, call: Call, names: Sequence[str], *, denoiser: ComponentSpec) -> Task:
    """The task with ``call(index, timestep, tensors)`` at the end of each denoising step.

    Args:
        task: The task.
        call: The function.
        names: The tensors that it is given: some of ``tensors_of(denoiser)``.
        denoiser: What predicts.

    Raises:
        InputError: a name is unknown, or the task has no denoising loop.
    """
    known, conditions = tensors_of(denoiser), _conditions(denoiser)
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            f"callback_on_step_end_tensor_inputs has {', '.join(unknown)}; there are "
            f"{', '.join(known)}."
        )

    def call_back(
        tools: Tools,
        index: int,
        samples: tuple[Array, ...],
        schedule: Schedule,
        batches: Batches,
        guider: Guider,
    ) -> State:
        there = {"latents": samples[0]}
        there |= {n: _shown(batches, *conditions[n]) for n in names if n in conditions}
        time = _timestep(schedule, index, like=samples[0])
        scales = tools.spec.options.get(SCALES)
        answer = call(index, time, {name: there[name] for name in names})
        if tools.spec.options.get(SCALES) != scales:
            batches = _with_scales(batches, tools.spec.options[SCALES])
        changed = {
            name: value for name, value in answer.tensors.items() if value is not there.get(name)
        }
        if none := [name for name in changed if name in known and changed[name] is None]:
            raise InputError(
                f"callback_on_step_end returned None as {', '.join(none)}. Return a tensor, or leave "
                "it out."
            )
        if "latents" in changed:
            samples = (_as(changed["latents"], samples[0]), *samples[1:])
        for name, key in conditions.items():
            if name in changed:
                batches = _with(batches, name, *key, changed[name])
        scaled = _rescaled(guider, answer.guidance_scale)
        return {"samples": samples, "batches": batches, "guider": scaled}

    loop = _loop(task)
    step = Step(name="call_back", run=call_back, outputs=("samples", "batches", "guider"))
    return task.replace(loop.name, dataclasses.replace(loop, steps=(*loop.steps, step)))


def stoppable(task: Task, stops: Callable[[Any], bool]) -> Task:
    """The task with a denoising loop that ends where ``stops(pipeline)`` is true."""
    try:
        loop = _loop(task)
    except InputError:
        return task  # there is no loop to stop
    return task.replace(loop.name, dataclasses.replace(loop, stops=stops))


def _loop(task: Task) -> Loop:
    found = task.find("denoise")
    if not isinstance(found, Loop):
        raise InputError(f"{task.name} has a step denoise that is no loop, so it has no steps.")
    return found


def _timestep(schedule: Schedule, index: int, *, like: Array) -> Any:
    value = float(schedule.timesteps[index])
    number = np.asarray(int(value) if value.is_integer() else np.float32(value))
    return place(number, str(like.device)) if is_torch(like) else number


def _shown(batches: Batches, branch: str, key: str) -> Array | None:
    """A condition as Diffusers shows it: the negative one before the positive one."""
    if branch:
        return batches.inputs[branch].get(key) if branch in batches.inputs else None
    arrays = [inputs[key] for inputs in batches.inputs.values() if key in inputs]
    if len({tuple(array.shape) for array in arrays}) > 1:
        return arrays[-1]
    return concatenate(arrays) if arrays else None


def _with(batches: Batches, name: str, branch: str, key: str, value: Array) -> Batches:
    """The conditions with one changed; a single batch is that of the positive condition."""
    names = [branch] if branch else [n for n, inputs in batches.inputs.items() if key in inputs]
    if not names or names[0] not in batches.inputs:
        return batches
    size = len(batches.inputs[names[-1]][key])
    if len(value) == size:
        names = names[-1:]
    elif len(value) != size * len(names):
        raise InputError(
            f"The callback returned {name} with {len(value)} items; {size} are needed, or "
            f"{size * len(names)} for all conditions."
        )
    inputs = dict(batches.inputs)
    for i, one in enumerate(names):
        part = _as(value[i * size : (i + 1) * size], inputs[one][key])
        inputs[one] = {**inputs[one], key: part}
    return dataclasses.replace(batches, inputs=inputs, _joined={})


def _with_scales(batches: Batches, scales: Sequence[Any]) -> Batches:
    """The conditions, image prompts counting as much as the callback set."""
    inputs = {name: dict(own) for name, own in batches.inputs.items()}
    for own in inputs.values():
        for i, scale in enumerate(scales):
            before = own[f"ip_scales_{i}"]
            own[f"ip_scales_{i}"] = _as(scale_of_each(scale, *before.shape), before)
    return dataclasses.replace(batches, inputs=inputs, _joined={})


def _as(value: Array, like: Array) -> Array:
    """An array of the caller's in the place of one of the loop's."""
    return place(value, str(like.device) if is_torch(like) else None)


def _rescaled(guider: Guider, scale: float | None) -> Guider:
    if scale is None or not hasattr(guider, "guidance_scale"):
        return guider
    return dataclasses.replace(guider, guidance_scale=scale)  # type: ignore[type-var]
