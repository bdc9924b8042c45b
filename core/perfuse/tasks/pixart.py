"""Pictures with PixArt-α (Chen et al. 2023, arXiv:2310.00426) and PixArt-Σ (2024, arXiv:2403.04692).

The text is T5's. Pictures are drawn in the nearest of the sizes that the models were trained with,
and made as large as was asked for afterwards.
"""

from collections.abc import Mapping

from perfuse.contract.spec import Array
from perfuse.contract.steps import Input, State, Tools, step
from perfuse.tasks.captions import CAPTION_INPUTS, read_captions
from perfuse.tasks.encoding import masked_encoding
from perfuse.tasks.family import family_task
from perfuse.tasks.masked_prompts import encode_masked
from perfuse.tasks.prompts.sequences import encode_sequence
from perfuse.tasks.trained_sizes import BINNING, resize, trained_size

__all__ = ["PIXART_ALPHA", "PIXART_SIGMA"]


@step(outputs=("height", "width", "asked_size"), name="check_size")
def nearest_size(
    tools: Tools, height: int | None, width: int | None, use_resolution_binning: bool
) -> State:
    """The size of the training whose shape is nearest to what is asked for, and that itself."""
    return trained_size(tools, height, width, binning=use_resolution_binning, downscale=8)


def _read(tools: Tools, texts: list[str], length: int) -> Mapping[str, Array]:
    states, mask = encode_sequence(
        tools, "text_encoder", "tokenizer", texts, length=length, hides_padding=True
    )
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


PIXART_ALPHA = family_task(
    {
        **CAPTION_INPUTS,
        "use_resolution_binning": BINNING,
        "max_sequence_length": Input(
            default=120, kind=int, option="--max-tokens", help="Tokens of a prompt that T5 reads."
        ),
    },
    {"num_inference_steps": 20, "guidance_scale": 4.5, "clean_caption": True},
    read_captions,
    nearest_size,
    encode_masked(_read),
    encoding=masked_encoding(
        "prompt do_classifier_free_guidance negative_prompt num_images_per_prompt device prompt_embeds "
        "negative_prompt_embeds prompt_attention_mask negative_prompt_attention_mask clean_caption "
        "max_sequence_length",
        clean_caption=False,
    ),
).insert(resize, after="decode")

PIXART_SIGMA = PIXART_ALPHA.with_defaults({"max_sequence_length": 300})
