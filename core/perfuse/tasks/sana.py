"""Pictures with Sana (Xie et al. 2024, arXiv:2410.10629) and Sana-Sprint (Chen et al. 2025,
arXiv:2503.09641).

The text is Gemma's, which reads an instruction before the prompt: what it makes of that, it makes of
the prompt's tokens, and of these alone the denoiser reads states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.captions import CAPTION_INPUTS, read_captions
from perfuse.tasks.denoise import check_count
from perfuse.tasks.encoding import STATES, Taken, masked_encoding
from perfuse.tasks.family import family_task
from perfuse.tasks.masked_prompts import masked_conditions
from perfuse.tasks.prompts.language import LanguageReader, fixed_length
from perfuse.tasks.trained_sizes import BINNING, resize, trained_size

__all__ = ["SANA", "SANA_SPRINT"]

_NO_TEMPLATE = ("", "")
#: The beginning token of a text, and the one that Diffusers counts twice.
_SPECIAL = 2

#: What Sana's language model was told to do in training (section 3.3 of the paper); a line each.
INSTRUCTION = (
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions "
        "suitable for image generation. Evaluate the level of detail in the user prompt:"
    ),
    (
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and "
        "spatial relationships to create vivid and concrete scenes."
    ),
    (
        "- If the prompt is already detailed, refine and enhance the existing details slightly without "
        "overcomplicating."
    ),
    "Here are examples of how to transform or refine prompts:",
    (
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, "
        "sleeping peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers."
    ),
    (
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring "
        "glowing street lamps, a diverse crowd of people in colorful clothing, and a double-decker bus "
        "passing by towering glass skyscrapers."
    ),
    (
        "Please generate only the enhanced description for the prompt below and avoid including any "
        "additional commentary or evaluations:"
    ),
    "User Prompt: ",
)


@step(outputs=("height", "width", "asked_size"), name="check_size")
def nearest_size(
    tools: Tools, height: int | None, width: int | None, use_resolution_binning: bool
) -> State:
    """The size of the training whose shape is nearest to what is asked for, and that itself."""
    return trained_size(tools, height, width, binning=use_resolution_binning, downscale=32)


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    prompt_attention_mask: Array | None,
    negative_prompt_attention_mask: Array | None,
    num_images_per_prompt: int,
    max_sequence_length: int,
    complex_human_instruction: Sequence[str] | None,
    guider: Guider,
) -> State:
    """Gemma's states and their mask, each [pictures, …], by condition of the guider."""
    given = complex_human_instruction
    if given and (isinstance(given, str) or not all(isinstance(line, str) for line in given)):
        raise InputError(
            f"complex_human_instruction must be lines of text; got {given!r}. Give a list, or None."
        )
    conditions = masked_conditions(
        guider,
        num_images_per_prompt,
        partial(_read, tools, max_sequence_length, "\n".join(given or ())),
        positive=(prompts, prompt_embeds, prompt_attention_mask),
        negative=(
            negatives or [""] * count,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        ),
        read_negative=partial(_read, tools, max_sequence_length, ""),
    )
    return {"conditions": conditions}


def _read(tools: Tools, length: int, instruction: str, texts: list[str]) -> Mapping[str, Array]:
    """The states of the first token and of the last ones, as many as ``length`` all together."""
    read = LanguageReader(tools=tools)
    before = len(read.tokenizer.ids(instruction)) - _SPECIAL if instruction else 0
    wrapped = [instruction + text for text in texts]
    tokens = read.tokens(wrapped, before + length, template=_NO_TEMPLATE, filled=True)
    # To the beginning, whatever side the tokenizer fills up.
    order = np.argsort(-tokens.attention_mask, axis=1, kind="stable")
    ids, mask = (
        np.take_along_axis(one, order, axis=1) for one in (tokens.input_ids, tokens.attention_mask)
    )
    kept = [0, *range(ids.shape[1] - length + 1, ids.shape[1])]
    states = to_numpy(read(ids, mask))[:, kept]
    fixed = fixed_length(tools, tools.spec.denoiser.name, "encoder_hidden_states")
    room = (0, 0 if fixed is None else max(fixed - length, 0))
    return {
        "encoder_hidden_states": np.pad(states, ((0, 0), room, (0, 0))),
        "encoder_attention_mask": np.pad(mask[:, kept], ((0, 0), room)),
    }


@step(outputs=("schedule",), name="prepare_schedule")
def prepare_angles(
    tools: Tools,
    num_inference_steps: int,
    timesteps: Any,
    max_timesteps: float | None,
    intermediate_timesteps: float | None,
) -> State:
    """The angles of a consistency model, over latents of deviation 1."""
    check_count("num_inference_steps", num_inference_steps)
    scheduler = tools.scheduler
    unscaled = type(scheduler).from_config({**scheduler.config, "sigma_data": 1.0})
    asked = {
        "timesteps": timesteps,
        "max_timesteps": max_timesteps,
        "intermediate_timesteps": intermediate_timesteps,
    }
    chosen = {name: value for name, value in asked.items() if value is not None}
    return {"schedule": unscaled.schedule(num_inference_steps, **chosen)}


_INPUTS = {
    **CAPTION_INPUTS,
    "use_resolution_binning": BINNING,
    "max_sequence_length": Input(
        default=300, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
    ),
    "complex_human_instruction": Input(
        default=INSTRUCTION, help="The lines that Gemma reads before a prompt; None for none."
    ),
}

SANA = family_task(
    _INPUTS,
    {"num_inference_steps": 20, "guidance_scale": 4.5},
    read_captions,
    nearest_size,
    encode_prompt,
    encoding=masked_encoding(
        "prompt do_classifier_free_guidance negative_prompt num_images_per_prompt device prompt_embeds "
        "negative_prompt_embeds prompt_attention_mask negative_prompt_attention_mask clean_caption "
        "max_sequence_length complex_human_instruction lora_scale",
        complex_human_instruction=None,
    ),
).insert(resize, after="decode")


_SPRINT_ENCODED = (
    "prompt num_images_per_prompt device prompt_embeds prompt_attention_mask clean_caption "
    "max_sequence_length complex_human_instruction lora_scale"
)


def _distilled(task: Task) -> Task:
    """Sana-Sprint's: in as many steps as angles, without a negative prompt."""
    own = {
        "max_timesteps": Input(kind=float, help="The first angle; 1.5708 by default."),
        "intermediate_timesteps": Input(
            kind=float, help="The second angle of two steps; 1.3 by default."
        ),
    }
    angles = task.with_inputs(**own).replace("prepare_schedule", prepare_angles)
    taken = {name: one for name, one in angles.inputs.items() if name != "sigmas"}
    return replace(
        angles,
        inputs=taken,
        encoding=Encoding(
            order=tuple(_SPRINT_ENCODED.split()),
            results=Taken((("positive", STATES), ("positive", "encoder_attention_mask"))),
            joins=True,
            defaults={"complex_human_instruction": None},
        ),
    )


SANA_SPRINT = _distilled(SANA).with_defaults({"num_inference_steps": 2})
