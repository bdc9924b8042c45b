"""The steps that tasks share: schedule, initial noise, denoising loop, decoding."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from perfuse.arrays import concatenate, is_torch, place, to_numpy, zeros
from perfuse.arrays.noise import BatchNoise
from perfuse.contract.backend import Program
from perfuse.contract.control import Call, Control
from perfuse.contract.guider import Branch, Guider, Moment
from perfuse.contract.latents import PixelLatents
from perfuse.contract.spec import Array, ComponentSpec, Role
from perfuse.contract.steps import Loop, State, Tools, step
from perfuse.errors import InputError, NonFiniteError
from perfuse.memory import check_memory
from perfuse.models.registry import held, host_inputs
from perfuse.schedulers import Schedule, Scheduler
from perfuse.tasks.part import Part
from perfuse.tasks.tiling import in_pieces

__all__ = [
    "CHANNELS",
    "REFERENCE",
    "advance",
    "check_count",
    "check_output_type",
    "check_price",
    "check_size",
    "computed_inputs",
    "decode",
    "denoise_loop",
    "draw_latents",
    "finish",
    "guide",
    "pictures_of",
    "place_inputs",
    "predict",
    "prepare_schedule",
]


def pick_size(tools: Tools, height: int | None, width: int | None) -> tuple[int, int]:
    """The height and width of the pictures, in pixels; the checkpoint's default where ``None``.

    Raises:
        InputError: the model cannot draw this size.
    """
    spec = tools.spec
    default = spec.default_size
    sizes = []
    for name, asked, usual in zip(("height", "width"), (height, width), default, strict=True):
        size, multiple = usual if asked is None else asked, spec.size_multiple
        if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % multiple:
            low = max(int(size) // multiple, 1) * multiple if isinstance(size, int) else usual
            raise InputError(
                f"{name} {size!r} was asked for; this model draws multiples of {multiple}, "
                f"for example {low} or {low + multiple}."
            )
        sizes.append(size)
    check_price(tools, 1, sizes[0], sizes[1])
    return sizes[0], sizes[1]


def check_price(tools: Tools, pictures: int, height: int, width: int, *, together: int = 1) -> None:
    """Refuse what cannot fit into memory: a lower bound of what drawing needs is counted.

    That is of all pictures at once the latents, their noise and what the denoiser predicts, and the
    picture as it is decoded and written; and what lies between the denoiser's layers, of the pictures
    that go through it together.

    Args:
        tools: The pipeline.
        pictures: How many are drawn.
        height: In pixels.
        width: In pixels.
        together: How many the denoiser takes in one run.

    Raises:
        InputError: there is not that much memory.
    """
    layout = tools.spec.latents
    latents = math.prod(layout.shape(pictures, height, width))
    between = together * _held(tools, tools.spec.denoiser, layout.dims(height, width))
    pixels = pictures * height * width * 3
    needed = 4 * (3 * latents + pixels) + pixels + between
    count = f"{pictures} pictures" if pictures > 1 else "A picture"
    check_memory(needed, f"{count} of {height} x {width}")


def _held(tools: Tools, spec: ComponentSpec, sizes: Mapping[str, int]) -> int:
    """Bytes of what lies between a component's layers, of one picture; 0 if it does not run here."""
    precision = tools.precision_of(spec.name)
    return held(spec, sizes) * (4 if precision == "float32" else 2) if precision else 0


@step(outputs=("height", "width"))
def check_size(
    tools: Tools,
    height: int | None,
    width: int | None,
    count: int = 1,
    num_images_per_prompt: int = 1,
) -> State:
    """The pictures' height and width, in pixels: those asked for, or the model's own.

    Refuses what cannot fit into memory: so many pictures of that size.
    """
    size = pick_size(tools, height, width)
    check_price(tools, count * num_images_per_prompt, *size)
    return {"height": size[0], "width": size[1]}


