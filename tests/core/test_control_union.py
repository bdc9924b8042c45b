"""ControlNet-Unions in a pipeline: the class that it becomes, what is refused, and exports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import needs_exporter

from perfuse import DiffusionPipeline
from perfuse.errors import CheckpointError, InputError
from perfuse_conformance.checkpoints import controlnet_config, randomise, union_config

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]
CALL: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "seed": 1}


def picture(seed: int) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)
    return Image.fromarray(drawn)


A, B = picture(1), picture(2)


@pytest.fixture(scope="module")
def pipe(checkpoint: Make) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(checkpoint("union"), backend="torch:cpu")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "text-to-image needs control_image"),
        ({"control_image": [A]}, "control_mode has None; controlnet knows the kinds .* 0 to 5"),
        ({"control_image": [A], "control_mode": [6]}, "control_mode has 6; controlnet knows"),
        ({"control_image": [A, B], "control_mode": [0]}, "2 pictures to follow and 1 control_mode"),
        (
            {
                "control_image": [A, B],
                "control_mode": [0, 1],
                "controlnet_conditioning_scale": [0.5] * 3,
            },
            "controlnet_conditioning_scale has 3 values",
        ),
    ],
)
def test_inputs_that_do_not_fit(pipe: DiffusionPipeline, inputs: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pipe("a", **CALL, **inputs)


def test_the_class_follows_the_net(checkpoint: Make) -> None:
    import perfuse.models

    plain = DiffusionPipeline.from_pretrained(checkpoint("sdxl"), backend="torch:cpu")
    unet = plain.spec.components["unet"].config
    unet = {name: value for name, value in unet.items() if not name.startswith("_")}
    kinds: Any = perfuse.models
    union = randomise(kinds.ControlNetUnionModel(**union_config(unet)), 1)
    one = randomise(kinds.ControlNetModel(**controlnet_config(unet)), 1)
    plain.controlnet = union
    assert plain.spec.class_name == "StableDiffusionXLControlNetUnionPipeline"
    plain.controlnet = [one, one]
    assert plain.spec.class_name == "StableDiffusionXLControlNetPipeline"
    with pytest.raises(InputError, match="models of one kind"):
        plain.controlnet = [one, union]
    with pytest.raises(CheckpointError, match="num_trans_channel is 16 and block_out_channels"):
        kinds.ControlNetUnionModel(**union_config(unet, num_trans_channel=16))


@pytest.mark.exhaustive
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_export_reads_one_picture_or_several(
    pipe: DiffusionPipeline, made_once: Callable[..., Path], to: str
) -> None:
    needs_exporter(to)
    folder = made_once("exports", f"union-{to}", lambda new: pipe.export(new, to=to))
    other = DiffusionPipeline.from_pretrained(folder)
    calls: list[dict[str, Any]] = [
        {"control_image": A, "control_mode": 3},
        {"control_image": [A, B], "control_mode": [0, 3], "control_guidance_end": [0.5, 1.0]},
        {"prompt": ["a", "red"], "control_image": [[A, B]], "control_mode": [1]},
    ]
    drawn = []
    for inputs in calls:
        given = {"prompt": "red", **inputs, "num_inference_steps": 2, "seed": 1}
        ours, theirs = (np.asarray(one(**given, output_type="np").images) for one in (pipe, other))
        assert np.abs(ours - theirs).max() * 255 <= 2
        drawn.append(theirs[0].tobytes())
    assert len(set(drawn)) == 3
