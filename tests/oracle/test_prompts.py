"""Steering by prompts against Diffusers, compel and AUTOMATIC1111's web UI: torch on the CPU, float32."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.oracle.recorded_prompts import CLASSES, TABLE, probe

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from perfuse import DiffusionPipeline
from perfuse.models.freeu import low_frequencies
from perfuse.run.tools import PipelineTools
from perfuse.tasks.prompts.reading import PromptReader
from perfuse.tasks.text_to_image_xl import encode_prompt

pytestmark = pytest.mark.slow

Make = Callable[[str], Path]

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

#: Random models are not gentle: latents of SD XL reach 50. Of the largest latent.
LATENTS = 1e-5


def open_both(folder: Path, kind: str) -> tuple[Any, DiffusionPipeline]:
    theirs = getattr(diffusers, CLASSES[kind]).from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    # Diffusers 0.42 looks for the layer norm where Transformers 4 had it.
    object.__setattr__(theirs.text_encoder, "text_model", theirs.text_encoder)
    return theirs, DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")


@pytest.fixture(params=list(CLASSES))
def both(request: pytest.FixtureRequest, checkpoint: Make) -> tuple[str, Any, DiffusionPipeline]:
    kind: str = request.param
    return kind, *open_both(checkpoint(kind), kind)


def draw(theirs: Any, ours: DiffusionPipeline, prompt: Any, **inputs: Any) -> np.ndarray:
    """Our latents, once they equal Diffusers'."""
    given = {"negative_prompt": "blue", "num_inference_steps": 2, "output_type": "latent", **inputs}
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs(prompt, generator=generator, **given).images.numpy()
        found = np.asarray(ours(prompt, seed=0, **given).images)
    assert np.abs(found - wanted).max() <= LATENTS * np.abs(wanted).max()
    return found


def test_clip_skip(both: tuple[str, Any, DiffusionPipeline]) -> None:
    _, theirs, ours = both
    plain = draw(theirs, ours, "a red circle")
    assert np.abs(draw(theirs, ours, "a red circle", clip_skip=1) - plain).max() > 0.1
    assert (draw(theirs, ours, "a red circle", clip_skip=0) == plain).all()


def test_textual_inversion(both: tuple[str, Any, DiffusionPipeline], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    kind, theirs, ours = both
    generator = torch.Generator().manual_seed(3)
    one, several = torch.randn(32, generator=generator), torch.randn(3, 32, generator=generator)
    save_file({"<cat>": one}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": several.half()}, tmp_path / "style.safetensors")
    save_file({"clip_l": several, "clip_g": several + 1}, tmp_path / "both.safetensors")
    plain = draw(theirs, ours, "a red circle")
    for pipe in (theirs, ours):
        pipe.load_textual_inversion(str(tmp_path))
    if kind == "sd1":
        for pipe in (theirs, ours):
            pipe.load_textual_inversion(str(tmp_path / "style.safetensors"), token="style")
    else:
        for number, shift in (("", 0), ("_2", 1)):
            theirs.load_textual_inversion(
                several + shift,
                token="style",
                text_encoder=getattr(theirs, f"text_encoder{number}"),
                tokenizer=getattr(theirs, f"tokenizer{number}"),
            )
        ours.load_textual_inversion(str(tmp_path / "both.safetensors"), token="style")
    assert ours.learned_tokens == ("<cat>", "style")
    assert ours.maybe_convert_prompt("a style") == "a style style_1 style_2"
    seen = [plain, *(draw(theirs, ours, p) for p in ("a <cat>", "a style red", "style " * 40))]
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(seen) for b in seen[:i])
    for pipe in (theirs, ours):
        pipe.unload_textual_inversion("<cat>")
    draw(theirs, ours, "a <cat> style")
    ours.unload_textual_inversion()
    assert ours.learned_tokens == ()
    assert np.array_equal(draw(theirs, ours, "a red circle"), plain)


def test_freeu(both: tuple[str, Any, DiffusionPipeline]) -> None:
    _, theirs, ours = both
    plain = draw(theirs, ours, "a red circle")
    for numbers, size in (((0.9, 0.2, 1.2, 1.4), (16, 16)), ((0.6, 0.4, 1.1, 1.2), (32, 48))):
        for pipe in (theirs, ours):
            pipe.enable_freeu(*numbers)
        drawn = draw(theirs, ours, "a red circle", height=size[0], width=size[1])
        assert drawn.shape != plain.shape or np.abs(drawn - plain).max() > 0.01
    for pipe in (theirs, ours):
        pipe.disable_freeu()
    assert (draw(theirs, ours, "a red circle") == plain).all()


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (2, 12)])
def test_the_lowest_frequencies(size: tuple[int, int]) -> None:
    from diffusers.utils.torch_utils import fourier_filter

    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        x - 0.8 * low_frequencies(x), fourier_filter(x, 1, 0.2), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", list(CLASSES))
@pytest.mark.parametrize("syntax", ["a1111", "compel"])
def test_prompts_as_their_references_read_them(checkpoint: Make, syntax: str, kind: str) -> None:
    """Fifty prompts of each syntax with one text encoder, every fourth of them with two."""
    ours = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
    prompts = json.loads(TABLE.read_text("utf-8"))[syntax]
    chosen = list(prompts) if kind == "sd1" else list(prompts)[::4]
    assert len(prompts) >= 50
    wrong = {}
    for prompt in chosen:
        found, wanted = probe(*_states(ours, kind, prompt, syntax)), prompts[prompt].get(kind)
        if wanted is not None and not np.allclose(found, wanted, rtol=0, atol=5e-6):
            wrong[prompt] = (found, wanted)
    assert not wrong


def _states(ours: DiffusionPipeline, kind: str, prompt: str, syntax: str) -> tuple[Any, ...]:
    """The states of a prompt, and for SD XL the pooled ones."""
    if kind == "sd1":
        read = PromptReader.of(PipelineTools(ours), "text_encoder", "tokenizer", syntax=syntax)
        return (read([prompt]).states,)
    from perfuse.tasks.guiders import NoGuidance

    unused = dict.fromkeys(name for name in encode_prompt.inputs)
    ids = {"positive": np.zeros((1, 6), np.float32)}
    given = {"prompts": [prompt], "negatives": [], "count": 1, "num_images_per_prompt": 1}
    given |= {"guider": NoGuidance(), "time_ids": ids, "prompt_syntax": syntax}
    found = encode_prompt.run(PipelineTools(ours), **{**unused, **given})["conditions"]["positive"]
    return found["encoder_hidden_states"], found["text_embeds"]
