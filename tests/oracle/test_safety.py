"""The safety checker and CLIP's image encoder against Diffusers' and Transformers'."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import perfuse
from perfuse import DiffusionPipeline
from perfuse.arrays.image_processor import ImageProcessor
from perfuse.models.building import wrap
from perfuse.models.registry import describe
from perfuse.tasks.safety import unsafe
from perfuse_conformance.checkpoints import edit_json, randomise

Make = Callable[[str], Path]
GIVEN: dict[str, Any] = {"prompt": ["a red circle", "a blue square"], "num_inference_steps": 2}

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


def vision_config(**fields: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 24,
        "patch_size": 8,
        "projection_dim": 16,
        **fields,
    }


def their_checker(seed: int = 0, **fields: Any) -> Any:
    config = transformers.CLIPConfig(
        vision_config=vision_config(**fields), text_config={}, projection_dim=16
    )
    return randomise(StableDiffusionSafetyChecker(config), seed)


def make_picky(folder: Path) -> Path:
    """Set the thresholds so that of the pictures of ``GIVEN`` the first is objected to alone."""
    pipe = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    drawn = pipe(**GIVEN, seed=0).images
    program = pipe.program("safety_checker")
    scores = program(clip_input=pipe.feature_extractor(drawn).pixel_values)["concept_scores"]
    concept = int(np.argmax(scores[0] - scores[1]))
    assert scores[0, concept] - scores[1, concept] > 0.01
    path = folder / "safety_checker" / "model.safetensors"
    weights = load_file(path)
    weights["concept_embeds_weights"][concept] += float(scores[:, concept].mean())
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def run(pipe: Any, output_type: str) -> tuple[Any, list[bool] | None]:
    """Our pictures and what was found in them."""
    state: Any = {}
    for event in pipe.stream(**GIVEN, seed=0, output_type=output_type):
        state = event.state
    return state["images"], state["nsfw_content_detected"]


def stack(images: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(np.float64)


def test_one_of_two_pictures_is_black(copy_of: Make) -> None:
    folder = make_picky(copy_of("sd1-checked"))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    for output_type, unit in (("pil", 1.0), ("np", 1 / 255)):
        expected = theirs(
            **GIVEN, generator=torch.Generator().manual_seed(0), output_type=output_type
        )
        with pytest.warns(UserWarning, match="objected to 1 of 2 pictures, which are black"):
            drawn, found = run(ours, output_type)
        assert found == expected.nsfw_content_detected == [True, False]
        assert np.abs(stack(drawn) - stack(expected.images)).max() <= unit
        assert not stack(drawn)[0].any()
        assert stack(drawn)[1].std() > 5 * unit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latents, found = run(ours, "latent")
    assert found is None
    assert np.abs(latents).min() > 0
    # Without it both come out.
    with pytest.warns(UserWarning, match="safety checker is switched off"):
        off = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", safety_checker=None)
    assert off.safety_checker is None
    drawn, found = run(off, "pil")
    assert found is None
    assert stack(drawn)[0].std() > 5


def test_their_parts_in_a_pipeline_without(checkpoint: Make) -> None:
    """Diffusers' checker and Transformers' processor, given to a checkpoint that has neither."""
    checker = their_checker()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    parts = {"safety_checker": checker, "feature_extractor": processor}
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("words"), **parts)
    theirs.set_progress_bar_config(disable=True)
    ours = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu", **parts)
    expected = theirs(**GIVEN, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="objected to"):
        drawn, found = run(ours, "pil")
    assert found == expected.nsfw_content_detected
    assert np.abs(stack(drawn) - stack(expected.images)).max() <= 1


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_scores_and_decisions(activation: str) -> None:
    checker = their_checker(3, hidden_act=activation)
    (spec,) = describe("StableDiffusionSafetyChecker", "x", "x", checker.config.to_dict())
    pixels = torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeds = checker.visual_projection(checker.vision_model(pixels)[1])
        for table in ("special_care_embeds", "concept_embeds"):
            cosines = torch.cosine_similarity(
                embeds[:, None], getattr(checker, table)[None], dim=-1
            )
            # Near what is seen, so that there are pictures on both sides of each bar.
            getattr(checker, f"{table}_weights").copy_(cosines.quantile(0.97, dim=0))
        special, concepts = wrap(spec, checker)(pixels)
        expected = torch.cosine_similarity(
            embeds[:, None], checker.concept_embeds[None], dim=-1
        ) - (checker.concept_embeds_weights)
        _, decided = checker(clip_input=pixels, images=[np.ones(1)] * 64)
    assert (concepts - expected).abs().max() <= 1e-5
    assert unsafe(special.numpy(), concepts.numpy()) == decided
    assert 8 < sum(decided) < 56
    # The special concepts have their say.
    assert unsafe(np.full_like(special.numpy(), -1), concepts.numpy()) != decided


def test_image_encoder() -> None:
    config = transformers.CLIPVisionConfig(**vision_config(hidden_act="gelu"))
    theirs = randomise(transformers.CLIPVisionModelWithProjection(config), 4)
    (spec,) = describe("CLIPVisionModelWithProjection", "x", "x", config.to_dict())
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeds, states = wrap(spec, theirs)(pixels)
        expected = theirs(pixels, output_hidden_states=True)
    assert (embeds - expected.image_embeds).abs().max() <= 1e-5
    assert (states - expected.hidden_states[-2]).abs().max() <= 1e-5


def test_files_of_older_versions(copy_of: Make) -> None:
    """Before version 5, Transformers saved one more level and positions; its config had another name."""
    folder = copy_of("sd1-checked")
    pixels = np.random.default_rng(0).standard_normal((1, 3, 24, 24), dtype=np.float32)

    def scores() -> Any:
        pipe = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
        return pipe.program("safety_checker")(clip_input=pixels)["concept_scores"]

    before = scores()
    path = folder / "safety_checker" / "model.safetensors"
    weights = load_file(path)
    old = {
        n.replace("vision_model.", "vision_model.vision_model.", 1): t for n, t in weights.items()
    }
    old["vision_model.vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    save_file(old, path, metadata={"format": "pt"})
    vision = json.loads((path.parent / "config.json").read_text())["vision_config"]
    edit_json(path.parent / "config.json", vision_config={}, vision_config_dict=vision)
    assert np.array_equal(scores(), before)


@pytest.mark.parametrize("size", [(16, 16), (50, 31), (24, 24), (7, 90)])
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
        {"size": {"height": 20, "width": 30}, "crop_size": 24, "resample": 2},
        {"do_resize": False, "crop_size": 25, "do_normalize": False},
        {"size": {"shortest_edge": 12}, "do_center_crop": False, "image_mean": [0.5, 0.4, 0.3]},
    ],
)
def test_processor(size: tuple[int, int], settings: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels)  # with an alpha channel
    theirs = CLIPImageProcessorPil(**settings)(picture, return_tensors="np").pixel_values
    ours = ImageProcessor.from_config(settings)(picture).pixel_values
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= 1e-6


def test_made_of_components_and_saved(copy_of: Make, tmp_path: Path) -> None:
    """A pipeline made of Diffusers' components has their checker, and what it saves opens in both."""
    folder = make_picky(copy_of("sd1-checked"))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    made = perfuse.StableDiffusionPipeline(**theirs.components)
    with pytest.warns(UserWarning, match="objected to 1 of 2"):
        assert made(**GIVEN, seed=0).nsfw_content_detected == [True, False]
    DiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    out = again(**GIVEN, generator=torch.Generator().manual_seed(0))
    assert out.nsfw_content_detected == [True, False]
