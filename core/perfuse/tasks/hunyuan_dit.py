"""Pictures with Hunyuan-DiT (Li et al. 2024, arXiv:2405.08748), from Chinese or English text.

Two encoders read it: a BERT that was trained with pictures, and a T5 of many languages.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.denoise import pick_size
from perfuse.tasks.family import family_task
from perfuse.tasks.masked_prompts import MASKS, Texts, masked_conditions
from perfuse.tasks.prompts.sequences import encode_sequence
from perfuse.tasks.safety import check_safety
from perfuse.tasks.text_to_image import read_prompts
from perfuse.tasks.text_to_image_xl import Size

__all__ = ["HUNYUAN_DIT", "trained_size"]

#: Heights and widths of the training, in pixels, by their shape, width to height.
_TRAINED = {
    1 / 1: ((1024, 1024), (1280, 1280)),
    4 / 3: ((768, 1024), (864, 1152), (960, 1280)),
    3 / 4: ((1024, 768), (1152, 864), (1280, 960)),
    16 / 9: ((768, 1280),),
    9 / 16: ((1280, 768),),
}
#: What a text encoder's states and their mask are called, by what the names in a call end in.
_INPUTS = {
    "": ("encoder_hidden_states", "text_embedding_mask"),
    "_2": ("encoder_hidden_states_t5", "text_embedding_mask_t5"),
}
_SIZES = "image_meta_size"


@step(outputs=("height", "width"))
def check_size(
    tools: Tools, height: int | None, width: int | None, use_resolution_binning: bool
) -> State:
    """The size of the training that is nearest to what is asked for: by shape, then by area.

    A model of other sizes than those of the training, and ``use_resolution_binning=False``, draw what
    is asked for.
    """
    asked = pick_size(tools, height, width)
    if not use_resolution_binning or not _is_trained(tools.spec.default_size):
        return {"height": asked[0], "width": asked[1]}
    found = trained_size(*asked)
    if found != asked:
        warnings.warn(
            f"{asked[0]} x {asked[1]} pixels were asked for; the nearest size of the training is "
            f"{found[0]} x {found[1]}, which is drawn. use_resolution_binning=False draws the other.",
            stacklevel=2,
        )
    return {"height": found[0], "width": found[1]}


def _is_trained(size: tuple[int, int]) -> bool:
    return any(size in sizes for sizes in _TRAINED.values())


def trained_size(height: int, width: int) -> tuple[int, int]:
    """The height and width of the training that are nearest to these."""
    if _is_trained((height, width)):
        return height, width
    shape = min(_TRAINED, key=lambda one: abs(one - width / height))
    return min(_TRAINED[shape], key=lambda size: abs(size[0] * size[1] - height * width))


@step(outputs=())
def check_states(
    tools: Tools,
    prompt_embeds: Array | None,
    prompt_embeds_2: Array | None,
    original_size: Size,
    target_size: Size,
    crops_coords_top_left: Size,
) -> State:
    """Refuse the states of one text encoder without those of the other, and sizes that are none."""
    if prompt_embeds is not None and prompt_embeds_2 is None:
        raise InputError(
            "prompt_embeds were given without prompt_embeds_2. Give the states of both text encoders, "
            "each with its mask."
        )
    for name, pair in (
        ("original_size", original_size),
        ("target_size", target_size),
        ("crops_coords_top_left", crops_coords_top_left),
    ):
        if pair is None and name == "target_size":
            continue
        if not isinstance(pair, list | tuple) or [type(one) for one in pair] != [int, int]:
            raise InputError(f"{name} must be two whole numbers, height first; got {pair!r}.")
    return {}


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_embeds: Array | None,
    prompt_embeds_2: Array | None,
    negative_prompt_embeds: Array | None,
    negative_prompt_embeds_2: Array | None,
    prompt_attention_mask: Array | None,
    prompt_attention_mask_2: Array | None,
    negative_prompt_attention_mask: Array | None,
    negative_prompt_attention_mask_2: Array | None,
    original_size: tuple[int, int],
    target_size: tuple[int, int] | None,
    crops_coords_top_left: tuple[int, int],
    height: int,
    width: int,
    num_images_per_prompt: int,
    guider: Guider,
) -> State:
    """The states of both text encoders with their masks, and the sizes, by condition of the guider."""
    others = negatives or [""] * count
    given: dict[str, tuple[Texts, Texts]] = {
        "": (
            (prompts, prompt_embeds, prompt_attention_mask),
            (others, negative_prompt_embeds, negative_prompt_attention_mask),
        ),
        "_2": (
            (prompts, prompt_embeds_2, prompt_attention_mask_2),
            (others, negative_prompt_embeds_2, negative_prompt_attention_mask_2),
        ),
    }
    conditions: dict[str, dict[str, Array]] = {}
    for end, (positive, negative) in given.items():
        read = masked_conditions(
            guider,
            num_images_per_prompt,
            partial(_read, tools, end),
            positive=positive,
            negative=negative,
            of_states=partial(_told, end),
            end=end,
        )
        for name, arrays in read.items():
            conditions[name] = {**conditions.get(name, {}), **arrays}
    if tools.spec.denoiser.signature.input(_SIZES) is not None:
        target = (height, width) if target_size is None else target_size
        told = np.array([*original_size, *target, *crops_coords_top_left], np.float32)
        sizes = np.tile(told, (count * num_images_per_prompt, 1))
        conditions = {name: {**arrays, _SIZES: sizes} for name, arrays in conditions.items()}
    return {"conditions": conditions}


def _told(end: str, states: Array, mask: Any) -> Mapping[str, Array]:
    """The states of a text encoder [B, S, D] and their mask [B, S] by the denoiser's names."""
    return dict(zip(_INPUTS[end], (states, mask), strict=True))


