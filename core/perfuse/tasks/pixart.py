"""Pictures with PixArt-α (Chen et al. 2023, arXiv:2310.00426) and PixArt-Σ (2024, arXiv:2403.04692).

The text is T5's. Pictures are drawn in the nearest of the sizes that the models were trained with,
and made as large as was asked for afterwards.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from perfuse.arrays import place, to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.denoise import check_output_type, pick_size
from perfuse.tasks.family import family_task
from perfuse.tasks.prompts.sequences import check_length, encode_sequence
from perfuse.tasks.text import Prompt, guider_for, read_conditions
from perfuse.tasks.text_to_image import checked_texts

__all__ = ["PIXART_ALPHA", "PIXART_SIGMA"]

_MOST = 512
#: Heights and widths of the training in units of a sixteenth of the smaller models' side.
_SHAPES = (
    "8x32 8x29 9x28 9x27 9x26 10x25 10x24 11x23 11x22 11x21 12x21 12x20 13x19 13x18 14x18 14x17 "
    "15x17 15x16 16x16 16x15 17x15 17x14 18x14 18x13 19x13 20x12 21x12 22x11 23x11 24x10 25x10 "
    "27x9 32x8"
)
#: The same of the model for 2048 pixels.
_LARGE_SHAPES = (
    "8x32 8x31 8x30 8x29 9x28 9x27 9x26 10x25 10x24 11x23 11x22 11x21 12x21 12x20 13x19 13x18 14x18 "
    "14x17 15x17 15x16 16x16 16x15 17x15 17x14 18x14 18x13 19x13 20x12 21x12 22x11 23x11 24x10 25x10 "
    "26x9 27x9 28x9 29x8 30x8 31x8 32x8"
)
#: Side of the training in latents to its shapes, and to pixels of their unit.
_SIZES = {
    32: (_SHAPES, 16),
    64: (_SHAPES, 32),
    128: (_SHAPES, 64),
    256: (_LARGE_SHAPES, 128),
}


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
    clean_caption: bool,
    output_type: str,
) -> State:
    """Check the inputs; texts are in lower case, as the models were trained."""
    check_output_type(output_type)
    check_length(max_sequence_length, _MOST)
    texts = checked_texts(
        tools, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
    )
    if clean_caption:
        warnings.warn(
            "clean_caption=True was given; prompts are put in lower case here, and nothing is taken "
            "out of them. Leave out web addresses and markup yourself.",
            stacklevel=2,
        )
    for name in ("prompts", "negatives"):
        texts[name] = [text.lower().strip() for text in texts[name]]
    return {**texts, "guider": guider_for(tools, guider, guidance_scale, guidance_rescale)}


@step(outputs=("height", "width", "asked_size"), name="check_size")
def nearest_size(
    tools: Tools, height: int | None, width: int | None, use_resolution_binning: bool
) -> State:
    """The size of the training whose shape is nearest to what is asked for, and that itself."""
    asked = pick_size(tools, height, width)
    side = (tools.spec.denoiser.sample_size or (0, 0))[0]
    if not use_resolution_binning or side not in _SIZES:
        return {"height": asked[0], "width": asked[1], "asked_size": asked}
    shapes, unit = _SIZES[side]
    sizes = [tuple(int(n) * unit for n in text.split("x")) for text in shapes.split()]
    shape = asked[0] / asked[1]
    found = min(sizes, key=lambda size: abs(round(size[0] / size[1], 2) - shape))
    return {"height": found[0], "width": found[1], "asked_size": asked}


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
    guider: Guider,
) -> State:
    """T5's states and their mask, each [pictures, …], by condition of the guider."""
    _check_mask("prompt_embeds", prompt_embeds, prompt_attention_mask)
    _check_mask("negative_prompt_embeds", negative_prompt_embeds, negative_prompt_attention_mask)

    def read(texts: list[str]) -> Mapping[str, Array]:
        states, mask = encode_sequence(
            tools,
            "text_encoder",
            "tokenizer",
            texts,
            length=max_sequence_length,
            hides_padding=True,
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def states(texts: list[str], given: Array | None, mask: Array | None) -> Mapping[str, Array]:
        if given is None or mask is None:  # both, or neither: _check_mask
            return read(texts)
        whole = to_numpy(mask).astype(np.int64)
        return {"encoder_hidden_states": given, "encoder_attention_mask": whole}

    conditions = read_conditions(
        guider,
        num_images_per_prompt,
        positive=lambda: states(prompts, prompt_embeds, prompt_attention_mask),
        negative=lambda: states(
            negatives or [""] * count, negative_prompt_embeds, negative_prompt_attention_mask
        ),
        empty=lambda: read([""] * count),
    )
    return {"conditions": conditions}


def _check_mask(name: str, states: Array | None, mask: Array | None) -> None:
    if (states is None) != (mask is None):
        other = name.replace("embeds", "attention_mask")
        raise InputError(f"Only one of {name} and {other} was given. Give both or neither.")


@step(outputs=("decoded",))
def resize(tools: Tools, decoded: Array, asked_size: tuple[int, int], output_type: str) -> State:
    """The pictures as large as was asked for: resized, and cropped in the middle."""
    height, width = asked_size
    if output_type == "latent" or tuple(decoded.shape[-2:]) == asked_size:
        return {"decoded": decoded}
    high, wide = decoded.shape[-2:]
    ratio = max(height / high, width / wide)
    size = int(high * ratio), int(wide * ratio)
    large = _interpolated(_interpolated(to_numpy(decoded), 2, size[0]), 3, size[1])
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cut = np.ascontiguousarray(large[:, :, top : top + height, left : left + width])
    return {"decoded": place(cut, getattr(decoded, "device", None))}


def _interpolated(array: Any, axis: int, size: int) -> Any:
    """Bilinear interpolation along an axis, as torch's without ``align_corners``."""
    before = array.shape[axis]
    at = np.maximum((np.arange(size) + 0.5) * (before / size) - 0.5, 0.0)
    low = np.minimum(at.astype(np.int64), before - 1)
    high = np.minimum(low + 1, before - 1)
    share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
    return array.take(low, axis) * (1 - share) + array.take(high, axis) * share


_INPUTS = {
    "prompt_attention_mask": Input(help="1 for tokens, 0 for padding [B, S], with prompt_embeds."),
    "negative_prompt_attention_mask": Input(help="The same for negative_prompt_embeds."),
    "clean_caption": Input(
        default=False,
        kind=bool,
        help="Accepted for Diffusers' sake; warns that nothing is cleaned.",
    ),
    "use_resolution_binning": Input(
        default=True, kind=bool, help="Draw in the nearest size of the training, then resize."
    ),
    "max_sequence_length": Input(
        default=120, kind=int, option="--max-tokens", help="Tokens of a prompt that T5 reads."
    ),
}

PIXART_ALPHA = family_task(
    _INPUTS,
    {"num_inference_steps": 20, "guidance_scale": 4.5},
    read_prompts,
    nearest_size,
    encode_prompt,
).insert(resize, after="decode")

PIXART_SIGMA = PIXART_ALPHA.with_defaults({"max_sequence_length": 300})
