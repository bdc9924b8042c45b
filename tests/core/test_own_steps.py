"""Steps and tasks of the user's own, on every engine and from an export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import DiffusionPipeline, Input, Task, step
from perfuse.arrays import to_numpy
from perfuse.errors import InputError
from perfuse.tasks import (
    NOISE,
    OUTPUT,
    REQUIRED,
    SIZE,
    STEPS,
    TEXT_TO_IMAGE,
    check_size,
    conditions_of,
    decode,
    denoise_loop,
    encode,
    finish,
    guider_for,
    prepare_latents,
    prepare_schedule,
)

pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]
GIVEN: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}


@step(outputs=("prediction",))
def soften(tools: Any, prediction: Any, softness: float) -> dict[str, Any]:
    """A prediction that is a little smaller."""
    return {"prediction": (1 - softness) * prediction}


@step(outputs=("conditions", "guider", "count", "num_images_per_prompt"))
def mix(tools: Any, first: str, second: str, share: float) -> dict[str, Any]:
    """The states of two prompts, added by shares."""
    texts = to_numpy(
        encode(tools, "text_encoder", "tokenizer", [first, second, ""])["last_hidden_state"]
    )
    states = {"positive": (1 - share) * texts[:1] + share * texts[1:2], "negative": texts[2:]}
    conditions = {name: {"encoder_hidden_states": one} for name, one in states.items()}
    return {
        "conditions": conditions_of(conditions, 1),
        "guider": guider_for(tools, None, 7.5, 0.0),
        "count": 1,
        "num_images_per_prompt": 1,
    }


BETWEEN = Task(
    name="between",
    inputs={
        "first": Input(default=REQUIRED, kind=str, help="What to draw."),
        "second": Input(default=REQUIRED, kind=str, help="What else to draw."),
        "share": Input(default=0.5, kind=float, help="How much of the second, 0 to 1."),
        **SIZE,
        **STEPS,
        **NOISE,
        **OUTPUT,
    },
    steps=(check_size, mix, prepare_schedule, prepare_latents, *denoise_loop, decode, finish),
)
SOFTER = (
    TEXT_TO_IMAGE.with_inputs(softness=Input(default=0.0, kind=float))
    .insert(soften, after="guide")
    .without("check_safety")
)


def drawn(pipe: DiffusionPipeline) -> tuple[np.ndarray, np.ndarray]:
    """What two tasks of one's own draw."""
    pipe.task, pipe.task = SOFTER, BETWEEN
    return (
        pipe("a red circle", softness=0.1, **GIVEN).images,
        pipe(first="a red circle", second="a blue square", **GIVEN).images,
    )


@pytest.fixture(scope="module")
def expected(checkpoint: Make) -> tuple[np.ndarray, np.ndarray]:
    return drawn(DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu"))


def test_steps_of_one_s_own(checkpoint: Make, expected: Any) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    circle = pipe("a red circle", **GIVEN).images
    pipe.task, pipe.task = SOFTER, BETWEEN
    assert next(iter(pipe.tasks)) == "text-to-image" and "between" in pipe.tasks
    assert np.array_equal(pipe("a red circle", **GIVEN).images, circle)  # softness is 0
    same = pipe(first="a red circle", second="a blue square", share=0.0, **GIVEN).images
    assert np.abs(same - circle).max() < 1e-5
    assert all(np.abs(one - circle).max() > 1e-3 for one in expected)
    with pytest.raises(InputError, match="between needs first: What to draw; second"):
        pipe(task="between", **GIVEN)


def test_what_a_step_gave_is_returned(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    pipe.task = Task(
        name="states",
        inputs={
            "first": Input(default=REQUIRED),
            "second": Input(default=""),
            "share": Input(default=0.5),
        },
        steps=(mix,),
    )
    states = pipe(first="a circle", output="conditions")
    assert states["positive"]["encoder_hidden_states"].ndim == 3
    some = pipe(first="a circle", share=0.25, output=["count", "share"])
    assert some == {"count": 1, "share": 0.25}
    with pytest.raises(
        InputError, match="images was to be returned; task 'states' gives conditions"
    ):
        pipe(first="a circle")
    with pytest.raises(
        InputError, match="latent was to be returned; task .text-to-image. gives .*samples"
    ):
        pipe("a circle", output=["latents", "latent"])
    assert pipe("a circle", output="seeds", **GIVEN) == (0,)


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_steps_run_on_every_engine(checkpoint: Make, backend: str, expected: Any) -> None:
    pytest.importorskip(backend)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend=backend)
    for one, other in zip(drawn(pipe), expected, strict=True):
        assert np.abs(one - other).max() < 1e-3


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_steps_run_from_an_export(exported: Export, format: str, expected: Any) -> None:
    pipe = DiffusionPipeline.from_pretrained(exported("words", format))
    for one, other in zip(drawn(pipe), expected, strict=True):
        assert np.abs(one - other).max() < 1e-3
