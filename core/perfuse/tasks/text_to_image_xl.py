"""Text to image with Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952).

It differs from Stable Diffusion in its conditions: the penultimate hidden states of two text
encoders, concatenated; the pooled output of the second; and the original size, crop and target size
of a picture (micro-conditioning), which the UNet was trained with.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from perfuse.arrays import join_features, zeros_like
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.encoding import STATES, encoding
from perfuse.tasks.prompts.reading import PromptReader, equally_long
from perfuse.tasks.prompts.syntax import lengthened
from perfuse.tasks.text import Prompt, conditions_of, read_texts
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE
from perfuse.tasks.watermark import watermark

__all__ = ["TEXT_TO_IMAGE_XL", "Size", "check_pooled", "ids_of", "second_texts"]

Size = tuple[int, int] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Readers:
    """Both text encoders. The refiner has only the second."""

    first: PromptReader | None
    second: PromptReader

    @classmethod
    def of(cls, tools: Tools, syntax: str | None) -> "_Readers":
        make = partial(PromptReader.of, tools, syntax=syntax, penultimate=True)
        has_first = "text_encoder" in tools.spec.components
        return cls(
            first=make("text_encoder", "tokenizer") if has_first else None,
            second=make("text_encoder_2", "tokenizer_2", pools=True),
        )

    def __call__(
        self, texts: list[str], texts_2: list[str], clip_skip: int | None = None
    ) -> dict[str, Array]:
        """States [B, S, D1 + D2] and pooled text [B, P]."""
        first = self.first(texts, clip_skip) if self.first is not None else None
        second = self.second(texts_2, clip_skip)
        if self.first is None or first is None:
            return _states(second.states, second.pooled)
        states = first.states, second.states
        longest = max(array.shape[1] for array in states)
        readers = zip((self.first, self.second), states, strict=True)
        parts = [
            array
            if array.shape[1] == longest
            else lengthened(array, longest, reader.skipping(clip_skip).empty())
            for reader, array in readers
        ]
        return _states(join_features(parts), second.pooled)

    def empty(self) -> Array:
        """The states of an empty prompt, [1, L, D1 + D2]."""
        readers = [one for one in (self.first, self.second) if one is not None]
        return join_features([one.empty() for one in readers])


def _states(states: Array, pooled: Array) -> dict[str, Array]:
    return {"encoder_hidden_states": states, "text_embeds": pooled}


def check_pooled(name: str, states: Array | None, pooled: Array | None) -> None:
    """Raise ``InputError`` where states were given without pooled ones, or these without those."""
    if (states is None) != (pooled is None):
        other = name.replace("prompt_embeds", "pooled_prompt_embeds")
        raise InputError(f"Only one of {name} and {other} was given. Give both or neither.")


def second_texts(given: Prompt, name: str, first: list[str]) -> list[str]:
    """The texts of another text encoder, as many as those of the first, which are the default."""
    if given is None:
        return first
    texts = read_texts(given, name)
    if len(texts) not in (1, len(first)):
        raise InputError(f"{name} has {len(texts)} texts for {len(first)} prompts; give as many.")
    return texts * (len(first) if len(texts) == 1 else 1)


@step(outputs=())
def check_pairs(
    tools: Tools,
    original_size: Size,
    crops_coords_top_left: Size,
    target_size: Size,
    negative_original_size: Size,
    negative_crops_coords_top_left: Size,
    negative_target_size: Size,
) -> State:
    """Raise ``InputError`` unless each size and corner is ``None`` or two whole numbers."""
    pairs = {
        "original_size": original_size,
        "crops_coords_top_left": crops_coords_top_left,
        "target_size": target_size,
        "negative_original_size": negative_original_size,
        "negative_crops_coords_top_left": negative_crops_coords_top_left,
        "negative_target_size": negative_target_size,
    }
    for name, pair in pairs.items():
        fits = isinstance(pair, list | tuple) and len(pair) == 2
        if pair is not None and not (fits and all(isinstance(size, int) for size in pair)):
            raise InputError(f"{name} must be two whole numbers, height first; got {pair!r}.")
    return {}


@step(outputs=("time_ids",))
def read_sizes(
    tools: Tools,
    height: int,
    width: int,
    original_size: Size,
    crops_coords_top_left: tuple[int, int],
    target_size: Size,
    negative_original_size: Size,
    negative_crops_coords_top_left: tuple[int, int],
    negative_target_size: Size,
) -> State:
    """SDXL's time ids by condition, float32 [1, 6]: original size, crop, target size, in pixels."""
    size = (height, width)
    positive = (*(original_size or size), *crops_coords_top_left, *(target_size or size))
    negative = positive
    if negative_original_size is not None and negative_target_size is not None:
        negative = (
            *negative_original_size,
            *negative_crops_coords_top_left,
            *negative_target_size,
        )
    return {"time_ids": ids_of(positive, negative)}


