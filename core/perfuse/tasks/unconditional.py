"""Pictures out of noise alone (Ho et al. 2020; Song et al. 2021)."""

from typing import Any

from perfuse.arrays.noise import noise_for
from perfuse.contract.spec import Array
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import (
    check_count,
    check_output_type,
    check_size,
    denoise_loop,
    draw_latents,
    finish,
    prepare_schedule,
)
from perfuse.tasks.guidance import Guidance
from perfuse.tasks.steps import State, Step, Task, Tools

__all__ = ["UNCONDITIONAL"]


def _prepare(
    tools: Tools,
    schedule: Schedule,
    batch_size: int,
    height: int | None,
    width: int | None,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None,
    output_type: str,
) -> State:
    check_output_type(output_type)
    check_count("batch_size", batch_size)
    sample = tools.spec.denoiser.signature.inputs[0]
    size = check_size(tools, height, width)
    noise = noise_for(seed, generator, batch=batch_size, mode=noise_mode)
    shape = (batch_size, int(sample.shape[1]), *size)
    return {
        "noise": noise,
        "seeds": noise.seeds,
        "latents": draw_latents(noise, schedule, shape, latents),
        "conditions": {},
        "guidance": Guidance(scale=1.0),
    }


def _finish(tools: Tools, samples: tuple[Array, ...], output_type: str) -> State:
    return {"images": finish(samples[0], output_type)}


UNCONDITIONAL = Task(
    name="unconditional",
    inputs={
        "batch_size": 1,
        "num_inference_steps": 1000,
        "timesteps": None,
        "sigmas": None,
        "eta": 0.0,
        "height": None,
        "width": None,
        "seed": None,
        "generator": None,
        "noise_mode": "torch-cpu",
        "latents": None,
        "output_type": "pil",
    },
    steps=(
        prepare_schedule,
        Step(
            name="prepare_latents",
            inputs=(
                "schedule",
                "batch_size",
                "height",
                "width",
                "seed",
                "generator",
                "noise_mode",
                "latents",
                "output_type",
            ),
            outputs=("noise", "seeds", "latents", "conditions", "guidance"),
            run=_prepare,
        ),
        *denoise_loop,
        Step(name="finish", inputs=("samples", "output_type"), outputs=("images",), run=_finish),
    ),
)