def _read(tools: Tools, end: str, texts: list[str]) -> Mapping[str, Array]:
    """The same of texts, of as many tokens as the denoiser takes."""
    taken = tools.spec.denoiser.signature.input(_INPUTS[end][0])
    assert taken is not None  # its description says it
    states, mask = encode_sequence(
        tools,
        f"text_encoder{end}",
        f"tokenizer{end}",
        texts,
        length=int(taken.shape[1]),
        hides_padding=True,
        chosen=False,
    )
    return _told(end, states, mask)


def _encoded(conditions: Mapping[str, Mapping[str, Array]]) -> tuple[Any, ...]:
    """Of each text encoder the states, those of negative prompts, and the masks of both."""
    branches = [conditions.get(name) for name in ("positive", "negative")]
    return tuple(
        tuple(None if one is None else one[name] for name in names for one in branches)
        for names in _INPUTS.values()
    )


_ENCODED = (
    "prompt device dtype num_images_per_prompt do_classifier_free_guidance negative_prompt "
    "prompt_embeds negative_prompt_embeds prompt_attention_mask negative_prompt_attention_mask "
    "max_sequence_length text_encoder_index"
)

HUNYUAN_DIT = (
    family_task(
        {
            **MASKS,
            **{f"{name}_2": one for name, one in MASKS.items()},
            "prompt_embeds_2": Input(help="T5's states [B, S, D], with prompt_embeds."),
            "negative_prompt_embeds_2": Input(help="T5's states, with negative_prompt_embeds."),
            "original_size": Input(
                default=(1024, 1024),
                help="Height and width, in pixels, that the picture seems made from; of versions "
                "before 1.2.",
            ),
            "target_size": Input(help="Those that it seems to have; its own by default."),
            "crops_coords_top_left": Input(
                default=(0, 0), help="Row and column, in pixels, at which it seems cut out."
            ),
            "use_resolution_binning": Input(
                default=True, kind=bool, help="Draw in the nearest size of the training."
            ),
        },
        {"guidance_scale": 5.0},
        read_prompts,
        check_size,
        encode_prompt,
        encoding=Encoding(
            order=tuple(_ENCODED.split()),
            results=_encoded,
            chosen="text_encoder_index",
            joins=True,
        ),
    )
    .insert(check_states, after="read_prompts")
    .insert(check_safety, after="decode")
)
