"""Unconditional generation: DDPM (arXiv:2006.11239) and DDIM (arXiv:2010.02502)."""

from typing import Any

from perfuse.arrays.noise import noise_for
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import (
    check_count,
    check_output_type,
    check_size,
    decode,
    denoise_loop,
    draw_latents,
    finish,
    prepare_schedule,
)
from perfuse.tasks.guiders import NoGuidance
from perfuse.tasks.inputs import NOISE, OUTPUT, SIZE, STEPS

__all__ = ["DDIM", "UNCONDITIONAL"]


@step(outputs=("guider", "conditions"))
def check_inputs(tools: Tools, batch_size: int, output_type: str) -> State:
    """Check the inputs before anything is prepared."""
    check_output_type(output_type)
    check_count("batch_size", batch_size)
    return {"guider": NoGuidance(), "conditions": {"positive": {}}}


@step(outputs=("noise", "seeds", "latents"))
def prepare_latents(
    tools: Tools,
    schedule: Schedule,
    batch_size: int,
    height: int,
    width: int,
    seed: Any,
    generator: Any,
    noise_mode: str,
    latents: Array | None,
) -> State:
    """The initial latents of every picture."""
    noise = noise_for(seed, generator, batch=batch_size, mode=noise_mode)
    drawn = draw_latents(tools, noise, schedule, (batch_size, height, width), latents)
    return {"noise": noise, "seeds": noise.seeds, "latents": drawn}


UNCONDITIONAL = Task(
    name="unconditional",
    inputs={
        "batch_size": Input(default=1, kind=int, option="--num-images", help="Pictures to draw."),
        **STEPS,
        **SIZE,
        **NOISE,
        **OUTPUT,
    },
    steps=(
        check_inputs,
        check_size,
        prepare_schedule,
        prepare_latents,
        *denoise_loop,
        decode,
        finish,
    ),
).with_defaults({"num_inference_steps": 1000})

DDIM = UNCONDITIONAL.with_inputs(
    use_clipped_model_output=Input(
        kind=bool,
        help="Whether a step's noise is what the clipped clean sample implies, as in GLIDE.",
    )
).with_defaults({"num_inference_steps": 50})
