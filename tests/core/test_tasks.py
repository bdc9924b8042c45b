"""The tasks: what each one takes, and every input that it refuses before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import DiffusionPipeline
from perfuse.errors import InputError
from perfuse.plugins import host, resolve
from perfuse.tasks.choosing import tasks_of
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE
from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL
from perfuse_conformance.checkpoints import edit_json, unet_config

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]

STATES = np.zeros((1, 77, 32), np.float32)


@pytest.fixture(scope="module")
def pipes(checkpoint: Make) -> Callable[[str], DiffusionPipeline]:
    opened: dict[str, DiffusionPipeline] = {}

    def get(kind: str) -> DiffusionPipeline:
        if kind not in opened:
            opened[kind] = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
        return opened[kind]

    return get


def test_the_tasks_of_every_class_are_there() -> None:
    manifests = host().pipelines().values()
    found = {(name, resolve(where).name) for one in manifests for name, where in one.tasks.items()}
    assert found
    assert all(name == own for name, own in found)


@pytest.mark.parametrize(
    ("kind", "name", "steps", "guidance"),
    [
        ("sd1", "text-to-image", 50, 7.5),
        ("sdxl", "text-to-image", 50, 5.0),
        ("ddpm", "unconditional", 1000, None),
    ],
)
def test_task_and_its_defaults(
    pipes: Any, kind: str, name: str, steps: int, guidance: float | None
) -> None:
    task = pipes(kind).task
    assert task.name == name
    assert task.inputs["num_inference_steps"].default == steps
    found = task.inputs.get("guidance_scale")
    assert (found.default if found is not None else None) == guidance
    assert ("prompt_2" in task.inputs) == (kind == "sdxl")


@pytest.mark.parametrize(
    ("kind", "class_name", "defaults"),
    [
        ("ddpm", "DDIMPipeline", {"num_inference_steps": 50}),
        (
            "sd1",
            "LatentConsistencyModelPipeline",
            {"num_inference_steps": 4, "guidance_scale": 8.5},
        ),
    ],
)
def test_defaults_of_a_class(
    copy_of: Make, kind: str, class_name: str, defaults: dict[str, Any]
) -> None:
    from perfuse import Checkpoint

    folder = copy_of(kind)
    edit_json(folder / "model_index.json", _class_name=class_name)
    for task in tasks_of(Checkpoint.open(folder).spec).values():
        assert {name: task.inputs[name].default for name in defaults} == defaults


def test_xl_differs_in_what_it_tells_the_denoiser_alone() -> None:
    plain = {node.name: node for node in TEXT_TO_IMAGE.steps}
    xl = {node.name: node for node in TEXT_TO_IMAGE_XL.steps}
    assert set(xl) - set(plain) == {"check_pairs", "read_sizes", "watermark"}
    assert [name for name in plain if xl[name] is not plain[name]] == ["encode_prompt"]


COMMON: list[tuple[dict[str, Any], str]] = [
    ({"num_inference_steps": 0}, "0"),
    ({"num_inference_steps": -1}, "-1"),
    ({"num_inference_steps": 2.5}, r"2\.5"),
    ({"num_inference_steps": "5"}, "5"),
    ({"num_inference_steps": 1001}, "1001"),
    ({"timesteps": []}, "timesteps"),
    ({"timesteps": [1, 500]}, "timesteps"),
    ({"height": 15}, "height 15.*14 or 16"),
    ({"width": True}, "width must be a whole number; got True"),
    ({"height": "16"}, "height must be a whole number; got '16'"),
    ({"height": 0}, "height 0"),
    ({"output_type": "jpeg"}, "'jpeg'.*pil, np, pt or latent"),
    ({"seed": 1.5}, r"1\.5"),
    ({"seed": "one"}, "'one'"),
    ({"seed": 1, "generator": torch.Generator()}, "seed and a generator"),
    ({"seed": [1, 2]}, "2.*1"),
    ({"generator": "x"}, "'x'"),
    ({"generator": [torch.Generator()] * 2}, "2.*1"),
    ({"noise_mode": "loud"}, "'loud'"),
    ({"latents": np.zeros((1, 4, 4, 4), np.float32)}, r"\(1, 4, 4, 4\)"),
    ({"eta": -1.0}, "eta"),
    ({"strength": 0.5}, "strength"),
]
WORDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": ["red", 3]}, "prompt"),
    ({"prompt_embeds": STATES}, "prompt and prompt_embeds"),
    ({"negative_prompt": 3}, "negative_prompt"),
    ({"negative_prompt": ["a", "b"]}, "2 negative prompts.*1 prompts"),
    ({"negative_prompt": "x", "negative_prompt_embeds": STATES}, "at most one"),
    ({"prompt": None, "prompt_embeds": STATES[0]}, r"prompt_embeds.*\(77, 32\)"),
    ({"prompt": None, "prompt_embeds": STATES[..., :5]}, "5"),
    ({"prompt": None, "prompt_embeds": "red"}, "prompt_embeds"),
    (
        {"prompt": None, "prompt_embeds": STATES, "negative_prompt_embeds": STATES[:, :5]},
        "same shape",
    ),
    ({"guidance_scale": float("nan")}, "guidance_scale"),
    ({"guidance_scale": "7"}, "guidance_scale"),
    ({"guidance_rescale": 2}, "guidance_rescale"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt.*0"),
    ({"num_images_per_prompt": 1.5}, "num_images_per_prompt"),
    ({"num_images_per_prompt": "2"}, "num_images_per_prompt"),
]


@pytest.mark.parametrize(("inputs", "words"), [*COMMON, *WORDS])
def test_refused_by_text_to_image(pipes: Any, inputs: dict[str, Any], words: str) -> None:
    pipe = pipes("sd1")
    given = {"prompt": "red", "num_inference_steps": 2, **inputs}
    with pytest.raises(InputError, match=words) as caught:
        pipe(**given)
    assert "\n" not in str(caught.value)


def test_nothing_to_say_can_be_said(pipes: Any) -> None:
    drawn = pipes("sd1")("", num_inference_steps=1, seed=0, output_type="np").images
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [(i, w) for i, w in COMMON if not {"latents", "eta"} & set(i)]
    + [({"batch_size": n}, "batch_size") for n in (0, -1, 1.5, "2", True)]
    + [({"prompt": "red"}, "prompt"), ({"latents": np.zeros((1, 3, 8, 8))}, r"\(1, 3, 8, 8\)")],
)
def test_refused_by_unconditional(pipes: Any, inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pipes("ddpm")(**{"num_inference_steps": 2, **inputs})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"prompt_2": 3}, "prompt_2"),
        ({"prompt_2": ["a", "b"]}, "prompt_2 has 2 texts for 1"),
        ({"negative_prompt": "x", "negative_prompt_2": ["a", "b"]}, "negative_prompt_2"),
        ({"prompt": None, "prompt_embeds": np.zeros((1, 77, 64))}, "pooled_prompt_embeds"),
        ({"negative_prompt_embeds": np.zeros((1, 77, 64))}, "negative_pooled_prompt_embeds"),
        ({"original_size": 16}, "original_size"),
        ({"target_size": (16,)}, "target_size"),
        ({"crops_coords_top_left": ("a", "b")}, "crops_coords_top_left"),
    ],
)
def test_refused_by_xl(pipes: Any, inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pipes("sdxl")(**{"prompt": "red", "num_inference_steps": 2, **inputs})


def test_a_denoiser_made_for_inpainting_is_refused(checkpoint: Make) -> None:
    from perfuse.models import UNet2DConditionModel

    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"), backend="torch:cpu")
    pipe.unet = UNet2DConditionModel(**unet_config(in_channels=9))
    with pytest.raises(InputError, match=r"takes 9 channels and the latents have 4.*inpainting"):
        pipe("a red circle", num_inference_steps=1)