def check_count(name: str, count: object) -> None:
    """Raise ``InputError`` unless ``count`` is a whole number of at least 1."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"{name} must be a whole number of at least 1; got {count!r}.")


@step(outputs=("schedule",))
def prepare_schedule(
    tools: Tools,
    num_inference_steps: int,
    timesteps: Any,
    sigmas: Any,
    eta: float,
    mu: float | None = None,
    strength: float | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
    use_clipped_model_output: bool | None = None,
) -> State:
    """The scheduler's steps. Runs after the size is known, because ``mu`` may depend on it."""
    given = timesteps is not None or sigmas is not None
    more: dict[str, Any] = {} if mu is None else {"mu": mu}
    if use_clipped_model_output is not None:
        _check_clips(tools.scheduler)
        more["clipped_output"] = bool(use_clipped_model_output)
    steps = None if given else num_inference_steps
    make = partial(
        tools.scheduler.schedule,
        steps,
        timesteps=timesteps,
        sigmas=sigmas,
        eta=eta,
        **more,
    )
    part = Part(strength=strength, start=denoising_start, end=denoising_end)
    return {"schedule": part.of(make, tools.scheduler, steps)}


def _check_clips(scheduler: Scheduler) -> None:
    if "use_clipped_model_output" not in inspect.signature(scheduler.step).parameters:
        raise InputError(
            f"use_clipped_model_output was given; {type(scheduler).__name__} does not take it. Leave "
            "it out, or set pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)."
        )


def draw_latents(
    tools: Tools,
    noise: BatchNoise,
    schedule: Schedule,
    size: tuple[int, int, int],
    given: Array | None,
) -> Array:
    """The initial latents: unit noise, packed for the denoiser, times the schedule's first sigma.

    Args:
        tools: The pipeline.
        noise: The noise source.
        schedule: The schedule.
        size: The number of pictures, their height and their width in pixels.
        given: The caller's own unit noise, packed already; drawn from ``noise`` if ``None``.

    Raises:
        InputError: ``given`` has another shape than the latents, or they do not fit into memory.
    """
    if given is not None:
        return check_latents(tools, given, size) * schedule.init_noise_sigma
    check_price(tools, *size)
    layout = tools.spec.latents
    return layout.pack(noise.normal(layout.shape(*size))) * schedule.init_noise_sigma


def check_latents(tools: Tools, given: Array, size: tuple[int, int, int]) -> Array:
    """The caller's own latents, packed for the denoiser.

    Args:
        tools: The pipeline.
        given: The latents.
        size: The number of pictures, their height and their width in pixels.

    Raises:
        InputError: ``given`` has another shape than the latents.
    """
    check_price(tools, *size)
    layout = tools.spec.latents
    shape = layout.shape(*size)
    latents = given if is_torch(given) else to_numpy(given)
    packed = tuple(layout.pack(np.empty(shape, dtype=np.float32)).shape)
    if tuple(latents.shape) == shape != packed:
        latents = layout.pack(latents)
    if tuple(latents.shape) != packed:
        raise InputError(f"latents must have shape {shape}; got {tuple(latents.shape)}.")
    return latents


# Conditions

#: A condition of this name is no input of the denoiser: its channels, packed as the sample's are,
#: follow those of the sample, as a mask or a picture does in models made for editing.
CHANNELS = "channels"

#: Conditions ``reference_0``, ``reference_1`` … are no inputs of the denoiser either: they are latents
#: of pictures, [pictures, C, h, w], whose tokens follow those of the sample, once they are packed.
#: What is predicted for them is left out.
REFERENCE = "reference_"
#: All of them together, packed.
_TOKENS = "reference tokens"


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The denoiser's conditions by branch; ``joined`` batches branches that run together."""

    branches: tuple[Branch, ...]
    #: Branch name to its inputs, each [pictures, …], or without a batch axis if it has none.
    inputs: Mapping[str, Mapping[str, Array]]
    #: Inputs whose first axis is the batch.
    batched: frozenset[str]
    _joined: dict[tuple[str, ...], Mapping[str, Array]] = field(default_factory=dict)

    def groups(self, running: Sequence[str]) -> Iterator[tuple[str | None, tuple[str, ...]]]:
        """The running branches, grouped by the entry of the denoiser that they use."""
        entries = {branch.name: branch.entry for branch in self.branches}
        for entry in dict.fromkeys(entries[name] for name in running):
            yield entry, tuple(name for name in running if entries[name] == entry)

    def alike(self, names: tuple[str, ...]) -> bool:
        """Whether the inputs of these branches have equal shapes, so that they can be batched."""
        shapes = ({n: tuple(a.shape) for n, a in self.inputs[name].items()} for name in names)
        first = next(shapes)
        return all(shape == first for shape in shapes)

    def joined(self, names: tuple[str, ...]) -> Mapping[str, Array]:
        """The inputs of these branches as one batch; concatenated once, then cached."""
        if len(names) == 1:
            return self.inputs[names[0]]
        if names not in self._joined:
            first = self.inputs[names[0]]
            self._joined[names] = {
                key: concatenate([self.inputs[name][key] for name in names])
                if key in self.batched
                else array
                for key, array in first.items()
            }
        return self._joined[names]


