"""Pictures with Z-Image (arXiv:2511.22699): from text, and from a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from perfuse.arrays import to_numpy
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, Lists, State, Tools, step
from perfuse.errors import InputError
from perfuse.models.z_image_transformer.description import captions
from perfuse.tasks.denoise import check_count, check_output_type
from perfuse.tasks.encoding import STATES
from perfuse.tasks.family import family_task
from perfuse.tasks.flow import prepare_flow_schedule
from perfuse.tasks.guiders.truncated import TruncatedGuidance
from perfuse.tasks.image_to_image import from_picture
from perfuse.tasks.inputs import SIZE
from perfuse.tasks.prompts.language import LanguageReader, fixed_length
from perfuse.tasks.text import Prompt, guider_for, read_conditions, read_texts

__all__ = ["Z_IMAGE_TO_IMAGE", "Z_TEXT_TO_IMAGE"]

States = Sequence[Array] | Array | None


@step(outputs=("prompts", "negatives", "count", "guider"))
def read_prompts(
    tools: Tools,
    prompt: Prompt,
    negative_prompt: Prompt,
    prompt_embeds: States,
    negative_prompt_embeds: States,
    guidance_scale: float,
    cfg_normalization: Any,
    cfg_truncation: float | None,
    guider: Any,
    num_images_per_prompt: int,
    max_sequence_length: int,
    output_type: str,
) -> State:
    """Check the inputs before anything is prepared."""
    check_output_type(output_type)
    check_count("num_images_per_prompt", num_images_per_prompt)
    check_count("max_sequence_length", max_sequence_length)
    if (prompt is None) == (prompt_embeds is None):
        raise InputError(
            "prompt and prompt_embeds were given both, or neither. Give exactly one of them."
        )
    for name, states in (("prompt", prompt_embeds), ("negative_prompt", negative_prompt_embeds)):
        if states is not None:
            _check_states(tools, f"{name}_embeds", states)
    prompts = read_texts(prompt, "prompt") if prompt_embeds is None else []
    count = len(prompts) if prompt_embeds is None else len(prompt_embeds)
    given = negative_prompt is not None
    negatives = read_texts(negative_prompt, "negative_prompt") if given else [""]
    if len(negatives) not in (1, count):
        raise InputError(
            f"{len(negatives)} negative prompts were given for {count} prompts. Give one for all, "
            "or one for each."
        )
    usual = TruncatedGuidance(
        guidance_scale=guidance_scale,
        truncation=1.0 if cfg_truncation is None else cfg_truncation,
        normalization=float(cfg_normalization),
    )
    return {
        "prompts": prompts,
        "negatives": negatives * (count if len(negatives) == 1 else 1),
        "count": count,
        "guider": usual if guider is None else guider_for(tools, guider, guidance_scale, 0.0),
    }


def _check_states(tools: Tools, name: str, states: Any) -> None:
    """Raise ``InputError`` unless these are states [S, D] of each prompt, D wide as read here."""
    taken = tools.spec.denoiser.signature.input("encoder_hidden_states")
    width = taken.shape[-1] if taken is not None else None
    shapes = [tuple(getattr(one, "shape", ())) for one in states]
    if not shapes or not all(len(shape) == 2 and shape[-1] == width for shape in shapes):
        found = ", ".join(map(str, shapes)) or "none"
        raise InputError(f"{name} must be arrays [tokens, {width}], one a prompt; got {found}.")


@step(outputs=("conditions",))
def encode_prompt(
    tools: Tools,
    prompts: list[str],
    negatives: list[str],
    count: int,
    prompt_embeds: States,
    negative_prompt_embeds: States,
    num_images_per_prompt: int,
    max_sequence_length: int,
    guider: Guider,
) -> State:
    """The captions of each condition that the guider uses, of their own lengths."""
    read, denoiser = LanguageReader(tools=tools), tools.spec.denoiser
    fixed = fixed_length(tools, denoiser.name, "encoder_hidden_states")
    longest = max_sequence_length if fixed is None else min(max_sequence_length, fixed)

    def states(texts: list[str], given: States = None) -> Mapping[str, Array]:
        found = read.of_prompts(texts, longest) if given is None else given
        return captions(denoiser, [to_numpy(one) for one in found], tokens=fixed)

    conditions = read_conditions(
        guider,
        num_images_per_prompt,
        positive=lambda: states(prompts, prompt_embeds),
        negative=lambda: states(negatives, negative_prompt_embeds),
        empty=lambda: states([""] * count),
    )
    return {"conditions": conditions}


_ENCODED = (
    "prompt",
    "device",
    "do_classifier_free_guidance",
    "negative_prompt",
    "prompt_embeds",
    "negative_prompt_embeds",
    "max_sequence_length",
)


def _encoded(conditions: Mapping[str, Mapping[str, Array]]) -> tuple[list[Array], ...]:
    """The states [S, D] of each prompt, and of each negative prompt."""
    told = (conditions.get(name) for name in ("positive", "negative"))
    return tuple([] if one is None else _each(one) for one in told)


def _each(told: Mapping[str, Array]) -> list[Array]:
    padding = told["caption_padding"]
    return [one[own == 0] for one, own in zip(told[STATES], padding, strict=True)]


Z_TEXT_TO_IMAGE = family_task(
    {
        "guidance_scale": Input(
            default=5.0,
            kind=float,
            option="--guidance",
            help="Guidance scale g, of c + g (c - u); 0 draws without, as Turbo is made for.",
        ),
        "cfg_normalization": Input(
            default=False,
            help="The most that guidance may enlarge a prediction: True for not at all, or a factor.",
        ),
        "cfg_truncation": Input(
            default=1.0,
            kind=float,
            help="The share of the noise that is gone, from which on there is no guidance.",
        ),
        "prompt_embeds": Input(help="Text states [S, D] of each prompt, instead of prompts."),
        "negative_prompt_embeds": Input(help="Text states instead of negative prompts."),
        "max_sequence_length": Input(
            default=512,
            kind=int,
            option="--max-tokens",
            help="The most tokens of a prompt, with its template.",
        ),
    },
    {},
    read_prompts,
    prepare_flow_schedule,
    encode_prompt,
    encoding=Encoding(order=_ENCODED, results=_encoded, lists=Lists(of=_each, told=captions)),
)
Z_IMAGE_TO_IMAGE = (
    from_picture(Z_TEXT_TO_IMAGE, "image-to-image")
    .with_inputs(**SIZE)
    .with_defaults({"strength": 0.6})
)
