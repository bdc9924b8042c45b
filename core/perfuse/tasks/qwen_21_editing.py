"""Pictures with Qwen-Image 2.1 from pictures and text.

A picture comes in twice: the language model that reads the prompt sees it, on white where it is transparent;
and where it is among the words, the denoiser reads its latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import REQUIRED, Input, Picture, State, Tools, step
from perfuse.errors import CheckpointError, InputError
from perfuse.models.language_model.vision import picture_token
from perfuse.models.qwen_image_21_transformer.description import PictureAmongWords, told_of
from perfuse.tasks.denoise import pick_size
from perfuse.tasks.masked_prompts import masked_conditions
from perfuse.tasks.pictures import moments_of
from perfuse.tasks.prompts.language import LanguageReader, fixed_length
from perfuse.tasks.prompts.seeing import SeenPicture, see
from perfuse.tasks.qwen_editing import given_pictures, sides_of
from perfuse.tasks.qwen_image_21 import (
    QWEN_21_SYSTEM,
    QWEN_21_TEMPLATE,
    QWEN_21_TEXT_TO_IMAGE,
    side_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["QWEN_21_EDITING"]

#: Of the latents of a picture so many have the place of a state that the language model sees.
_LATENTS = 4


@step(outputs=("pictures", "seen", "height", "width"), name="check_size")
def read_pictures(
    tools: Tools,
    image: Any,
    height: int | None,
    width: int | None,
    output_resolution: int | None,
) -> State:
    """The pictures, each [1, 4, H, W] in [-1, 1], and what is seen of them; the last one's shape is drawn."""
    each, usual = tools.spec.size_multiple, tools.spec.default_size
    side = side_of(tools, output_resolution)
    given, area = given_pictures(image, "RGBA"), side**2 if side else usual[0] * usual[1]
    resized = [_resized(one, *sides_of(one, area, each)) for one in given]
    high, wide = sides_of(given[-1], area, each)
    size = pick_size(tools, high if height is None else height, wide if width is None else width)
    return {
        "pictures": [_pixels(one) for one in resized],
        "seen": [_on_white(one) for one in resized],
        "height": size[0],
        "width": size[1],
    }


def _resized(image: "Image", height: int, width: int) -> "Image":
    from PIL import Image

    return image.resize((width, height), Image.Resampling.LANCZOS)


def _pixels(image: "Image") -> Array:
    """[1, 4, H, W] in [-1, 1]."""
    unit = np.asarray(image, dtype=np.float32) / np.float32(255)
    return 2 * unit.transpose(2, 0, 1)[None] - 1


def _on_white(image: "Image") -> "Image":
    from PIL import Image

    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    pictures: list[Array],
    seen: "list[Image]",
    prompt_embeds: Array | None,
    prompt_embeds_mask: Array | None,
    negative_prompt_embeds: Array | None,
    negative_prompt_embeds_mask: Array | None,
    num_images_per_prompt: int,
    max_sequence_length: int,
    guider: Guider,
) -> State:
    """The states of each prompt behind the pictures, whose latents are in their place."""
    layout = tools.spec.latents
    latents = [layout.encode(moments_of(tools, one)[0]) for one in pictures]
    shown: list[SeenPicture] = []

    def read(texts: list[str]) -> Mapping[str, Array]:
        if not shown:  # once for all texts
            shown.extend(see(tools, one) for one in seen)
        each = [_states(tools, text or " ", max_sequence_length, shown) for text in texts]
        return _told(tools, each, shown, latents)

    def refused(given: Array, mask: Any) -> NoReturn:
        raise InputError(
            "prompt_embeds was given with a picture, which the prompt is read with. Give the prompt."
        )

    conditions = masked_conditions(
        guider,
        num_images_per_prompt,
        read,
        positive=(prompts, prompt_embeds, prompt_embeds_mask),
        negative=(
            negatives or [""] * count,
            negative_prompt_embeds,
            negative_prompt_embeds_mask,
        ),
        of_states=refused,
        needs_mask=False,
    )
    return {"conditions": conditions}


def _states(
    tools: Tools, text: str, longest: int, pictures: Sequence[SeenPicture]
) -> tuple[Array, Array]:
    """The states [S, D] of one text behind its pictures, and the places of these, [P]."""
    read = LanguageReader(tools=tools, tokenizer_name="processor")
    places = " ".join(
        f"<image{i}><|vision_start|>{'<|image_pad|>' * len(one.states)}<|vision_end|>"
        for i, one in enumerate(pictures, 1)
    )
    before, after = QWEN_21_TEMPLATE
    left_out = len(read.tokenizer.ids(QWEN_21_SYSTEM))
    around = len(read.tokenizer.ids(before + places))
    most = tools.spec.components[read.name].dims["sequence"].maximum
    assert most is not None
    tokens = read.tokens([text], min(around + longest, most), template=(before + places, after))
    (states,) = to_numpy(read(tokens.input_ids, tokens.attention_mask, pictures))
    token = picture_token(tools.spec.components[read.name].config)
    return states[left_out:], np.nonzero(tokens.input_ids[0, left_out:] == token)[0]


def _told(
    tools: Tools,
    each: Sequence[tuple[Array, Array]],
    shown: Sequence[SeenPicture],
    latents: Sequence[Array],
) -> Mapping[str, Array]:
    """What the denoiser is told of texts behind the same pictures.

    Raises:
        CheckpointError: the language model saw more or less of a picture than was encoded.
        InputError: the denoiser was exported for fewer tokens.
    """
    layout, placed, at = tools.spec.latents, list[PictureAmongWords](), 0
    for one, encoded in zip(shown, latents, strict=True):
        height, width = encoded.shape[-2:]
        if _LATENTS * len(one.states) != height * width:
            raise CheckpointError(
                f"A picture has {height * width} latents, and its processor made {len(one.states)} "
                f"states of it; a fourth of them was expected. Take the processor's files from the "
                "checkpoint again."
            )
        (tokens,) = to_numpy(layout.pack(encoded))
        start = int(each[0][1][at])
        placed.append(
            PictureAmongWords(
                tokens=tokens, height=height, width=width, start=start, words=len(one.states)
            )
        )
        at += len(one.states)
    fixed = fixed_length(tools, tools.spec.denoiser.name, "encoder_hidden_states")
    more = sum(len(one.tokens) - one.words for one in placed)
    needed = max(len(states) for states, _ in each) + more
    if fixed is not None and needed > fixed:
        raise InputError(
            f"The pictures and the prompt have {needed} tokens; the denoiser was exported for {fixed}. "
            "Export the pipeline for any size."
        )
    return told_of(tools.spec.denoiser, [states for states, _ in each], placed, length=fixed)


QWEN_21_EDITING = (
    replace(QWEN_21_TEXT_TO_IMAGE, name="image-editing", encoding=None)
    .with_inputs(
        image=Input(
            default=REQUIRED,
            kind=Picture,
            option="--image",
            help="The picture to draw from, or several.",
        )
    )
    .replace("check_size", read_pictures)
    .replace("encode_prompt", encode_prompt)
)