def _batches(
    tools: Tools,
    conditions: Mapping[str, Mapping[str, Array]],
    guider: Guider,
    pictures: int,
    size: tuple[int, int],
    device: str | None,
) -> Batches:
    spec = tools.spec.denoiser
    batched = {t.name for t in spec.signature.inputs if t.shape and t.shape[0] == "batch"}
    batched |= {CHANNELS, _TOKENS}
    inputs = {}
    for branch in guider.branches:
        if branch.condition not in conditions:
            raise InputError(
                f"{type(guider).__name__} needs the condition {branch.condition!r}; this task "
                f"has {', '.join(conditions) or 'none'}. Use another guider."
            )
        own = _with_tokens(tools, conditions[branch.condition])
        more = _reference_sizes(conditions[branch.condition])
        own |= computed_inputs(tools, own, guider, pictures, size, **more)
        inputs[branch.name] = {name: place(array, device) for name, array in own.items()}
    branches = tuple(
        branch
        if branch.perturbation is None
        else replace(branch, entry=tools.entry(branch.perturbation))
        for branch in guider.branches
    )
    return Batches(branches=branches, inputs=inputs, batched=frozenset(batched))


def computed_inputs(
    tools: Tools,
    inputs: Mapping[str, Array],
    guider: Guider,
    pictures: int,
    size: tuple[int, int],
    **more: int,
) -> dict[str, Array]:
    """What the denoiser takes besides these inputs of a branch, and the host computes of their sizes.

    Args:
        tools: The pipeline.
        inputs: What a condition tells the denoiser.
        guider: What the branch is of.
        pictures: How many are drawn.
        size: Their height and their width in pixels.
        **more: Further sizes.
    """
    spec = tools.spec.denoiser
    sizes = {**tools.spec.latents.dims(*size), **_sizes(spec, inputs), "batch": pictures, **more}
    return host_inputs(spec, sizes, guider.embedded)


def _references(conditions: Mapping[str, Array]) -> dict[str, Array]:
    """The latents of further pictures, in order."""
    names = (f"{REFERENCE}{i}" for i in range(len(conditions)))
    return {name: conditions[name] for name in names if name in conditions}


def _reference_sizes(conditions: Mapping[str, Array]) -> dict[str, int]:
    found = _references(conditions)
    return {
        f"{name}_{side}": int(size)
        for name, latents in found.items()
        for side, size in zip(("height", "width"), latents.shape[-2:], strict=True)
    }


def _with_tokens(tools: Tools, conditions: Mapping[str, Array]) -> dict[str, Array]:
    """The conditions, further pictures packed to one sequence of tokens."""
    found = _references(conditions)
    others = {name: array for name, array in conditions.items() if name not in found}
    if not found:
        return others
    tokens = [tools.spec.latents.pack(latents) for latents in found.values()]
    return {**others, _TOKENS: concatenate(tokens, axis=1)}


def _sizes(spec: ComponentSpec, inputs: Mapping[str, Array]) -> dict[str, int]:
    """The sizes of the named dimensions in these inputs."""
    found: dict[str, int] = {}
    for tensor in spec.signature.inputs:
        if tensor.name in inputs:
            shape = inputs[tensor.name].shape
            pairs = zip(tensor.shape, shape, strict=False)
            found |= {dim: int(size) for dim, size in pairs if isinstance(dim, str)}
    return found


# The loop


def moment_of(schedule: Schedule, index: int) -> Moment:
    """Where the loop is."""
    return Moment(
        index=index, total=len(schedule.timesteps), timestep=float(schedule.timesteps[index])
    )


