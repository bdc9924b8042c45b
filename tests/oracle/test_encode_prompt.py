"""``encode_prompt`` of every family takes and returns what that of Diffusers does."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from perfuse import DiffusionPipeline
from perfuse.errors import InputError

Make = Callable[[str], Path]
TEXTS, NOT = ["red", "a small green circle"], ["blue", "two black squares"]
#: What is given by position, and by name, by kind of checkpoint.
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "sd1": ((TEXTS, "cpu", 2, True, NOT), {}),
    "sdxl": ((TEXTS, None, "cpu", 1, True, NOT), {}),
    "flux": ((TEXTS, ["a", "b"], "cpu", 2), {"max_sequence_length": 16}),
    "sd3": ((TEXTS, None, None, "cpu", 2, True, NOT), {"max_sequence_length": 16}),
    "pixart": ((TEXTS, True, NOT, 1, "cpu"), {"max_sequence_length": 16}),
    "sana": ((TEXTS, True, NOT, 1), {"complex_human_instruction": ["Describe:", "User Prompt: "]}),
    "sana-sprint": ((TEXTS, 1, "cpu"), {"complex_human_instruction": ["Describe: "]}),
    "chroma": ((TEXTS, NOT, "cpu", 2), {"max_sequence_length": 16}),
    "aura-flow": ((TEXTS, NOT, True, 1, "cpu"), {"max_sequence_length": 16}),
    "cogview4": ((TEXTS, NOT, True, 2), {"max_sequence_length": 32}),
    "lumina2": ((TEXTS, True, NOT, 1), {}),
    "klein": ((TEXTS, "cpu", 2), {"max_sequence_length": 64}),
    "qwen-image": ((TEXTS, "cpu", 1), {}),
    "z-image": ((TEXTS, "cpu", True, NOT), {}),
    "hunyuan-dit": ((TEXTS, "cpu", None, 1, True, NOT), {}),
}
#: Pictures per prompt are one where Diffusers repeats a mask in another order than its states.
#: Results that are filled up further there, and hold other numbers where the mask, which follows, is 0.
_FILLED_UP = {"lumina2", "sana", "sana-sprint"}


@pytest.mark.parametrize("kind", CALLS)
def test_encode_prompt(checkpoint: Make, kind: str) -> None:
    arguments, given = copy.deepcopy(CALLS[kind])
    theirs = diffusers.DiffusionPipeline.from_pretrained(checkpoint(kind))
    with torch.no_grad():  # some pipelines write into the list of prompts
        wanted = theirs.encode_prompt(*copy.deepcopy(arguments), **given)
    pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
    found = pipe.encode_prompt(*arguments, **given)
    assert [one is None for one in found] == [one is None for one in wanted]
    for i, (mine, other) in enumerate(zip(found, wanted, strict=True)):
        if other is None:
            continue
        if kind in _FILLED_UP:
            mask = np.asarray(wanted[i + 1 if i % 2 == 0 else i]) != 0
            other = other[:, : mine.shape[1]]
            own = mask[:, : mine.shape[1]]
            assert not mask[:, mine.shape[1] :].any()
            if i % 2 == 0:
                mine, other = mine[own], other[own]
        pairs = zip(mine, other, strict=True) if isinstance(other, list) else [(mine, other)]
        for a, b in pairs:
            assert tuple(a.shape) == tuple(b.shape)
            assert np.abs(np.asarray(a, np.float64) - b.double().numpy()).max() <= 1e-4


def test_one_of_two_text_encoders(checkpoint: Make) -> None:
    """Hunyuan-DiT's is asked by its number; the first one by default."""
    theirs = diffusers.HunyuanDiTPipeline.from_pretrained(checkpoint("hunyuan-dit"))
    pipe = DiffusionPipeline.from_pretrained(checkpoint("hunyuan-dit"), backend="torch:cpu")
    given: dict[str, Any] = {"negative_prompt": NOT, "text_encoder_index": 1}
    with torch.no_grad():
        wanted = theirs.encode_prompt(TEXTS, **given)
    for mine, other in zip(pipe.encode_prompt(TEXTS, **given), wanted, strict=True):
        assert tuple(mine.shape) == tuple(other.shape)
        assert np.abs(np.asarray(mine, np.float64) - other.double().numpy()).max() <= 1e-4
    texts = DiffusionPipeline.from_pretrained(
        checkpoint("hunyuan-dit"), backend="torch:cpu", transformer=None, vae=None
    )
    for mine, other in zip(texts.encode_prompt(TEXTS, **given), wanted, strict=True):
        assert np.abs(np.asarray(mine, np.float64) - other.double().numpy()).max() <= 1e-4
    with pytest.raises(InputError, match="text_encoder_index=2 was given; it is 0 to 1"):
        pipe.encode_prompt(TEXTS, text_encoder_index=2)


