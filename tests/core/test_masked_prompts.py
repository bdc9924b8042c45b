"""Prompts whose denoiser is told which of their tokens count: given as states, with their mask."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import DiffusionPipeline
from perfuse.arrays import to_numpy
from perfuse.errors import InputError
from perfuse.run.tools import PipelineTools

Make = Callable[[str], Path]
#: Kinds of checkpoints, and what their pipelines call the mask of ``prompt_embeds``.
MASKS = {
    "chroma": "prompt_attention_mask",
    "pixart": "prompt_attention_mask",
    "aura-flow": "prompt_attention_mask",
    "sana": "prompt_attention_mask",
    "lumina2": "prompt_attention_mask",
    "qwen-image": "prompt_embeds_mask",
    "qwen-image-21": "prompt_embeds_mask",
}


def conditions(pipe: DiffusionPipeline, **given: Any) -> Mapping[str, Any]:
    """What the denoiser is told of the prompts."""
    for event in pipe.task.run(PipelineTools(pipe), given):
        if event.step == "encode_prompt":
            told: Mapping[str, Any] = event.state["conditions"]["positive"]
            return {name: to_numpy(one) for name, one in told.items()}
    raise AssertionError("there is no step encode_prompt")


@pytest.mark.parametrize("kind", ["chroma", "pixart", "aura-flow", "sana", "qwen-image"])
def test_states_and_their_mask_say_what_the_prompts_said(checkpoint: Make, kind: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
    read = conditions(pipe, prompt=["red", "a small green circle"])
    counts = read["text_bias"] == 0 if "text_bias" in read else read["encoder_attention_mask"]
    assert (
        0 < counts[0].sum() < counts[1].sum()
    )  # prompts of other lengths: the mask says something
    states = {"prompt_embeds": read["encoder_hidden_states"], MASKS[kind]: counts}
    given = conditions(pipe, **states)
    assert given.keys() == read.keys()
    for name, one in read.items():
        assert np.array_equal(given[name], one), name


@pytest.mark.parametrize("kind", MASKS)
def test_masks_that_do_not_fit_are_refused(checkpoint: Make, kind: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
    width = pipe.spec.denoiser.signature.input("encoder_hidden_states").shape[-1]
    states, mask = np.zeros((2, 8, width), np.float32), MASKS[kind]
    with pytest.raises(InputError, match=r"A mask of shape \(2, 7\) was given for prompt_embeds"):
        conditions(pipe, prompt_embeds=states, **{mask: np.ones((2, 7))})
    with pytest.raises(InputError, match="Only one of prompt_embeds and its mask was given"):
        conditions(pipe, prompt="red", **{mask: np.ones((1, 8))})
    if mask == "prompt_attention_mask":
        with pytest.raises(InputError, match="Only one of prompt_embeds and its mask was given"):
            conditions(pipe, prompt_embeds=states)


@pytest.mark.parametrize(
    ("kind", "most"), [("chroma", 512), ("aura-flow", 512), ("cogview4", 1024)]
)
def test_more_tokens_than_are_read_are_refused(checkpoint: Make, kind: str, most: int) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
    with pytest.raises(InputError, match=f"this family reads at most {most} tokens"):
        pipe("red", max_sequence_length=most + 1)