@step(
    outputs=(
        "samples",
        "previous_samples",
        "predictions",
        "prediction",
        "memory",
        "batches",
        "timesteps",
    )
)
def place_inputs(
    tools: Tools,
    latents: Array,
    schedule: Schedule,
    conditions: Mapping[str, Mapping[str, Array]],
    guider: Guider,
    height: int,
    width: int,
    output_type: str = "pil",
) -> State:
    """Move everything that the loop reads to the denoiser's device, once."""
    program = tools.program(tools.spec.denoiser.name)
    device, count = program.torch_device, len(latents)
    if output_type != "latent":  # rather than when all steps are done
        _check_decoders(tools, height, width)
    most = len(guider.branches) * count
    # float32 [steps, batch]; a smaller batch takes the beginning of a row
    timesteps = np.repeat(schedule.timesteps[:, None], most, axis=1)
    batches = _batches(tools, conditions, guider, count, (height, width), device)
    running = guider.running(moment_of(schedule, 0))
    joined = _fits(program, len(running) * count) and batches.alike(running)
    together = count if program.max_batch is None else min(count, program.max_batch)
    together *= len(running) if joined else 1
    check_price(tools, count, height, width, together=together)
    return {
        "samples": schedule.start(place(latents, device)),
        "previous_samples": None,
        "predictions": None,
        "prediction": None,
        "memory": None,
        "batches": batches,
        "timesteps": place(timesteps, device),
    }


@step(outputs=("predictions",))
def predict(
    tools: Tools,
    index: int,
    samples: tuple[Array, ...],
    schedule: Schedule,
    timesteps: Array,
    batches: Batches,
    guider: Guider,
    controls: Sequence[Control] = (),
) -> State:
    """The denoiser's prediction for each branch that runs at this step, each [pictures, …]."""
    found = answers(tools, index, samples, schedule, timesteps, batches, guider, controls)
    return {"predictions": {name: outputs["out_sample"] for name, outputs in found.items()}}


def answers(
    tools: Tools,
    index: int,
    samples: tuple[Array, ...],
    schedule: Schedule,
    timesteps: Array,
    batches: Batches,
    guider: Guider,
    controls: Sequence[Control] = (),
    *,
    running: Sequence[str] | None = None,
    denoiser: str | None = None,
    kept: Mapping[str, Mapping[str, Array]] | None = None,
) -> dict[str, dict[str, Array]]:
    """All outputs for each branch that runs at a step, each [pictures, …].

    Args:
        tools: The pipeline.
        index: The step.
        samples: The sample, and those of steps before that the schedule needs.
        schedule: The schedule.
        timesteps: [steps, batch].
        batches: The conditions.
        guider: Says which branches run.
        controls: What is added to the denoiser's states.
        running: Some of the branches that run at this step; all of them by default.
        denoiser: Another entry that runs in the denoiser's place.
        kept: The inputs of that entry that the denoiser gave before, by branch, each [pictures, …].
    """
    moment = moment_of(schedule, index)
    sample = schedule.scale_input(index, samples[0])
    own = denoiser if denoiser is not None else tools.spec.denoiser.name
    found: dict[str, dict[str, Array]] = {}
    asked = guider.running(moment) if running is None else running
    for entry, names in batches.groups(asked):
        program = tools.program(entry if entry is not None else own)
        together = _fits(program, len(names) * len(sample)) and batches.alike(names)
        for group in [names] if together else [(name,) for name in names]:
            call = _call(moment, sample, timesteps[index], batches, group)
            more = _together(kept, group) if kept is not None and entry is None else {}
            found |= _ask(tools, program, call, controls, more)
    return found


def _together(kept: Mapping[str, Mapping[str, Array]], names: tuple[str, ...]) -> dict[str, Array]:
    """What was kept for some branches, as one batch."""
    first, *others = (kept[name] for name in names)
    return {key: concatenate([first[key], *(one[key] for one in others)]) for key in first}


def _fits(program: Program, items: int) -> bool:
    """Whether a program runs this many items in one call, without splitting the batch."""
    return program.max_batch is None or items <= program.max_batch


def _call(
    moment: Moment, sample: Array, timesteps: Array, batches: Batches, names: tuple[str, ...]
) -> Call:
    pictures = len(sample)
    if len(names) > 1:
        sample = concatenate([sample] * len(names))
    return Call(
        moment=moment,
        sample=sample,
        timesteps=timesteps[: len(sample)],
        inputs=batches.joined(names),
        branches=tuple({one.name: one for one in batches.branches}[name] for name in names),
        pictures=pictures,
    )


