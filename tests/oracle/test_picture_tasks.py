"""Tasks that start from a picture, against Diffusers': same checkpoint, same seed, same picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image
from tests.oracle.pairs import Pair, make_gentle

from perfuse_conformance.checkpoints import make_checkpoint

pytestmark = pytest.mark.slow


def picture(seed: int = 0, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def mask(size: tuple[int, int] = (16, 16)) -> Image.Image:
    """White in the lower right part."""
    found = Image.new("L", size, 0)
    found.paste(255, (size[0] // 2, size[1] // 4, size[0] * 7 // 8, size[1]))
    return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    def folder(kind: str) -> Path:
        return make_gentle(make_checkpoint(tmp_path_factory.mktemp("oracle") / kind, kind))

    sd = Pair.open(folder("sd1"), "StableDiffusionPipeline")
    xl = Pair.open(folder("sdxl"), "StableDiffusionXLPipeline", add_watermarker=False)
    return {"sd1": sd, "sdxl": xl}


SCHEDULERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
)


def with_scheduler(pair: Pair, name: str) -> Pair:
    import perfuse

    theirs = getattr(diffusers, name).from_config(pair.theirs.scheduler.config)
    pair.theirs.scheduler = theirs
    pair.ours.scheduler = getattr(perfuse, name).from_config(pair.ours.scheduler.config)
    return pair


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image(pairs: dict[str, Pair], scheduler: str, strength: float) -> None:
    pair = with_scheduler(pairs["sd1"].like("StableDiffusionImg2ImgPipeline"), scheduler)
    pair.check(3, prompt="a red circle", image=picture(), strength=strength)


def test_image_to_image_of_several(pairs: dict[str, Pair]) -> None:
    pair = with_scheduler(pairs["sd1"].like("StableDiffusionImg2ImgPipeline"), "DDIMScheduler")
    images: dict[str, Any] = {"image": [picture(1), picture(2)], "strength": 0.75}
    prompts = ["a red circle", "a green square"]
    pair.check(3, prompt=prompts, num_images_per_prompt=2, **images)
    pair.check([3, 4], prompt=prompts, image=picture(1), strength=0.75)
    pair.check(5, prompt="a circle", image=torch.rand(1, 3, 16, 24), strength=0.75)
    pair.check(5, prompt="a circle", image=np.random.default_rng(0).random((1, 16, 24, 3)))
    pair.check(6, prompt="a circle", image=torch.randn(1, 4, 8, 8), strength=0.75)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting(pairs: dict[str, Pair], scheduler: str, strength: float) -> None:
    pair = with_scheduler(pairs["sd1"].like("StableDiffusionInpaintPipeline"), scheduler)
    pair.check(3, prompt="a circle", image=picture(), mask_image=mask(), strength=strength)


# ── Stable Diffusion XL ─────────────────────────────────────────────────────────────────────────


def test_xl_image_to_image(pairs: dict[str, Pair]) -> None:
    pair = pairs["sdxl"].like("StableDiffusionXLImg2ImgPipeline", add_watermarker=False)
    sizes = {
        "original_size": (20, 30),
        "negative_original_size": (10, 12),
        "negative_crops_coords_top_left": (1, 2),
        "negative_target_size": (8, 24),
    }
    pair.check(3, prompt="a circle", image=picture(), strength=0.5, **sizes)
    bare = pair.check(3, prompt="a circle", image=picture(), num_inference_steps=10)
    assert bare.std() > 0.01


def test_xl_text_to_image_with_other_sizes_for_the_negative(pairs: dict[str, Pair]) -> None:
    sizes = {"negative_original_size": (10, 12), "negative_target_size": (8, 24)}
    more = {"negative_crops_coords_top_left": (1, 2)}
    ours = pairs["sdxl"].check(3, prompt="a circle", **sizes, **more)
    plain = pairs["sdxl"].check(3, prompt="a circle", negative_original_size=(10, 12))
    assert np.abs(ours - plain).max() > 1e-3


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_xl_one_model_goes_on_where_another_stopped(pairs: dict[str, Pair], scheduler: str) -> None:
    first = with_scheduler(pairs["sdxl"], scheduler)
    half = first.check(3, prompt="a circle", num_inference_steps=6, denoising_end=0.6)
    second = first.like("StableDiffusionXLImg2ImgPipeline", add_watermarker=False)
    left = torch.from_numpy(half)
    second.check(3, prompt="a circle", image=left, num_inference_steps=6, denoising_start=0.6)


def test_xl_inpainting(pairs: dict[str, Pair]) -> None:
    pair = with_scheduler(pairs["sdxl"], "EulerDiscreteScheduler").like(
        "StableDiffusionXLInpaintPipeline", add_watermarker=False
    )
    given = {"prompt": "a circle", "image": picture(), "mask_image": mask()}
    pair.check(3, **given)
    pair.check(3, **given, strength=0.6, height=16, width=24)
