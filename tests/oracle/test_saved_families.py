"""Pipelines whose text encoders are code of perfuse's: what is read of them, and saved."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers

from perfuse import DiffusionPipeline

GIVEN = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}


@pytest.mark.parametrize(
    ("kind", "name", "class_name"),
    [
        ("flux", "text_encoder_2", "T5EncoderModel"),
        ("z-image", "text_encoder", "Qwen3ForCausalLM"),
        pytest.param("sd3", "text_encoder_3", "T5EncoderModel", marks=pytest.mark.exhaustive),
        pytest.param("sana", "text_encoder", "Gemma2Model", marks=pytest.mark.exhaustive),
        pytest.param(
            "qwen-image",
            "text_encoder",
            "Qwen2_5_VLForConditionalGeneration",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_read_and_saved(
    kind: str, name: str, class_name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    ours = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
    before = ours("a red circle", **GIVEN, seed=0).images
    ours.save_pretrained(tmp_path / "saved")
    theirs = diffusers.DiffusionPipeline.from_pretrained(checkpoint(kind))
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    wanted = getattr(theirs, name).state_dict()
    for one in (getattr(ours, name), getattr(again, name)):
        assert type(one) is getattr(transformers, class_name)
        assert one.state_dict().keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[n]) for n, tensor in one.state_dict().items())
    after = ours("a red circle", **GIVEN, seed=0).images  # with the model that was read
    opened = DiffusionPipeline.from_pretrained(tmp_path / "saved", backend="torch:cpu")
    for latents in (after, opened("a red circle", **GIVEN, seed=0).images):
        np.testing.assert_array_equal(np.asarray(latents), np.asarray(before))
