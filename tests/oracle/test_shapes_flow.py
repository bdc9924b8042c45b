"""The bundled `shapes-flow` as Diffusers draws it: it is a checkpoint of Z-Image."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tests.oracle.pairs import Pair

from perfuse.shapes import FLOW, grammar
from perfuse.shapes.checker import check

ALONE = "a small red circle at the top left on a white background"
PAIR = "a yellow square above a blue circle"
SIZE = {"height": 64, "width": 64}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair.open(FLOW, "ZImagePipeline")


def test_diffusers_loads_all_of_it(pair: Pair) -> None:
    """In float32, the half precision of the file included; and no weight is missing, or too many."""
    for name in ("transformer", "vae", "text_encoder"):
        assert str(getattr(pair.theirs, name).dtype) == "torch.float32"
    _, told = type(pair.theirs.transformer).from_pretrained(
        FLOW, subfolder="transformer", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]


@pytest.mark.parametrize(
    "inputs",
    [{"prompt": ALONE}, {"prompt": [ALONE, PAIR], "guidance_scale": 0.0}],
    ids=["guided", "two prompts, unguided"],
)
def test_latents(inputs: dict[str, Any], pair: Pair) -> None:
    own = {name: list(value) for name, value in inputs.items() if isinstance(value, list)}
    pair.check(own=own, num_inference_steps=12, **SIZE, **inputs)


def test_pictures(pair: Pair) -> None:
    """Ours are of the model's own size unless they are asked for in another one."""
    drawn = pair.check_pictures(own={"height": None, "width": None}, prompt=ALONE, **SIZE)
    assert drawn.shape == (1, 64, 64, 3)


def test_diffusers_draws_what_captions_say(pair: Pair) -> None:
    image = pair.theirs(ALONE, num_inference_steps=12, **SIZE).images[0]
    assert check(np.asarray(image), grammar.parse(ALONE)).right