def test_states_that_were_encoded_draw_what_the_prompt_draws(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("flux"), backend="torch:cpu")
    given: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32, "seed": 0}
    given |= {"output_type": "latent", "max_sequence_length": 16}
    states, pooled, _ = pipe.encode_prompt("red", None, max_sequence_length=16)
    words = pipe("red", **given).images
    drawn = pipe(prompt_embeds=states, pooled_prompt_embeds=pooled, **given).images
    assert torch.equal(words, drawn)


def test_masks_of_aura_flow_are_taken_as_they_are_given(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("aura-flow"), backend="torch:cpu")
    given: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "output_type": "latent"}
    states = pipe.encode_prompt("red", "blue", max_sequence_length=16)
    assert states[1].shape == (1, 16 * states[0].shape[2])
    names = ("prompt_embeds", "prompt_attention_mask")
    named = dict(zip((*names, *(f"negative_{name}" for name in names)), states, strict=True))
    words = pipe("red", negative_prompt="blue", max_sequence_length=16, **given).images
    drawn = pipe(**named, **given).images
    assert torch.equal(torch.as_tensor(words), torch.as_tensor(drawn))


def test_a_pipeline_without_prompts(checkpoint: Make) -> None:
    for kind in ("tiny", "dit"):
        pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
        with pytest.raises(InputError, match="has no encode_prompt"):
            pipe.encode_prompt("red")


def test_a_picture_stands_behind_the_prompt_that_edits_it(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("qwen-edit"), backend="torch:cpu")
    picture = Image.new("RGB", (64, 64), "red")
    states, mask = pipe.encode_prompt("blue", picture, "cpu", 2)
    named = pipe.encode_prompt(prompt="blue", image=picture, num_images_per_prompt=2)
    assert mask is None and named[1] is None
    assert len(states) == 2 and torch.equal(torch.as_tensor(states), torch.as_tensor(named[0]))


@pytest.mark.parametrize(
    ("kind", "denoiser"), [("sd1", "unet"), ("flux", "transformer"), ("z-image", "transformer")]
)
def test_one_part_after_the_other(checkpoint: Make, kind: str, denoiser: str) -> None:
    """A prompt is encoded without a denoiser, and drawn without a text encoder, as in Diffusers' docs."""
    model, call = checkpoint(kind), {"num_inference_steps": 2, "height": 32, "width": 32}
    whole = DiffusionPipeline.from_pretrained(model, backend="torch:cpu")
    drawn = whole("red", **call, seed=0, output_type="latent").images

    texts = DiffusionPipeline.from_pretrained(model, **{denoiser: None}, vae=None)
    encoded = texts.encode_prompt("red")
    names = ["prompt_embeds", "negative_prompt_embeds"]
    given = dict(
        zip([names[0], "pooled_prompt_embeds"] if kind == "flux" else names, encoded, strict=False)
    )
    with pytest.raises(InputError, match=f"needs {denoiser} for this, and has text_encoder"):
        texts("red", **call, output_type="latent")

    encoders = [name for name in whole.components if name.startswith(("text_enc", "tokenizer"))]
    without: dict[str, Any] = {**dict.fromkeys(encoders), "vae": None}
    rest = DiffusionPipeline.from_pretrained(model, **without)
    latents = rest(**given, **call, seed=0, output_type="latent").images
    assert float((latents - drawn).abs().max()) == 0

    # A denoiser of one's own, in a pipeline that has nothing else.
    kind_of = type(getattr(whole, denoiser))
    own = kind_of.from_pretrained(model, subfolder=denoiser)
    rest = DiffusionPipeline.from_pretrained(model, **without, **{denoiser: own})
    again = rest(**given, **call, seed=0, output_type="latent").images
    assert float((again - drawn).abs().max()) == 0
    with pytest.raises(InputError, match="no latent decoder"):
        rest(**given, **call, seed=0)
    decoder = whole.vae
    del whole.vae
    assert whole.vae is None and whole.spec.left_out.keys() == {"vae_encoder", "vae_decoder"}
    whole.vae = decoder
    assert not whole.spec.left_out
    assert torch.equal(whole("red", **call, seed=0, output_type="latent").images, drawn)
