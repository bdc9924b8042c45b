"""Tasks that start from a picture, against Diffusers': same checkpoint, same seed, same picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image
from tests.oracle.pairs import Pair, make_gentle

import perfuse
from perfuse import DiffusionPipeline
from perfuse_conformance.checkpoints import EMBED, edit_json, make_checkpoint, randomise

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


def test_consistency_image_to_image(tmp_path: Path) -> None:
    folder = make_gentle(make_checkpoint(tmp_path / "lcm", "lcm"))
    pair = Pair.open(folder, "LatentConsistencyModelImg2ImgPipeline")
    given = {"prompt": "a circle", "image": picture()}
    bare = pair.check(3, **given)
    for more in (
        {"strength": 0.3, "guidance_scale": 3.0},
        {"strength": 1.0, "original_inference_steps": 20},
        {"timesteps": [999, 759, 499, 259], "num_inference_steps": None},
    ):
        assert np.abs(pair.check(3, **given, **more) - bare).max() > 1e-3
    several = {"prompt": ["a circle", "a square"], "image": [picture(1), picture(2)]}
    pair.check(4, **several, num_images_per_prompt=2, strength=0.5)
    pair.check([4, 5], **several, strength=0.5)
    pair.check_pictures(5, prompt="a circle", image=torch.randn(1, 4, 8, 8))


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


def test_xl_refiner(tmp_path: Path) -> None:
    """One text encoder, and five time ids of which the last is the aesthetic score."""
    folder = variant_of("sdxl", tmp_path, "StableDiffusionXLImg2ImgPipeline")
    index = folder / "model_index.json"
    removed: dict[str, Any] = {name: [None, None] for name in ("text_encoder", "tokenizer")}
    edit_json(index, **removed, requires_aesthetics_score=True)
    config = json.loads((folder / "unet" / "config.json").read_text())
    width = json.loads((folder / "text_encoder_2" / "config.json").read_text())
    config |= {
        "cross_attention_dim": width["hidden_size"],
        "projection_class_embeddings_input_dim": width["projection_dim"]
        + 5 * config["addition_time_embed_dim"],
    }
    write_unet(folder, config)
    pair = Pair.open(folder, "StableDiffusionXLImg2ImgPipeline", add_watermarker=False)
    given = {"prompt": "a circle", "image": picture(), "strength": 0.6}
    best = pair.check(3, **given, aesthetic_score=9.0, negative_aesthetic_score=1.0)
    assert np.abs(best - pair.check(3, **given)).max() > 1e-4


# ── Models made for editing ─────────────────────────────────────────────────────────────────────


def variant_of(kind: str, folder: Path, class_name: str, **unet: Any) -> Path:
    """A checkpoint of another class, with another UNet."""
    made = make_checkpoint(folder / kind, kind)
    edit_json(made / "model_index.json", _class_name=class_name)
    if unet:
        config = json.loads((made / "unet" / "config.json").read_text())
        write_unet(made, config | unet)
    return make_gentle(made)


def write_unet(folder: Path, config: dict[str, Any]) -> None:
    import perfuse.models

    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    randomise(perfuse.models.UNet2DConditionModel(**fields)).save_pretrained(folder / "unet")
    make_gentle(folder)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_with_a_model_made_for_it(tmp_path: Path, strength: float) -> None:
    folder = variant_of("sd1", tmp_path, "StableDiffusionInpaintPipeline", in_channels=9)
    pair = Pair.open(folder, "StableDiffusionInpaintPipeline")
    given = {"prompt": "a circle", "image": picture(), "mask_image": mask()}
    pair.check(3, **given, strength=strength)
    if strength == 1.0:
        whole = {"image": picture(size=(48, 40)), "mask_image": mask((48, 40))}
        drawn = pair.check_pictures(3, prompt="a circle", **whole, padding_mask_crop=3)
        original = np.asarray(whole["image"]).astype(np.int16)
        kept = np.asarray(whole["mask_image"]) == 0
        assert (drawn[0][kept] == original[kept]).all()


def test_editing_by_an_instruction(tmp_path: Path) -> None:
    folder = variant_of("sd1", tmp_path, "StableDiffusionInstructPix2PixPipeline", in_channels=8)
    pair = Pair.open(folder, "StableDiffusionInstructPix2PixPipeline")
    given = {"prompt": "a circle", "image": picture(size=(24, 16))}
    three = pair.check(3, **given, image_guidance_scale=1.2, guidance_scale=5.0)
    one = pair.check(3, **given, image_guidance_scale=0.5)
    assert np.abs(three - one).max() > 1e-3


def test_xl_editing_by_an_instruction(tmp_path: Path) -> None:
    name = "StableDiffusionXLInstructPix2PixPipeline"
    folder = variant_of("sdxl", tmp_path, name, in_channels=8)
    pair = Pair.open(folder, name, add_watermarker=False)
    given = {"prompt": "a circle", "image": picture(), "height": 16, "width": 16}
    whole = pair.check(3, **given, guidance_rescale=0.5)
    begun = pair.check(3, **given, guidance_rescale=0.5, denoising_end=0.4)
    assert np.abs(whole - begun).max() > 1e-3


def test_cosxl_edit_scales_the_picture(tmp_path: Path) -> None:
    name = "StableDiffusionXLInstructPix2PixPipeline"
    folder = variant_of("sdxl", tmp_path, name, in_channels=8)
    settings = {"add_watermarker": False, "is_cosxl_edit": True}
    pair = Pair.open(folder, name, **settings)
    given = {"prompt": "a circle", "image": picture(), "height": 16, "width": 16}
    plain = pair.ours(**given, num_inference_steps=4, seed=3, output_type="latent").images
    pair.ours = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", **settings)
    scaled = pair.check(3, **given)
    assert np.abs(plain.numpy() - scaled).max() > 1e-3


def test_depth_to_image(tmp_path: Path) -> None:
    folder = variant_of("sd1", tmp_path, "StableDiffusionPipeline", in_channels=5)
    models = diffusers.StableDiffusionPipeline.from_pretrained(folder).components
    for unused in ("safety_checker", "feature_extractor", "image_encoder"):
        models.pop(unused)
    theirs = diffusers.StableDiffusionDepth2ImgPipeline(
        **models, depth_estimator=None, feature_extractor=None
    )
    theirs.set_progress_bar_config(disable=True)
    edit_json(folder / "model_index.json", _class_name="StableDiffusionDepth2ImgPipeline")
    ours = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    depth = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(1))
    Pair(ours, theirs).check(3, prompt="a circle", image=picture(), depth_map=depth, strength=0.7)


def test_upscaling(tmp_path: Path) -> None:
    changes = {"in_channels": 7, "num_class_embeds": 1000}
    folder = variant_of("sd1", tmp_path, "StableDiffusionPipeline", **changes)
    models = diffusers.StableDiffusionPipeline.from_pretrained(folder).components
    for unused in ("safety_checker", "feature_extractor", "image_encoder"):
        models.pop(unused)
    theirs = diffusers.StableDiffusionUpscalePipeline(
        **models, low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder / "whole")
    # Diffusers corrects the factor of an outdated config.
    edit_json(folder / "whole" / "vae" / "config.json", scaling_factor=0.18215)
    ours = DiffusionPipeline.from_pretrained(folder / "whole", backend="torch:cpu")
    assert ours.vae.config.scaling_factor == theirs.vae.config.scaling_factor == 0.08333
    pair = Pair(ours, theirs)
    pair.check(3, prompt="a circle", image=picture(size=(8, 12)), noise_level=50)
    assert pair.run("pil", prompt="a circle", image=picture(size=(8, 12)))[0][0].size == (16, 24)


def test_upscaling_in_latents(tmp_path: Path) -> None:
    name = "StableDiffusionLatentUpscalePipeline"
    folder = make_checkpoint(tmp_path / "upscaler", "latent-upscaler")
    ours, theirs = (
        module.StableDiffusionLatentUpscalePipeline.from_pretrained(folder, **settings)
        for module, settings in ((perfuse, {"backend": "torch:cpu"}), (diffusers, {}))
    )
    theirs.set_progress_bar_config(disable=True)
    assert type(ours).__name__ == name
    pair = Pair(ours, theirs)
    given = {"prompt": "a red circle", "image": picture(size=(16, 24))}
    plain = pair.check(3, **given, negative_prompt="blue", num_inference_steps=6)
    assert plain.shape == (1, 4, 24, 16)
    assert pair.check_pictures(3, **given).shape == (1, 48, 32, 3)
    unguided = pair.check(3, **given, guidance_scale=0)  # the prompt is not read either
    assert np.abs(unguided - pair.check(3, **given, guidance_scale=1.0)).max() > 1e-3
    small = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pair.check(3, prompt=["a circle", "a square"], image=small)
    pair.check(3, prompt=["a circle", "a square"], image=[picture(1), picture(2)])
    pair.check(3, prompt="a circle", image=picture(size=(17, 17)))  # made 16 x 16
    pair.check(3, prompt="a circle", image=torch.rand(1, 3, 16, 16))
    embeds = {
        f"{kind}prompt_embeds": torch.randn(shape, generator=torch.Generator().manual_seed(i))
        for i, (kind, shape) in enumerate(
            {
                "": (1, 77, 32),
                "negative_": (1, 77, 32),
                "pooled_": (1, 32),
                "negative_pooled_": (1, 32),
            }.items()
        )
    }
    pair.check(3, image=small[:1], **embeds)


LOOKED_AT = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def vision(width: int) -> Any:
    """The config of a small image encoder with embeddings of this width."""
    import transformers

    return transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=width,
    )


def test_variations_of_a_picture(tmp_path: Path) -> None:
    import transformers

    folder = variant_of("sd1", tmp_path, "StableDiffusionPipeline")
    models = diffusers.StableDiffusionPipeline.from_pretrained(folder).components
    width = models["unet"].config.cross_attention_dim
    theirs = diffusers.StableDiffusionImageVariationPipeline(
        vae=models["vae"],
        image_encoder=randomise(transformers.CLIPVisionModelWithProjection(vision(width))),
        unet=models["unet"],
        scheduler=models["scheduler"],
        safety_checker=None,
        feature_extractor=transformers.CLIPImageProcessor(**LOOKED_AT),
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder / "whole")
    ours = DiffusionPipeline.from_pretrained(folder / "whole", backend="torch:cpu")
    pair = Pair(ours, theirs)
    one = pair.check(3, image=picture(size=(40, 32)), num_images_per_prompt=2)
    two = pair.check(3, image=[picture(1), picture(2)], guidance_scale=1.0)
    assert np.abs(one - two).max() > 1e-3


# ── Stable unCLIP ───────────────────────────────────────────────────────────────────────────────


def unclip(folder: Path, **unet: Any) -> Pair:
    if unet:
        config = json.loads((folder / "unet" / "config.json").read_text())
        write_unet(folder, config | unet)
    else:
        make_gentle(folder)
    return Pair.open(folder, "StableUnCLIPImg2ImgPipeline")


def test_unclip(copy_of: Callable[[str], Path]) -> None:
    pair = unclip(copy_of("unclip"))
    plain = pair.check(3, prompt="a circle", image=picture(size=(40, 32)))
    noisy = pair.check(3, prompt="a circle", image=picture(size=(40, 32)), noise_level=700)
    assert np.abs(plain - noisy).max() > 1e-3
    words = {"prompt": ["a circle", "a square"], "negative_prompt": ["red", "green"]}
    pair.check(4, **words, image=picture(), noise_level=50, num_images_per_prompt=2)
    pair.check([4, 5], **words, image=picture(), noise_level=50)
    pair.check(4, **words, image=[picture(1), picture(2)], noise_level=50)
    pair.check_pictures(4, image=[picture(1), picture(2)], guidance_scale=1.0, width=24)


def test_unclip_of_embeddings_pixels_and_latents(copy_of: Callable[[str], Path]) -> None:
    pair = unclip(copy_of("unclip"), class_embeddings_concat=True)
    pair = with_scheduler(pair, "EulerDiscreteScheduler")
    draw = torch.Generator().manual_seed(0)
    embeds, latents = torch.randn(1, EMBED, generator=draw), torch.randn(1, 4, 8, 8, generator=draw)
    pair.check(3, prompt="a circle", image_embeds=embeds, noise_level=20, latents=latents)
    pair.check(3, image=torch.randn(1, 3, 24, 24, generator=draw), num_images_per_prompt=2)
