"""Editing with Qwen-Image-Edit (arXiv:2508.02324).

A picture comes in twice: the language model that reads the prompt sees it, and the tokens of its
latents follow those of the picture that is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perfuse.arrays import to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import REQUIRED, Input, Picture, State, Step, Task, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.denoise import pick_size
from perfuse.tasks.flux2_editing import add_pictures
from perfuse.tasks.masked_prompts import masked_conditions
from perfuse.tasks.prompts.language import LanguageReader
from perfuse.tasks.prompts.seeing import SeenPicture, check_shape, see
from perfuse.tasks.qwen_image import QWEN_TEXT_TO_IMAGE, filled_up, template_of, told_of_states

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["QWEN_EDITING", "QWEN_EDITING_OF_SEVERAL", "given_pictures", "sides_of"]

#: Where several pictures are edited, they are seen in this share of the area that is drawn.
_SEEN = 384**2 / 1024**2
_PICTURE = "<|vision_start|>{}<|vision_end|>"
_PLACE = "<|image_pad|>"


@step(outputs=("pictures", "seen", "height", "width"), name="check_size")
def read_picture(tools: Tools, image: Any, height: int | None, width: int | None) -> State:
    """The picture to edit, encoded and seen in one size."""
    given = given_pictures(image)
    if len(given) > 1:
        raise InputError(
            f"{len(given)} pictures were given; a {tools.spec.class_name} edits one. Give one, or use "
            "a QwenImageEditPlusPipeline."
        )
    return _read(tools, given, height, width, 1.0)


@step(outputs=("pictures", "seen", "height", "width"), name="check_size")
def read_pictures(tools: Tools, image: Any, height: int | None, width: int | None) -> State:
    """The pictures to edit, and smaller ones to see; the last one's shape is what is drawn."""
    return _read(tools, given_pictures(image), height, width, _SEEN)


def given_pictures(image: Any, mode: str = "RGB") -> "list[Image]":
    """The pictures of a call, one or several, in one of Pillow's modes.

    Raises:
        InputError: there is none, or one is a line.
    """
    from perfuse.arrays.pictures import as_image

    given = list(image) if isinstance(image, list | tuple) else [image]
    if not given:
        raise InputError("No picture was given to edit. Give image=, one picture or several.")
    images = [as_image(one).convert(mode) for one in given]
    for one in images:
        check_shape(one)
    return images


def _read(
    tools: Tools, given: "list[Image]", height: int | None, width: int | None, share: float
) -> State:
    """Pictures of the area that is drawn, and of a share of it as they are seen."""
    from PIL import Image

    from perfuse.arrays.pictures import preprocess

    each, usual = tools.spec.size_multiple, tools.spec.default_size
    area = usual[0] * usual[1]
    encoded = [preprocess(one, *sides_of(one, area, each), multiple=each) for one in given]
    sizes = [sides_of(one, area * share, 1) for one in given]
    seen = [
        one.resize((wide, high), Image.Resampling.LANCZOS)
        for one, (high, wide) in zip(given, sizes, strict=True)
    ]
    high, wide = sides_of(given[-1], area, each)
    size = pick_size(tools, high if height is None else height, wide if width is None else width)
    return {
        "pictures": [to_numpy(one) for one in encoded],
        "seen": seen,
        "height": size[0],
        "width": size[1],
    }


def sides_of(image: "Image", area: float, multiple: int) -> tuple[int, int]:
    """Height and width of this area in multiples of 32 pixels, or of more, with a picture's shape."""
    shape = image.width / image.height
    wide = (area * shape) ** 0.5
    sides = (round(side / 32) * 32 // multiple * multiple for side in (wide / shape, wide))
    high, wide = (max(side, multiple, 32) for side in sides)
    return high, wide


@dataclass(frozen=True)
class _EncodePrompt:
    """The states of pictures and prompt, without those of the text before them."""

    #: It stands before each picture.
    prefix: str

    def __call__(
        self,
        tools: Tools,
        prompts: list[str],
        negatives: list[str],
        count: int,
        seen: "list[Image]",
        prompt_embeds: Array | None,
        prompt_embeds_mask: Array | None,
        negative_prompt_embeds: Array | None,
        negative_prompt_embeds_mask: Array | None,
        num_images_per_prompt: int,
        guider: Guider,
    ) -> State:
        pictures: list[SeenPicture] = []

        def read(texts: list[str]) -> Any:
            if not pictures:  # once for all texts, and not at all where states are given
                pictures.extend(see(tools, one) for one in seen)
            return filled_up([_states(tools, text, self.prefix, pictures) for text in texts], None)

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
            of_states=told_of_states,
            needs_mask=False,
        )
        return {"conditions": conditions}


def _states(tools: Tools, text: str, prefix: str, pictures: Sequence[SeenPicture]) -> Array:
    """The states [S, D] of one text behind its pictures."""
    read = LanguageReader(tools=tools)
    before, after = template_of(tools)
    seen = [_PICTURE.format(_PLACE * len(one.states)) for one in pictures]
    if prefix:
        before += "".join(f"{prefix.format(i)}{one}" for i, one in enumerate(seen, 1))
    elif _PICTURE.format(_PLACE) in before:
        before = before.replace(_PICTURE.format(_PLACE), seen[0])
    else:
        raise InputError(
            f"prompt_template_encode is {tools.attribute('prompt_template_encode')!r}, with no place "
            f"for the picture. Write {_PICTURE.format(_PLACE)} before the place of the prompt."
        )
    longest = tools.spec.components[read.name].dims["sequence"].maximum
    assert longest is not None
    tokens = read.tokens([text], longest, template=(before, after))
    (states,) = to_numpy(read(tokens.input_ids, tokens.attention_mask, pictures))
    kept: Array = states[tools.attribute("prompt_template_encode_start_idx") :]
    return kept


def _editing(check_size: Any, prefix: str, text: str) -> Task:
    image = Input(default=REQUIRED, kind=Picture, option="--image", help=text)
    encoding = QWEN_TEXT_TO_IMAGE.encoding
    assert encoding is not None  # as the prompt alone has, with the picture behind the prompt
    prompt, *rest = encoding.order
    behind = replace(encoding, order=(prompt, "image", *rest))
    encode = Step(name="encode_prompt", run=_EncodePrompt(prefix), outputs=("conditions",))
    return (
        replace(QWEN_TEXT_TO_IMAGE, name="image-editing", encoding=behind)
        .with_inputs(image=image)
        .replace("check_size", check_size)
        .replace("encode_prompt", encode)
        .insert(add_pictures, after="encode_prompt")
    )


QWEN_EDITING = _editing(read_picture, "", "The picture to edit.")

QWEN_EDITING_OF_SEVERAL = _editing(
    read_pictures, "Picture {}: ", "The picture to edit, or several."
)
