"""Pictures with FLUX.2 klein (Black Forest Labs 2025): from text, and from pictures to edit."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perfuse.arrays import is_torch, place
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.models.language_model.description import layers_of
from perfuse.tasks.denoise import check_count, check_output_type
from perfuse.tasks.encoding import STATES
from perfuse.tasks.family import family_task
from perfuse.tasks.flow import flow_schedule, tokens_of
from perfuse.tasks.guiders import ClassifierFreeGuidance
from perfuse.tasks.prompts.language import LanguageReader
from perfuse.tasks.prompts.sequences import check_length
from perfuse.tasks.text import Prompt, guider_for, read_conditions
from perfuse.tasks.text_to_image import checked_texts

__all__ = ["FLUX2_TEXT_TO_IMAGE"]

_MOST = 512
#: The scale of Diffusers' class; a distilled model is not asked for it.
_USUAL = 4.0
#: The hidden states of Qwen 3 that it was trained with.
_LAYERS = (9, 18, 27)


@step(outputs=("prompts", "negatives", "count", "guider"))
def read_prompts(
    tools: Tools,
    prompt: Prompt,
    negative_prompt: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    guidance_scale: float,
    guidance_rescale: float,
    guider: Any,
    num_images_per_prompt: int,
    max_sequence_length: int,
    output_type: str,
) -> State:
    """Check the inputs, and choose the guidance: none for a model distilled to few steps."""
    check_output_type(output_type)
    check_length(max_sequence_length, _MOST)
    texts = checked_texts(
        tools, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
    )
    distilled = bool(tools.spec.options.get("is_distilled", False))
    if distilled and guider is None and guidance_scale > 1 and guidance_scale != _USUAL:
        warnings.warn(
            f"guidance_scale={guidance_scale} was given; this model was distilled to draw in few "
            "steps without guidance (is_distilled in model_index.json), so the scale changes "
            "nothing. Leave it out, or use a base model.",
            stacklevel=2,
        )
    if distilled and guider is None:
        return {**texts, "guider": ClassifierFreeGuidance(guidance_scale=1.0)}
    return {**texts, "guider": guider_for(tools, guider, guidance_scale, guidance_rescale)}


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    num_images_per_prompt: int,
    max_sequence_length: int,
    text_encoder_out_layers: Sequence[int],
    guider: Guider,
) -> State:
    """States of three layers, joined, of as many tokens as are read: what fills up counts, too."""
    read = LanguageReader(tools=tools)

    def states(texts: list[str], given: Array | None = None) -> Mapping[str, Array]:
        if given is None:
            _read_layers(tools, text_encoder_out_layers)
            tokens = read.tokens(texts, max_sequence_length, filled=True)
            given = read(tokens.input_ids, tokens.attention_mask)
        return {"encoder_hidden_states": given}

    conditions = read_conditions(
        guider,
        num_images_per_prompt,
        positive=lambda: states(prompts, prompt_embeds),
        negative=lambda: states(negatives or [""] * count, negative_prompt_embeds),
        empty=lambda: states([""] * count),
    )
    return {"conditions": conditions}


def _read_layers(tools: Tools, layers: Sequence[int]) -> None:
    """Have the language model give the states of these layers from now on.

    Raises:
        InputError: they are no whole numbers; or it has no such layers, or is exported with others.
    """
    if isinstance(layers, str) or not all(isinstance(i, int | np.integer) for i in layers):
        raise InputError(
            f"text_encoder_out_layers={layers!r} was given; give the numbers of layers, such as "
            f"{_LAYERS}."
        )
    reader = tools.spec.components.get(LanguageReader.name)
    if reader is not None and tuple(layers) != layers_of(reader):
        tools.add_transform(f"text-layers:layers={'+'.join(map(str, layers))}")


def empirical_mu(tokens: int, steps: int) -> float:
    """The shift that FLUX.2's authors fitted to pictures' sizes and numbers of steps."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope


@step(outputs=("schedule",))
def prepare_schedule(
    tools: Tools,
    num_inference_steps: int,
    timesteps: Any,
    sigmas: Any,
    eta: float,
    height: int,
    width: int,
) -> State:
    """Levels from 1 to one n-th, evenly, shifted by the picture's size and the number of steps."""
    check_count("num_inference_steps", num_inference_steps)
    config = tools.scheduler.config
    if sigmas is None and timesteps is None and not config.get("use_flow_sigmas", False):
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    mu = None
    if config.get("use_dynamic_shifting", False):
        mu = empirical_mu(tokens_of(tools, height, width), num_inference_steps)
    schedule = flow_schedule(
        tools, num_inference_steps, sigmas=sigmas, mu=mu, timesteps=timesteps, eta=eta
    )
    return {"schedule": schedule}


def _encoded(conditions: Mapping[str, Mapping[str, Array]]) -> tuple[Array, ...]:
    """Text states [B, S, D], and the ids of the tokens' places [B, S, 4]: of the last axis."""
    states = conditions["positive"][STATES]
    ids = np.zeros((*states.shape[:2], 4), dtype=np.int64)
    ids[..., 3] = np.arange(states.shape[1])
    return states, place(ids, states.device if is_torch(states) else None)


FLUX2_TEXT_TO_IMAGE = family_task(
    {
        "max_sequence_length": Input(
            default=_MOST,
            kind=int,
            option="--max-tokens",
            help="Tokens of a prompt with its template; what is left of them is filled up.",
        ),
        "text_encoder_out_layers": Input(
            default=_LAYERS, help="The layers of the language model whose states are read."
        ),
    },
    {"guidance_scale": _USUAL},
    read_prompts,
    prepare_schedule,
    encode_prompt,
    encoding=Encoding(
        order=(
            "prompt",
            "device",
            "num_images_per_prompt",
            "prompt_embeds",
            "max_sequence_length",
            "text_encoder_out_layers",
        ),
        results=_encoded,
    ),
)