def ids_of(positive: Sequence[float], negative: Sequence[float]) -> dict[str, Array]:
    """Time ids by condition, float32 [1, N]."""
    of = {"positive": positive, "negative": negative, "empty": negative}
    return {name: np.asarray([ids], dtype=np.float32) for name, ids in of.items()}


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_2: Prompt,
    negative_prompt_2: Prompt,
    prompt_embeds: Array | None,
    negative_prompt_embeds: Array | None,
    pooled_prompt_embeds: Array | None,
    negative_pooled_prompt_embeds: Array | None,
    num_images_per_prompt: int,
    guider: Guider,
    time_ids: Mapping[str, Array],
    clip_skip: int | None = None,
    prompt_syntax: str | None = None,
) -> State:
    """Text states, pooled text and time ids, each [pictures, …], by condition of the guider."""
    check_pooled("prompt_embeds", prompt_embeds, pooled_prompt_embeds)
    check_pooled("negative_prompt_embeds", negative_prompt_embeds, negative_pooled_prompt_embeds)
    read = _Readers.of(tools, prompt_syntax)

    def empty() -> Mapping[str, Array]:
        return read([""] * count, [""] * count)

    def negative() -> Mapping[str, Array]:
        if negative_prompt_embeds is not None:
            return _states(negative_prompt_embeds, negative_pooled_prompt_embeds)
        if not negatives and tools.spec.options.get("force_zeros_for_empty_prompt", True):
            return {name: zeros_like(array) for name, array in positive.items()}
        texts = negatives or [""] * count
        return read(texts, second_texts(negative_prompt_2, "negative_prompt_2", texts))

    if prompt_embeds is not None:
        positive = _states(prompt_embeds, pooled_prompt_embeds)
    else:
        positive = read(prompts, second_texts(prompt_2, "prompt_2", prompts), clip_skip)
    others = {"negative": negative, "empty": empty}
    wanted = {branch.condition for branch in guider.branches}
    encoded: dict[str, Mapping[str, Array]] = {"positive": positive}
    encoded |= {name: others[name]() for name in others if name in wanted}
    if prompt_syntax is not None:
        states = {name: arrays["encoder_hidden_states"] for name, arrays in encoded.items()}
        for name, array in equally_long(states, read.empty).items():
            encoded[name] = {**encoded[name], "encoder_hidden_states": array}
    with_ids = {
        name: {**arrays, "time_ids": np.repeat(time_ids[name], count, axis=0)}
        for name, arrays in encoded.items()
    }
    return {"conditions": conditions_of(with_ids, num_images_per_prompt)}


_MORE = {
    "prompt_2": Input(kind=str, help="Prompt of the second text encoder; the prompt by default."),
    "negative_prompt_2": Input(kind=str, help="Negative prompt of the second text encoder."),
    "pooled_prompt_embeds": Input(help="Pooled text [B, P], with prompt_embeds."),
    "negative_pooled_prompt_embeds": Input(help="Pooled text, with negative_prompt_embeds."),
    "original_size": Input(help="Original height and width in pixels, as a condition."),
    "crops_coords_top_left": Input(default=(0, 0), help="Crop (top, left) in pixels, a condition."),
    "target_size": Input(help="Target height and width in pixels, as a condition."),
    "negative_original_size": Input(help="The same for the negative condition."),
    "negative_crops_coords_top_left": Input(
        default=(0, 0), help="The same for the negative condition."
    ),
    "negative_target_size": Input(help="The same for the negative condition."),
    "denoising_end": Input(
        kind=float,
        help="Stop at this share of the noise, for a refiner to go on; with output_type='latent'.",
    ),
}

TEXT_TO_IMAGE_XL = (
    dataclasses.replace(
        TEXT_TO_IMAGE,
        inputs={**TEXT_TO_IMAGE.inputs, **_MORE},
        encoding=encoding(
            "prompt prompt_2 device num_images_per_prompt do_classifier_free_guidance "
            "negative_prompt negative_prompt_2 prompt_embeds negative_prompt_embeds "
            "pooled_prompt_embeds negative_pooled_prompt_embeds lora_scale clip_skip",
            ("positive", STATES),
            ("negative", STATES),
            ("positive", "text_embeds"),
            ("negative", "text_embeds"),
        ),
    )
    .with_defaults({"guidance_scale": 5.0})
    .insert(check_pairs, before="encode_prompt")
    .insert(read_sizes, before="encode_prompt")
    .replace("encode_prompt", encode_prompt)
    .insert(watermark, before="finish")
)
