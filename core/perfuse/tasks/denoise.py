"""The steps that every task shares: the schedule, the first noise, the loop, the picture."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays.noise import BatchNoise
from perfuse.arrays.operations import concatenate, is_torch, place, to_numpy
from perfuse.contract.spec import Array
from perfuse.errors import InputError, NonFiniteError
from perfuse.schedulers import Schedule
from perfuse.tasks.guidance import Guidance
from perfuse.tasks.steps import Loop, State, Step, Tools

__all__ = [
    "check_count",
    "check_output_type",
    "check_size",
    "denoise_loop",
    "draw_latents",
    "finish",
    "prepare_schedule",
]


def check_size(tools: Tools, height: int | None, width: int | None) -> tuple[int, int]:
    """The height and width in pixels to draw, the checkpoint's own where none was asked for.

    Raises:
        InputError: a size that the model cannot take.
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
    return sizes[0], sizes[1]


def check_count(name: str, count: object) -> None:
    """Raise ``InputError`` for what is not a whole number of at least one."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"{name} must be a whole number of at least 1; got {count!r}.")


def _prepare_schedule(
    tools: Tools, num_inference_steps: int, timesteps: Any, sigmas: Any, eta: float
) -> State:
    given = timesteps is not None or sigmas is not None
    schedule = tools.scheduler.schedule(
        None if given else num_inference_steps, timesteps=timesteps, sigmas=sigmas, eta=eta
    )
    return {"schedule": schedule}


prepare_schedule = Step(
    name="prepare_schedule",
    inputs=("num_inference_steps", "timesteps", "sigmas", "eta"),
    outputs=("schedule",),
    run=_prepare_schedule,
)


def draw_latents(
    noise: BatchNoise, schedule: Schedule, shape: tuple[int, ...], given: Array | None
) -> Array:
    """The first noisy sample: drawn, or the one given, times the schedule's first sigma."""
    if given is None:
        latents = noise.normal(shape)
    else:
        latents = given if is_torch(given) else to_numpy(given)
        if tuple(latents.shape) != shape:
            raise InputError(f"latents must have shape {shape}; got {tuple(latents.shape)}.")
    return latents * schedule.init_noise_sigma


def _place(
    tools: Tools,
    latents: Array,
    schedule: Schedule,
    conditions: Mapping[str, Array],
    guidance: Guidance,
) -> State:
    """Bring everything that the loop reads to where the denoiser runs, once."""
    device = tools.program(tools.spec.denoiser.name).torch_device
    batch = guidance.branches * len(latents)
    # float32 [steps, batch]; a row is what the denoiser takes
    timesteps = np.repeat(schedule.timesteps[:, None], batch, axis=1)
    return {
        "samples": schedule.start(place(latents, device)),
        "conditions": {name: place(array, device) for name, array in conditions.items()},
        "timesteps": place(timesteps, device),
    }


def _predict(
    tools: Tools,
    index: int,
    samples: tuple[Array, ...],
    schedule: Schedule,
    timesteps: Array,
    conditions: Mapping[str, Array],
    guidance: Guidance,
) -> State:
    sample = schedule.scale_input(index, samples[0])
    if guidance.branches > 1:
        sample = concatenate([sample] * guidance.branches)
    program = tools.program(tools.spec.denoiser.name)
    outputs = program(sample=sample, timestep=timesteps[index], **conditions)
    return {"prediction": outputs["out_sample"]}


def _guide(tools: Tools, prediction: Array, guidance: Guidance) -> State:
    if guidance.branches == 1 and not is_torch(prediction):
        # The schedule may remember it, and the program will write there again.
        return {"prediction": prediction.copy()}
    return {"prediction": guidance.combine(prediction)}


def _advance(
    tools: Tools,
    index: int,
    samples: tuple[Array, ...],
    schedule: Schedule,
    prediction: Array,
    noise: BatchNoise,
) -> State:
    fresh = None
    if schedule.draws[index]:
        fresh = noise.normal(tuple(samples[0].shape))
        if is_torch(samples[0]):
            fresh = place(fresh, samples[0].device)
    return {"samples": schedule.advance(index, samples, prediction, fresh)}


denoise_loop = (
    Step(
        name="place",
        inputs=("latents", "schedule", "conditions", "guidance"),
        outputs=("samples", "conditions", "timesteps"),
        run=_place,
    ),
    Loop(
        name="denoise",
        over="timesteps",
        steps=(
            Step(
                name="predict",
                inputs=("index", "samples", "schedule", "timesteps", "conditions", "guidance"),
                outputs=("prediction",),
                run=_predict,
            ),
            Step(
                name="guide",
                inputs=("prediction", "guidance"),
                outputs=("prediction",),
                run=_guide,
            ),
            Step(
                name="advance",
                inputs=("index", "samples", "schedule", "prediction", "noise"),
                outputs=("samples",),
                run=_advance,
            ),
        ),
    ),
)


def finish(decoded: Array, output_type: str) -> Any:
    """Pictures of the type asked for, from [B, C, H, W] in about [-1, 1].

    Raises:
        NonFiniteError: the array holds NaN or infinity.
    """
    from perfuse.arrays import pictures

    array = to_numpy(decoded)
    if output_type == "latent":
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"The latents hold {np.count_nonzero(~np.isfinite(array))} values that are NaN or "
                f"infinite, of {array.size}. Try --precision float32, or other settings."
            )
        return array
    return pictures.to_unit(array) if output_type == "np" else pictures.to_pil(array)


def check_output_type(output_type: str) -> None:
    """Raise ``InputError`` for a type that ``finish`` does not know."""
    if output_type not in ("pil", "np", "latent"):
        raise InputError(f"output_type {output_type!r} was asked for; use pil, np or latent.")