def _ask(
    tools: Tools,
    program: Program,
    call: Call,
    controls: Sequence[Control],
    more: Mapping[str, Array],
) -> dict[str, dict[str, Array]]:
    known = program.signature.input_names
    inputs = {**call.inputs, **more, **_controlled(tools, program, call, controls)}
    given = {name: array for name, array in inputs.items() if name in known}
    sample = call.sample
    if CHANNELS in inputs:
        axis = tools.spec.latents.channel_axis
        sample = concatenate([sample, inputs[CHANNELS]], axis=axis)
    drawn = sample.shape[1]
    if _TOKENS in inputs:
        sample = concatenate([sample, inputs[_TOKENS]], axis=1)
    outputs = dict(program(sample=sample, timestep=call.timesteps, **given))
    if _TOKENS in inputs:
        outputs["out_sample"] = outputs["out_sample"][:, :drawn]
    parts = {
        one.name: slice(i * call.pictures, (i + 1) * call.pictures)
        for i, one in enumerate(call.branches)
    }
    return {
        name: {key: array[part] for key, array in outputs.items()} for name, part in parts.items()
    }


def _controlled(
    tools: Tools, program: Program, call: Call, controls: Sequence[Control]
) -> dict[str, Array]:
    """What the controls give together; zeros where they could and do not."""
    total: dict[str, Array] = {}
    for control in controls:
        for name, array in control.inputs(tools, call).items():
            total[name] = total[name] + array if name in total else array
    spec = tools.spec
    names = {one.name for net in spec.having(Role.CONTROL) for one in net.signature.outputs}
    sizes = _sizes(spec.denoiser, {"sample": call.sample})
    for tensor in program.signature.inputs:
        if tensor.name in names:
            shape = tuple(int(size) for size in tensor.resolve(sizes))
            total[tensor.name] = _of_shape(shape, total.get(tensor.name), call.sample, tensor.name)
    return total


def _of_shape(shape: tuple[int, ...], given: Array | None, like: Array, name: str) -> Array:
    """What controls give, or zeros; one value a channel becomes one for all positions."""
    if given is None:
        return zeros(shape, like)
    if tuple(given.shape) == shape:
        return given
    if tuple(given.shape) == (*shape[:2], 1, 1):
        return zeros(shape, like) + given
    raise InputError(
        f"The denoiser takes {name} of shape {shape}; the model that gives it gave "
        f"{tuple(given.shape)}. Use one that was made for this family of checkpoints."
    )


@step(outputs=("prediction", "memory"))
def guide(
    tools: Tools,
    index: int,
    schedule: Schedule,
    predictions: Mapping[str, Array],
    guider: Guider,
    memory: Any,
) -> State:
    """Combine the branches' predictions into one; ``memory`` is what the guider keeps of a run."""
    moment = moment_of(schedule, index)
    prediction, memory = guider.combine_with_memory(predictions, moment, memory)
    return {"prediction": prediction, "memory": memory}


@step(outputs=("samples", "previous_samples"))
def advance(
    tools: Tools,
    index: int,
    samples: tuple[Array, ...],
    schedule: Schedule,
    prediction: Array,
    noise: BatchNoise,
) -> State:
    """The next sample: apply one step of the schedule."""
    fresh = None
    if schedule.draws[index]:
        fresh = noise.normal(tuple(samples[0].shape))
        if is_torch(samples[0]):
            fresh = place(fresh, samples[0].device)
    after = schedule.advance(index, samples, prediction, fresh)
    return {"samples": after, "previous_samples": samples}


denoise_loop = (
    place_inputs,
    Loop(name="denoise", over="timesteps", steps=(predict, guide, advance)),
)


# The picture


@step(outputs=("decoded",))
def decode(
    tools: Tools,
    samples: tuple[Array, ...],
    output_type: str,
    height: int,
    width: int,
    shown: Mapping[str, Array] | None = None,
) -> State:
    """Pictures [B, C, H, W] in about [-1, 1], or the latents for ``output_type="latent"``.

    ``shown`` is what a decoder made for inpainting sees of the picture.
    """
    latents = samples[0]
    if output_type == "latent":
        return {"decoded": latents}
    return {"decoded": pictures_of(tools, latents, height, width, shown)}


