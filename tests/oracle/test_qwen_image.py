"""Qwen-Image's pictures against Diffusers': same weights, same seed."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from PIL import Image
from tests.oracle.pairs import Pair

from perfuse.errors import CheckpointError, InputError
from perfuse.models.building import wrap
from perfuse.models.registry import describe
from perfuse_conformance.cases.checkpoint_parts import randomise
from perfuse_conformance.checkpoints import make_checkpoint

SHORT, LONG = "a red circle", "a blue square on the white background " * 9
SMALL = {"height": 16, "width": 24}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = make_checkpoint(tmp_path_factory.mktemp("qwen"), "qwen-image")
    return Pair.open(folder, "QwenImagePipeline")


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"negative_prompt": "x"},
        {"negative_prompt": LONG, "true_cfg_scale": 2.0},
        {"prompt": LONG, "max_sequence_length": 300},
        {"height": 24, "width": 16},
    ],
    ids=lambda inputs: "-".join(inputs) or "plain",
)
def test_latents(inputs: dict[str, Any], pair: Pair) -> None:
    pair.check(**{"prompt": SHORT, **SMALL, **inputs})


def test_prompts_of_two_lengths(pair: Pair) -> None:
    pair.check([1, 2], prompt=[SHORT, LONG], negative_prompt=[LONG, "x"], **SMALL)


def test_several_pictures(pair: Pair) -> None:
    pair.check([1, 2, 3, 4], prompt=[SHORT, SHORT], num_images_per_prompt=2, **SMALL)


def test_several_pictures_of_prompts_of_two_lengths(pair: Pair) -> None:
    """Diffusers repeats the masks in another order than the states; ours are those of one each."""
    call = {"num_inference_steps": 2, "output_type": "np", **SMALL}
    both = pair.ours([SHORT, LONG], num_images_per_prompt=2, seed=[1, 2, 3, 4], **call).images
    one = pair.ours([SHORT, LONG], seed=[2, 4], **call).images
    assert np.abs(both[1::2] - one).max() < 1e-4


def test_another_template(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a caller makes of the attributes counts, as in Diffusers."""
    assert pair.ours.prompt_template_encode == pair.theirs.prompt_template_encode
    start = pair.ours.prompt_template_encode_start_idx
    assert start == pair.theirs.prompt_template_encode_start_idx
    call = {"prompt": SHORT, "num_inference_steps": 2, "seed": 0, "output_type": "np", **SMALL}
    before = pair.ours(**call).images
    for pipe in (pair.ours, pair.theirs):
        monkeypatch.setattr(pipe, "prompt_template_encode", "<|im_start|>Draw: {}!", raising=False)
        monkeypatch.setattr(pipe, "prompt_template_encode_start_idx", 2, raising=False)
    pair.check(prompt=SHORT, **SMALL)
    assert np.abs(pair.ours(**call).images - before).max() > 1e-3
    pair.ours.prompt_template_encode = "no place"
    with pytest.raises(InputError, match="where the prompt goes"):
        pair.ours(**call)


def test_pictures(pair: Pair) -> None:
    pair.check_pictures(prompt=SHORT, **SMALL)


class TestFromPictures:
    @pytest.fixture
    def picture(self) -> Image.Image:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def test_image_to_image(self, pair: Pair, picture: Image.Image) -> None:
        other = pair.like("QwenImageImg2ImgPipeline")
        other.check(prompt=SHORT, image=picture, strength=0.6, negative_prompt="x", **SMALL)

    def test_inpainting(self, pair: Pair, picture: Image.Image) -> None:
        mask = np.zeros((20, 28), dtype=np.uint8)
        mask[:, :14] = 255
        other = pair.like("QwenImageInpaintPipeline")
        inputs = {"image": picture, "mask_image": Image.fromarray(mask), "strength": 0.7}
        other.check(prompt=SHORT, **inputs, **SMALL)


def test_the_autoencoder_of_one_frame() -> None:
    statistics = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    config = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [False, True],
        **statistics,
    }
    theirs = randomise(diffusers.AutoencoderKLQwenImage(**config), 1)
    encoder, decoder = describe("AutoencoderKLQwenImage", "vae", "vae", config)
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(2, 3, 24, 16, generator=generator)
    latents = torch.randn(2, 4, 6, 4, generator=generator)
    with torch.no_grad():
        (moments,) = wrap(encoder, theirs)(picture)
        (drawn,) = wrap(decoder, theirs)(latents)
        encoded = theirs.encode(picture[:, :, None]).latent_dist.parameters[:, :, 0]
        decoded = theirs.decode(latents[:, :, None]).sample[:, :, 0]
    assert (moments - encoded).abs().max() < 1e-5
    assert (drawn.clamp(-1, 1) - decoded).abs().max() < 1e-5


class TestBadInput:
    def test_a_scale_for_distilled_models(self, pair: Pair) -> None:
        with pytest.warns(UserWarning, match="true_cfg_scale"):
            pair.ours(SHORT, guidance_scale=3.0, num_inference_steps=2, **SMALL)

    def test_a_single_step(self, pair: Pair) -> None:
        with pytest.raises(InputError, match="two steps or more"):
            pair.ours(SHORT, num_inference_steps=1, **SMALL)

    @pytest.mark.parametrize(
        "change", [{"use_additional_t_cond": True}, {"use_layer3d_rope": True}, {"new_field": 1}]
    )
    def test_other_variants_are_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError, match=next(iter(change))):
            describe("QwenImageTransformer2DModel", "transformer", "transformer", change)
