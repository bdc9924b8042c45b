"""A function of the caller's at the end of each denoising step, and a loop that can be stopped."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.arrays import concatenate, is_torch, place, to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array, ComponentSpec
from perfuse.contract.steps import Lists, Loop, State, Step, Task, Tools
from perfuse.errors import InputError
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import CHANNELS, Batches, computed_inputs
from perfuse.tasks.image_prompt import SCALES, scale_of_each
from perfuse.tasks.prompts.language import fixed_length

__all__ = ["Answer", "stoppable", "tensors_of", "with_callback"]

#: What a ControlNet is given to look at.
_PICTURE = "control_image"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the caller's function returned."""

    #: Tensors by Diffusers' names; one that is left out stays as it is.
    tensors: Mapping[str, Any]
    #: The guidance scale from here on; ``None`` for the one there was.
    guidance_scale: float | None = None


Call = Callable[[int, Any, dict[str, Any]], Answer]


# What a callback sees and sets


@dataclass(frozen=True, kw_only=True, eq=False)
class _Now:
    """What the loop holds after a step."""

    tools: Tools
    samples: tuple[Array, ...]
    batches: Batches
    guider: Guider
    #: The height and the width of the pictures, in pixels.
    size: tuple[int, int]
    #: Of inpainting with any model: the mask, the latents to keep, their noise.
    kept: Any
    controls: tuple[Any, ...]


class _Tensor(ABC):
    """A tensor that a callback sees, and may return another for."""

    @abstractmethod
    def shown(self, now: _Now) -> Any:
        """As Diffusers shows it; ``None`` where this run has none."""

    @abstractmethod
    def put(self, now: _Now, name: str, value: Any) -> _Now:
        """The loop with another one in its place."""


class _Latents(_Tensor):
    def shown(self, now: _Now) -> Any:
        return now.samples[0]

    def put(self, now: _Now, name: str, value: Any) -> _Now:
        samples = (_as(value, now.samples[0]), *now.samples[1:])
        return dataclasses.replace(now, samples=samples)


@dataclass(frozen=True)
class _Condition(_Tensor):
    """An input of the denoiser: of a branch; or of all of them, the negative one first."""

    branch: str
    key: str

    def shown(self, now: _Now) -> Any:
        inputs = now.batches.inputs
        if self.branch:
            return inputs[self.branch].get(self.key) if self.branch in inputs else None
        arrays = [own[self.key] for own in inputs.values() if self.key in own]
        if len({tuple(array.shape) for array in arrays}) > 1:  # prompts of two lengths run apart
            return arrays[-1]
        return concatenate(arrays) if arrays else None

    def put(self, now: _Now, name: str, value: Any) -> _Now:
        batches = _with(now.batches, name, self.branch, self.key, value)
        return dataclasses.replace(now, batches=batches)


@dataclass(frozen=True)
class _Prompts(_Tensor):
    """The states of a condition's prompts, a list of an array [S, D] for each."""

    branch: str
    lists: Lists

    def shown(self, now: _Now) -> Any:
        told = now.batches.inputs.get(self.branch)
        return None if told is None else self.lists.of(told)

    def put(self, now: _Now, name: str, value: Any) -> _Now:
        before = self.shown(now)
        if before is None:
            return now
        width, shapes = before[0].shape[1], [tuple(getattr(one, "shape", ())) for one in value]
        if len(shapes) != len(before) or any(
            len(shape) != 2 or shape[1] != width for shape in shapes
        ):
            found = ", ".join(map(str, shapes)) or "none"
            raise InputError(
                f"The callback returned {name} of the shapes {found}; {len(before)} arrays [tokens, "
                f"{width}] are needed."
            )
        denoiser, own = now.tools.spec.denoiser, now.batches.inputs[self.branch]
        fixed = fixed_length(now.tools, denoiser.name, "encoder_hidden_states")
        told = dict(self.lists.told(denoiser, [to_numpy(one) for one in value], tokens=fixed))
        told |= computed_inputs(now.tools, told, now.guider, len(now.samples[0]), now.size)
        more = {key: _as(one, own[key]) for key, one in told.items()}
        inputs = {**now.batches.inputs, self.branch: {**own, **more}}
        batches = dataclasses.replace(now.batches, inputs=inputs, _joined={})
        return dataclasses.replace(now, batches=batches)


class _Mask(_Tensor):
    """The mask of inpainting [B, 1, h, w]: a channel of the denoiser's, or what is put back by."""

    _channels = _Condition("", CHANNELS)

    def shown(self, now: _Now) -> Any:
        if now.kept is not None:
            return concatenate([now.kept[0][:, :1]] * len(now.batches.inputs))
        channels = self._channels.shown(now)
        return None if channels is None else channels[:, :1]

    def put(self, now: _Now, name: str, value: Any) -> _Now:
        if now.kept is not None:
            mask, *others = now.kept
            one = _as(value, mask)[: len(mask)]
            return dataclasses.replace(now, kept=(mask * 0 + one, *others))
        channels = self._channels.shown(now)
        whole = concatenate([_as(value, channels), channels[:, 1:]], axis=1)
        return self._channels.put(now, name, whole)


