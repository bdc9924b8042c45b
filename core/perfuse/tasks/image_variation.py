"""Variations of a picture: the denoiser is told CLIP's embedding of it in place of a prompt."""

from typing import Any

from perfuse.arrays import zeros_like
from perfuse.contract.guider import Guider
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.tasks.denoise import (
    check_count,
    check_output_type,
    check_size,
    decode,
    denoise_loop,
    finish,
    prepare_schedule,
)
from perfuse.tasks.inputs import GUIDANCE, NOISE, OUTPUT, SIZE, STEPS
from perfuse.tasks.pictures import IMAGE, embedding_of
from perfuse.tasks.safety import check_safety
from perfuse.tasks.text import conditions_of, guider_for
from perfuse.tasks.text_to_image import prepare_latents

__all__ = ["IMAGE_VARIATION"]


@step(outputs=("guider",))
def check_inputs(
    tools: Tools,
    guidance_scale: float,
    guidance_rescale: float,
    guider: Any,
    num_images_per_prompt: int,
    output_type: str,
) -> State:
    """Check the inputs before anything is prepared."""
    check_output_type(output_type)
    check_count("num_images_per_prompt", num_images_per_prompt)
    return {"guider": guider_for(tools, guider, guidance_scale, guidance_rescale)}


@step(outputs=("conditions", "count"))
def encode_image(tools: Tools, image: Any, num_images_per_prompt: int, guider: Guider) -> State:
    """The embeddings [pictures, 1, D] of the images; of none, zeros."""
    embedded = embedding_of(tools, image)[:, None]
    positive = {"encoder_hidden_states": embedded}
    nothing = {"encoder_hidden_states": zeros_like(embedded)}
    wanted = {branch.condition for branch in guider.branches} - {"positive"}
    conditions = {"positive": positive, **dict.fromkeys(sorted(wanted), nothing)}
    return {
        "conditions": conditions_of(conditions, num_images_per_prompt),
        "count": len(embedded),
    }


IMAGE_VARIATION = Task(
    name="image-variation",
    inputs={
        **IMAGE,
        **SIZE,
        **STEPS,
        **GUIDANCE,
        "num_images_per_prompt": Input(
            default=1, kind=int, option="--num-images", help="Pictures to draw."
        ),
        **NOISE,
        **OUTPUT,
    },
    steps=(
        check_inputs,
        check_size,
        prepare_schedule,
        encode_image,
        prepare_latents,
        *denoise_loop,
        decode,
        check_safety,
        finish,
    ),
)