def pictures_of(
    tools: Tools,
    latents: Array,
    height: int,
    width: int,
    shown: Mapping[str, Array] | None = None,
) -> Array:
    """Decode latents to pictures [B, C, H, W] in about [-1, 1].

    Args:
        tools: The pipeline.
        latents: The pipeline's latents.
        height: In pixels.
        width: In pixels.
        shown: The decoder's further inputs [B, …, H, W], if it takes any; by default those with
            which it draws everything itself.

    Raises:
        InputError: the pipeline has no latent decoder.
    """
    layout = tools.spec.latents
    latents = layout.decode(layout.unpack(latents, height, width))
    decoders = tools.spec.having(Role.LATENT_DECODER)
    if not decoders and isinstance(layout, PixelLatents):
        return latents
    if not decoders:
        raise InputError(
            f"{tools.spec.class_name} has no latent decoder to make pictures with; ask for "
            "latents, output_type='latent', or open it with its decoder."
        )
    program, spec = tools.program(decoders[0].name), decoders[0]
    given = {} if shown is None else shown

    def decoded(part: Array, *more: Array) -> Array:
        size = [side * layout.downscale for side in part.shape[-2:]]
        _check_decoding(tools, spec, _at_once(program, len(part)), size)
        usual = host_inputs(spec, _sizes(spec, {"latent_sample": part}))
        inputs = {"latent_sample": part, **usual, **dict(zip(given, more, strict=True))}
        placed = {name: place(one, program.torch_device) for name, one in inputs.items()}
        return program(**placed)["sample"]

    return in_pieces(
        tools,
        decoded,
        latents,
        tile=layout.tile // layout.downscale,
        into=layout.tile,
        beside=tuple(given.values()),
    )


def _check_decoders(tools: Tools, height: int, width: int) -> None:
    """Refuse pictures of which not one could be decoded, in tiles if the pipeline is set to them."""
    tile = tools.spec.latents.tile
    size = [min(side, tile) if tools.vae_tiling else side for side in (height, width)]
    for spec in tools.spec.having(Role.LATENT_DECODER):
        _check_decoding(tools, spec, 1, size)


def _at_once(program: Program, count: int) -> int:
    """How many of so many pictures go through a decoder at once."""
    first = program.signature.inputs[0].shape[0]
    most = first if isinstance(first, int) else program.max_batch
    return min(count, most or count)


def _check_decoding(tools: Tools, spec: ComponentSpec, together: int, size: Sequence[int]) -> None:
    """Refuse what cannot fit into memory: what lies between a decoder's layers."""
    height, width = size
    needed = together * _held(tools, spec, {"height": height, "width": width})
    check_memory(needed, f"Decoding {together} x {height} x {width} pixels at once")


@step(outputs=("images",))
def finish(tools: Tools, decoded: Array, output_type: str) -> State:
    """Convert pictures [B, C, H, W] in about [-1, 1] to ``output_type``.

    Latents stay torch tensors where the denoiser runs on a torch device.

    Raises:
        NonFiniteError: the array holds NaN or infinity.
    """
    from perfuse.arrays import pictures

    array = to_numpy(decoded)
    if output_type == "pt":
        return {"images": place(pictures.to_unit(array).transpose(0, 3, 1, 2), _device(decoded))}
    if output_type != "latent":
        to = pictures.to_unit if output_type == "np" else pictures.to_pil
        return {"images": to(array)}
    if not np.isfinite(array).all():
        raise NonFiniteError(
            f"The result holds {np.count_nonzero(~np.isfinite(array))} values that are NaN or "
            f"infinite, of {array.size}. Try --precision float32, or other settings."
        )
    return {"images": decoded.clone() if is_torch(decoded) else array}


def _device(array: Array) -> str:
    """The torch device of an array; the CPU for one of numpy."""
    return str(array.device) if is_torch(array) else "cpu"


def check_output_type(output_type: str) -> None:
    """Raise ``InputError`` for an unknown ``output_type``."""
    if output_type not in ("pil", "np", "pt", "latent"):
        raise InputError(f"output_type {output_type!r} was asked for; use pil, np, pt or latent.")