class _MaskedLatents(_Tensor):
    """The latents of the masked picture, for a model that takes them."""

    _channels = _Condition("", CHANNELS)

    def shown(self, now: _Now) -> Any:
        channels = self._channels.shown(now)
        return None if channels is None else channels[:, 1:]

    def put(self, now: _Now, name: str, value: Any) -> _Now:
        channels = self._channels.shown(now)
        whole = concatenate([channels[:, :1], _as(value, channels)], axis=1)
        return self._channels.put(now, name, whole)


class _ControlPicture(_Tensor):
    """What controls are given to look at, a list of several: once for each branch that follows it."""

    def shown(self, now: _Now) -> Any:
        branches = len(now.batches.inputs)
        pictures = [
            concatenate([one.given[_PICTURE]] * (1 if one.positive_only else branches))
            for one in now.controls
        ]
        return pictures if len(pictures) > 1 else pictures[0]

    def put(self, now: _Now, name: str, value: Any) -> _Now:
        values = value if isinstance(value, list | tuple) else [value]
        controls = []
        for one, picture in zip(now.controls, values, strict=True):
            before = one.given[_PICTURE]
            given = {**one.given, _PICTURE: _as(picture, before)[-len(before) :]}
            controls.append(dataclasses.replace(one, given=given))
        return dataclasses.replace(now, controls=tuple(controls))


#: Diffusers' name of a tensor, the condition that it is of, and the denoiser's input. Without a
#: condition it is that of all that run, one after the other, where Diffusers' class joins them to one
#: batch; elsewhere that of the positive one.
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


def tensors_of(task: Task, denoiser: ComponentSpec) -> Mapping[str, _Tensor]:
    """By Diffusers' name, the tensors that a callback of a task can be given."""
    has, joins = denoiser.signature.input, task.encoding is None or task.encoding.joins
    found: dict[str, _Tensor] = {"latents": _Latents()}
    for name, branch, key in _CONDITIONS:
        if has(key) is not None:
            found[name] = _Condition(branch if joins else branch or "positive", key)
    if task.encoding is not None and (lists := task.encoding.lists) is not None:
        found["prompt_embeds"] = _Prompts("positive", lists)
        found["negative_prompt_embeds"] = _Prompts("negative", lists)
    if "kept" in task.known and joins:
        found |= {"mask": _Mask(), "masked_image_latents": _MaskedLatents()}
    if "controlnet_conditioning_scale" in task.inputs and "control_mode" not in task.inputs:
        found[_PICTURE if _PICTURE in task.inputs else "image"] = _ControlPicture()
    return found


def with_callback(
    task: Task, call: Call, names: Sequence[str], *, denoiser: ComponentSpec, dtype: Any = None
) -> Task:
    """The task with ``call(index, timestep, tensors)`` at the end of each denoising step.

    Args:
        task: The task.
        call: The function.
        names: The tensors that it is given: some of ``tensors_of(task, denoiser)``.
        denoiser: What predicts.
        dtype: The torch dtype that torch's tensors are shown in; ``None`` for their own.

    Raises:
        InputError: a name is unknown, or the task has no denoising loop.
    """
    known = tensors_of(task, denoiser)
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
        height: int,
        width: int,
        kept: Any = None,
        controls: tuple[Any, ...] = (),
    ) -> State:
        now = _Now(
            tools=tools,
            samples=samples,
            batches=batches,
            guider=guider,
            size=(height, width),
            kept=kept,
            controls=controls,
        )
        shown = {name: _seen(known[name].shown(now), dtype) for name in names}
        before = {name: _copy(value) for name, value in shown.items()}
        scales = tools.spec.options.get(SCALES)
        answer = call(index, _timestep(schedule, index, like=samples[0]), dict(shown))
        if tools.spec.options.get(SCALES) != scales:
            scaled = _with_scales(batches, tools.spec.options[SCALES])
            now = dataclasses.replace(now, batches=scaled)
        # What was written to counts as what was returned.
        for name, value in {**shown, **answer.tensors}.items():
            if name not in known or (name in shown and _alike(value, before[name])):
                continue
            if value is None:
                raise InputError(
                    f"callback_on_step_end returned None as {name}. Return a tensor, or leave it "
                    "out."
                )
            now = known[name].put(now, name, value)
        state = {"samples": now.samples, "batches": now.batches, "kept": now.kept}
        state |= {"controls": now.controls, "guider": _rescaled(guider, answer.guidance_scale)}
        return {name: state[name] for name in outputs}

    loop = _loop(task)
    more = (name for name in ("kept", "controls") if name in task.known)
    outputs = ("samples", "batches", "guider", *more)
    step = Step(name="call_back", run=call_back, outputs=outputs)
    return task.replace(loop.name, dataclasses.replace(loop, steps=(*loop.steps, step)))


def _seen(value: Any, dtype: Any) -> Any:
    """A tensor, or a list of them, in the dtype that the pipeline computes in."""
    if isinstance(value, list):
        return [_seen(one, dtype) for one in value]
    floats = is_torch(value) and value.dtype.is_floating_point
    return value.to(dtype) if dtype is not None and floats else value


def _copy(value: Any) -> Any:
    return [one.copy() for one in _arrays(value)]


def _alike(value: Any, before: Sequence[Any]) -> bool:
    found = _arrays(value)
    pairs = zip(found, before, strict=False)
    return len(found) == len(before) and all(np.array_equal(a, b) for a, b in pairs)


def _arrays(value: Any) -> list[Any]:
    each = value if isinstance(value, list | tuple) else [value]
    return [to_numpy(one) for one in each if one is not None]


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
