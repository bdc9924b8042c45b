"""Pictures with CogView 4 (https://github.com/THUDM/CogView4), which is told their size, as SD XL is."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.models.positions import HIDDEN
from perfuse.tasks.denoise import check_count
from perfuse.tasks.encoding import STATES, encoding
from perfuse.tasks.family import family_task
from perfuse.tasks.flow import flow_schedule, tokens_of
from perfuse.tasks.masked_prompts import length_up_to
from perfuse.tasks.prompts.language import LanguageReader, fixed_length
from perfuse.tasks.text import read_conditions

__all__ = ["COGVIEW_4"]

_MOST = 1024
#: Prompts are filled up at their beginning to a multiple of so many tokens, all of which count.
_MULTIPLE = 16


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    original_size: tuple[int, int] | None,
    crops_coords_top_left: tuple[int, int],
    height: int,
    width: int,
    num_images_per_prompt: int,
    max_sequence_length: int,
    guider: Guider,
) -> State:
    """The states of the last layer but one, and the sizes, by condition of the guider."""
    read = LanguageReader(tools=tools)
    fixed = fixed_length(tools, tools.spec.denoiser.name, "encoder_hidden_states")
    whole = (height, width) if original_size is None else original_size
    told = [*_pair("original_size", whole), *_pair("crops_coords_top_left", crops_coords_top_left)]

    def states(texts: list[str], given: Array | None = None) -> Mapping[str, Array]:
        found = to_numpy(_read(read, texts, max_sequence_length) if given is None else given)
        length = found.shape[1]
        room = 0 if fixed is None else max(fixed - length, 0)
        bias = np.zeros((len(found), length), dtype=np.float32)
        return {
            "encoder_hidden_states": np.pad(found, ((0, 0), (0, room), (0, 0))),
            "text_bias": np.pad(bias, ((0, 0), (0, room)), constant_values=HIDDEN),
            "sizes": np.tile(np.array([*told, height, width], np.float32), (len(found), 1)),
        }

    conditions = read_conditions(
        guider,
        num_images_per_prompt,
        positive=lambda: states(prompts, prompt_embeds),
        negative=lambda: states(negatives or [""] * count, negative_prompt_embeds),
        empty=lambda: states([""] * count),
    )
    return {"conditions": conditions}


def _read(read: LanguageReader, texts: list[str], longest: int) -> Array:
    ids = read.tokens(texts, longest).input_ids
    filler = read.tokenizer.pad_token_id
    assert filler is not None  # reading several prompts needs it, too
    more = -ids.shape[1] % _MULTIPLE
    ids = np.pad(ids, ((0, 0), (more, 0)), constant_values=filler)
    return read(ids, np.ones_like(ids))


def _pair(name: str, value: Any) -> tuple[int, int]:
    """Two numbers.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, list | tuple) or [type(one) for one in value] != [int, int]:
        raise InputError(f"{name} must be two whole numbers, (height, width); got {value!r}.")
    return value[0], value[1]


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
    """Levels of whole timesteps, shifted by the picture's size; the denoiser is told those before."""
    check_count("num_inference_steps", num_inference_steps)
    config = tools.scheduler.config
    total = config.get("num_train_timesteps", 1000)
    if timesteps is None:
        count = num_inference_steps if sigmas is None else len(sigmas)
        timesteps = np.linspace(total, 1.0, count)
    timesteps = np.asarray(timesteps).astype(np.int64).astype(np.float32)
    mu = None
    if config.get("use_dynamic_shifting", False):
        root = (tokens_of(tools, height, width) / config.get("base_image_seq_len", 256)) ** 0.5
        mu = root * config.get("max_shift", 0.75) + config.get("base_shift", 0.25)
    schedule = flow_schedule(
        tools,
        num_inference_steps,
        sigmas=timesteps / total if sigmas is None else sigmas,
        mu=mu,
        timesteps=timesteps,
        eta=eta,
    )
    return {"schedule": schedule}


COGVIEW_4 = family_task(
    {
        "original_size": Input(
            help="Height and width, in pixels, that the picture seems made from; its own."
        ),
        "crops_coords_top_left": Input(
            default=(0, 0), help="Row and column, in pixels, at which it seems cut out of that."
        ),
        "max_sequence_length": Input(
            default=_MOST, kind=int, option="--max-tokens", help="Tokens of a prompt that are read."
        ),
    },
    {"guidance_scale": 5.0},
    prepare_schedule,
    encode_prompt,
    encoding=encoding(
        "prompt negative_prompt do_classifier_free_guidance num_images_per_prompt prompt_embeds "
        "negative_prompt_embeds device dtype max_sequence_length",
        ("positive", STATES),
        ("negative", STATES),
        joins=False,
    ),
).insert(length_up_to(_MOST), before="read_prompts")
