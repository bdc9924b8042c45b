"""Whole pipelines against Diffusers': same checkpoint, same seed, torch on the CPU, float32."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.oracle.pairs import LATENTS, PICTURES, Pair, make_gentle, stack

import perfuse
from perfuse.errors import InputError
from perfuse_conformance.checkpoints import edit_json, make_checkpoint, randomise, unet_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("oracle") / kind
            made[kind] = make_gentle(make_checkpoint(folder, kind))
        return made[kind]

    return make


@pytest.fixture(scope="module")
def opened(folders: Callable[[str], Path]) -> dict[str, Pair]:
    return {
        "sd1": Pair.open(folders("sd1"), "StableDiffusionPipeline"),
        "sd2": Pair.open(folders("sd2"), "StableDiffusionPipeline"),
        "sdxl": Pair.open(folders("sdxl"), "StableDiffusionXLPipeline", add_watermarker=False),
    }


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def pair(request: pytest.FixtureRequest, opened: dict[str, Pair]) -> Iterator[Pair]:
    yield from with_own_scheduler(opened[request.param])


@pytest.fixture
def sd(opened: dict[str, Pair]) -> Iterator[Pair]:
    yield from with_own_scheduler(opened["sd1"])


@pytest.fixture
def xl(opened: dict[str, Pair]) -> Iterator[Pair]:
    yield from with_own_scheduler(opened["sdxl"])


def with_own_scheduler(pair: Pair) -> Iterator[Pair]:
    ours, theirs = pair.ours.scheduler, pair.theirs.scheduler
    yield pair
    pair.ours.scheduler, pair.theirs.scheduler = ours, theirs


# ── What is drawn ───────────────────────────────────────────────────────────────────────────────


def test_bare_call_has_diffusers_defaults(pair: Pair) -> None:
    theirs = stack(pair.theirs("a red circle", generator=torch.Generator().manual_seed(0)).images)
    ours = stack(pair.ours("a red circle", seed=0).images)
    assert np.abs(ours - theirs).max() <= PICTURES


@pytest.mark.parametrize("steps", [1, 2, 5, 15])
def test_step_counts(pair: Pair, steps: int) -> None:
    pair.check(prompt="a red circle", num_inference_steps=steps)


def test_prompt_and_seed_decide(pair: Pair) -> None:
    red = pair.check(prompt="a red circle")
    blue = pair.check(prompt="a blue square")
    other = pair.check(prompt="a red circle", seed=1)
    assert np.abs(red - blue).max() > 0.01
    assert np.abs(red - other).max() > 0.5


def test_negative_prompt(pair: Pair) -> None:
    without = pair.check(prompt="a red circle")
    negative = pair.check(prompt="a red circle", negative_prompt="the green square")
    pair.check_pictures(prompt="a red circle", negative_prompt="the green square")
    assert np.abs(without - negative).max() > 0.01


def test_empty_negative_prompt(pair: Pair) -> None:
    pair.check(prompt="a red circle", negative_prompt="")


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5])
def test_guidance(pair: Pair, scale: float) -> None:
    pair.check(prompt="a red circle", negative_prompt="blue", guidance_scale=scale)


def test_guidance_of_one_or_less_runs_one_branch(sd: Pair) -> None:
    one = sd.check(prompt="a red circle", guidance_scale=1.0)
    assert (one == sd.check(prompt="a red circle", guidance_scale=0.0)).all()


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_guidance_rescale(pair: Pair, rescale: float) -> None:
    prompts = ["a red circle", "the blue square"]
    plain = pair.check(prompt=prompts)
    rescaled = pair.check(prompt=prompts, guidance_rescale=rescale)
    assert np.abs(plain - rescaled).max() > 1e-3


def test_several_prompts_and_pictures_of_each(pair: Pair) -> None:
    prompts = ["a red circle", "the blue square on white"]
    pair.check(prompt=prompts)
    latents = pair.check(
        prompt=prompts, negative_prompt=["blue", "a red square"], num_images_per_prompt=2
    )
    assert len(latents) == 4
    pictures = pair.check_pictures(prompt=prompts, num_images_per_prompt=2)
    assert pictures.shape == (4, 16, 16, 3)


def test_one_negative_prompt_for_several_prompts(pair: Pair) -> None:
    """Diffusers wants a list for a list; one text for all is ours."""
    prompts, negative = ["a red circle", "the blue square"], "green"
    expected = pair.check(prompt=prompts, negative_prompt=[negative] * 2)
    given = {"num_inference_steps": 4, "output_type": "latent", "seed": 0}
    drawn = pair.ours(prompts, negative_prompt=negative, **given).images.numpy()
    assert (drawn == expected).all()


def test_seeds_of_each_picture(pair: Pair) -> None:
    """A seed or a generator each: a picture is the same in whichever company it is drawn."""
    prompts = ["a red circle", "the blue square", "green"]
    seeds = [5, 6, 5]
    together = pair.check(prompt=prompts, seed=seeds)
    given = {"num_inference_steps": 4, "output_type": "latent"}
    alone = pair.ours("the blue square", seed=6, **given).images.numpy()
    assert np.abs(together[1] - alone[0]).max() <= LATENTS
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    from_generators = pair.ours(prompts, generator=generators, **given).images.numpy()
    assert np.abs(together - from_generators).max() <= LATENTS


def test_generator_is_state_and_equals_seed(sd: Pair) -> None:
    def draw(**source: Any) -> np.ndarray:
        given = {"num_inference_steps": 3, "output_type": "latent", **source}
        latents: np.ndarray = sd.ours("a red circle", **given).images.numpy()
        return latents

    generator, theirs = (torch.Generator().manual_seed(7) for _ in range(2))
    first, second = draw(generator=generator), draw(generator=generator)
    assert np.abs(first - draw(seed=7)).max() <= LATENTS
    assert np.abs(first - second).max() > 0.5
    for ours in (first, second):
        given = {"num_inference_steps": 3, "output_type": "latent", "generator": theirs}
        expected = sd.theirs("a red circle", **given).images.numpy()
        assert np.abs(ours - expected).max() <= LATENTS


@pytest.mark.parametrize("size", [(16, 32), (48, 24)])
def test_sizes_that_are_not_square(pair: Pair, size: tuple[int, int]) -> None:
    pictures = pair.check_pictures(prompt="a red circle", height=size[0], width=size[1])
    assert pictures.shape[1:3] == size


def test_output_types(pair: Pair) -> None:
    ours, theirs = pair.run("np", prompt="a red circle")
    assert ours.shape == theirs.shape == (1, 16, 16, 3)
    assert ours.dtype == theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() <= 1e-5
    pictures, expected = pair.run("pil", prompt="a red circle")
    assert (pictures[0].mode, pictures[0].size) == (expected[0].mode, expected[0].size)
    assert np.abs(np.asarray(pictures[0]) / 255 - ours[0]).max() <= 0.5 / 255 + 1e-6


def test_latents_given(pair: Pair) -> None:
    given = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    drawn = pair.check(prompt="a red circle", latents=given)
    as_numpy = pair.ours(
        "a red circle", latents=given.numpy(), num_inference_steps=4, output_type="latent"
    ).images
    assert (as_numpy.numpy() == drawn).all()


def test_prompt_longer_than_the_model_reads(pair: Pair) -> None:
    pair.check(prompt="a red circle on the white background " * 12)


def test_odd_prompts(pair: Pair) -> None:
    pair.check(prompt=["", "  RED\tcircle\n", "Ünïcode 🎨 “quotes”", "!!!"])


# ── Text given as arrays ────────────────────────────────────────────────────────────────────────


def test_prompt_embeds(sd: Pair) -> None:
    positive, negative = sd.theirs.encode_prompt("a red circle", "cpu", 1, True, "blue")
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    from_arrays = sd.check(**given)
    from_words = sd.check(prompt="a red circle", negative_prompt="blue")
    assert np.abs(from_arrays - from_words).max() <= LATENTS
    sd.check(prompt_embeds=positive)  # the empty prompt guides
    sd.check(prompt_embeds=positive, negative_prompt="green")
    sd.check(**given, num_images_per_prompt=2)
    as_numpy = {name: tensor.detach().numpy() for name, tensor in given.items()}
    ours = sd.ours(**as_numpy, seed=0, num_inference_steps=4, output_type="latent").images
    assert (ours.numpy() == from_arrays).all()


def test_prompt_embeds_of_xl(xl: Pair) -> None:
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    encoded = xl.theirs.encode_prompt(
        "a red circle", device="cpu", num_images_per_prompt=1, negative_prompt="blue"
    )
    given = dict(zip(names, encoded, strict=True))
    from_arrays = xl.check(**given)
    from_words = xl.check(prompt="a red circle", negative_prompt="blue")
    assert np.abs(from_arrays - from_words).max() <= LATENTS
    xl.check(**given, num_images_per_prompt=2)
    positive = {name: given[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    xl.check(**positive)


# ── What XL has alone ───────────────────────────────────────────────────────────────────────────


def test_second_prompts(xl: Pair) -> None:
    one = xl.check(prompt="a red circle")
    two = xl.check(prompt="a red circle", prompt_2="the blue square")
    three = xl.check(
        prompt="a red circle",
        prompt_2="the blue square",
        negative_prompt="green",
        negative_prompt_2="white",
    )
    assert np.abs(one - two).max() > 0.01
    assert np.abs(two - three).max() > 0.01
    xl.check(prompt=["red", "blue"], prompt_2=["a circle", "a square"], num_images_per_prompt=2)


def test_sizes_that_the_picture_is_said_to_have(xl: Pair) -> None:
    plain = xl.check(prompt="a red circle")
    sized = xl.check(
        prompt="a red circle",
        original_size=(32, 48),
        crops_coords_top_left=(3, 5),
        target_size=(64, 16),
    )
    assert np.abs(plain - sized).max() > 0.01


def test_empty_prompt_is_not_zeros_where_the_checkpoint_says_so(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders("sdxl"), tmp_path / "sdxl"))
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    pair = Pair.open(folder, "StableDiffusionXLPipeline", add_watermarker=False)
    pair.check(prompt="a red circle")


# ── Schedulers ──────────────────────────────────────────────────────────────────────────────────

SWAPS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddim trailing zero SNR": (
        "DDIMScheduler",
        {
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        },
    ),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "pndm with Runge-Kutta": ("PNDMScheduler", {"skip_prk_steps": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++ karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


def swap(pair: Pair, class_name: str, **settings: Any) -> None:
    for pipe, library in ((pair.ours, perfuse), (pair.theirs, diffusers)):
        cls = getattr(library, class_name)
        pipe.scheduler = cls.from_config(pipe.scheduler.config, **settings)


@pytest.mark.parametrize("name", SWAPS)
def test_every_scheduler(pair: Pair, name: str) -> None:
    class_name, settings = SWAPS[name]
    swap(pair, class_name, **settings)
    given = {"prompt": "a red circle", "negative_prompt": "green", "guidance_scale": 3.0}
    pair.check(**given, num_inference_steps=6)


@pytest.mark.parametrize("name", SWAPS)
@pytest.mark.parametrize("steps", [4, 9])
def test_pictures_of_every_scheduler(sd: Pair, name: str, steps: int) -> None:
    class_name, settings = SWAPS[name]
    swap(sd, class_name, **settings)
    sd.check_pictures(prompt="a red circle", num_inference_steps=steps)


@pytest.mark.parametrize("name", ["ddpm", "euler ancestral", "dpm++ sde", "lcm"])
def test_noise_of_each_step_comes_from_each_seed(sd: Pair, name: str) -> None:
    class_name, settings = SWAPS[name]
    swap(sd, class_name, **settings)
    together = sd.check(prompt=["a red circle", "blue"], seed=[3, 4])
    alone = sd.check(prompt="blue", seed=[4])
    assert np.abs(together[1] - alone[0]).max() <= LATENTS


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta(sd: Pair, eta: float) -> None:
    plain = sd.check(prompt="a red circle", num_inference_steps=6)
    noisy = sd.check(prompt="a red circle", num_inference_steps=6, eta=eta)
    assert np.abs(plain - noisy).max() > 0.01


def test_eta_of_a_scheduler_without_it(sd: Pair) -> None:
    swap(sd, "EulerDiscreteScheduler")
    plain = sd.check(prompt="a red circle")
    assert (sd.check(prompt="a red circle", eta=0.5) == plain).all()


@pytest.mark.parametrize(
    "class_name", ["DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_timesteps_given(sd: Pair, class_name: str) -> None:
    swap(sd, class_name)
    steps = sd.check(prompt="a red circle", timesteps=[981, 700, 333, 21])
    assert np.abs(steps - sd.check(prompt="a red circle")).max() > 0.01


def test_sigmas_given(sd: Pair) -> None:
    swap(sd, "EulerDiscreteScheduler")
    sd.check(prompt="a red circle", sigmas=[14.0, 5.0, 1.5, 0.4, 0.1])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_prediction_types(sd: Pair, prediction_type: str) -> None:
    swap(sd, "EulerDiscreteScheduler", prediction_type=prediction_type)
    sd.check(prompt="a red circle")
    swap(sd, "DDIMScheduler", prediction_type=prediction_type)
    sd.check(prompt="a red circle")


def test_outdated_settings_are_corrected(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Diffusers' pipeline puts steps_offset to 1 and clip_sample to False."""
    folder = Path(shutil.copytree(folders("sd1"), tmp_path / "sd1"))
    edit_json(folder / "scheduler" / "scheduler_config.json", steps_offset=0, clip_sample=True)
    pair = Pair.open(folder, "StableDiffusionPipeline")
    assert pair.theirs.scheduler.config.steps_offset == pair.ours.scheduler.config.steps_offset == 1
    pair.check(prompt="a red circle")


# ── A model that takes the guidance scale as an input ───────────────────────────────────────────


@pytest.fixture(scope="module")
def distilled(folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latent consistency: a UNet with ``time_cond_proj_dim``, and an LCM scheduler."""
    import perfuse.models

    folder = Path(shutil.copytree(folders("sd1"), tmp_path_factory.mktemp("lcm") / "lcm"))
    model = perfuse.models.UNet2DConditionModel(**unet_config(time_cond_proj_dim=17))
    randomise(model).save_pretrained(folder / "unet")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(scheduler.read_text("utf-8"))
    lcm = {**settings, "_class_name": "LCMScheduler", "original_inference_steps": 50}
    scheduler.write_text(json.dumps(lcm), "utf-8")
    edit_json(folder / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    return make_gentle(folder, factor=0.2)


def test_guidance_as_an_input(distilled: Path) -> None:
    pair = Pair.open(distilled, "StableDiffusionPipeline")
    low = pair.check(prompt=["a red circle", "blue"], guidance_scale=2.0, seed=[1, 2])
    high = pair.check(prompt=["a red circle", "blue"], guidance_scale=8.5, seed=[1, 2])
    assert np.abs(low - high).max() > 0.01
    pair.check(prompt="a red circle", guidance_scale=1.0, num_images_per_prompt=2)


def test_latent_consistency_pipeline(distilled: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(distilled, tmp_path / "lcm"))
    edit_json(folder / "model_index.json", _class_name="LatentConsistencyModelPipeline")
    pair = Pair.open(folder, "LatentConsistencyModelPipeline")
    pair.check(prompt="a red circle", guidance_scale=2.0)
    theirs = stack(pair.theirs("blue", generator=torch.Generator().manual_seed(3)).images)
    assert np.abs(stack(pair.ours("blue", seed=3).images) - theirs).max() <= PICTURES


# ── Without words ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ddpm_folder(folders: Callable[[str], Path]) -> Path:
    return folders("ddpm")


def check_pixels(pair: Pair, seed: Any = 0, **inputs: Any) -> np.ndarray:
    ours, theirs = pair.run("np", seed, **inputs)
    assert ours.shape == theirs.shape
    assert ours.std() > 0.02
    assert np.abs(ours - theirs).max() <= 1e-5
    pair.check_pictures(seed, **inputs)
    return ours


@pytest.mark.parametrize("steps", [1, 2, 10, 25])
def test_ddpm(ddpm_folder: Path, steps: int) -> None:
    check_pixels(Pair.open(ddpm_folder, "DDPMPipeline"), num_inference_steps=steps)


def test_ddpm_with_several_pictures_and_seeds(ddpm_folder: Path) -> None:
    pair = Pair.open(ddpm_folder, "DDPMPipeline")
    assert len(check_pixels(pair, batch_size=3)) == 3
    assert pair.ours.task.inputs["num_inference_steps"].default == 1000
    check_pixels(pair, batch_size=2, seed=[8, 9])


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "fixed_small_log"])
def test_ddpm_variances(ddpm_folder: Path, variance_type: str) -> None:
    pair = Pair.open(ddpm_folder, "DDPMPipeline")
    swap(pair, "DDPMScheduler", variance_type=variance_type, clip_sample=False)
    check_pixels(pair, num_inference_steps=6)


def open_ddim(ddpm_folder: Path, tmp_path: Path) -> Pair:
    folder = Path(shutil.copytree(ddpm_folder, tmp_path / "ddim"))
    edit_json(folder / "model_index.json", _class_name="DDIMPipeline")
    return Pair.open(folder, "DDIMPipeline")


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(ddpm_folder: Path, tmp_path: Path, eta: float) -> None:
    """A DDPM checkpoint opened as DDIM, as its pipeline turns any scheduler into DDIM's."""
    pair = open_ddim(ddpm_folder, tmp_path)
    check_pixels(pair, eta=eta, num_inference_steps=7)
    check_pixels(pair, eta=eta, batch_size=2, seed=[1, 2])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_with_the_noise_of_the_clipped_sample(
    ddpm_folder: Path, tmp_path: Path, eta: float
) -> None:
    pair = open_ddim(ddpm_folder, tmp_path)
    given = {"eta": eta, "num_inference_steps": 7}
    clipped = check_pixels(pair, use_clipped_model_output=True, **given)
    plain = check_pixels(pair, use_clipped_model_output=False, **given)
    assert np.abs(clipped - plain).max() > 0.01


def test_another_scheduler_has_no_noise_of_the_clipped_sample(
    ddpm_folder: Path, tmp_path: Path
) -> None:
    pipe = open_ddim(ddpm_folder, tmp_path).ours
    pipe.scheduler = perfuse.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match="EulerDiscreteScheduler does not take it"):
        pipe(use_clipped_model_output=True, num_inference_steps=2)


def test_ddim_defaults(ddpm_folder: Path, tmp_path: Path) -> None:
    pair = open_ddim(ddpm_folder, tmp_path)
    theirs = pair.theirs(generator=torch.Generator().manual_seed(0), output_type="np").images
    ours = pair.ours(seed=0, output_type="np").images
    assert np.abs(ours - theirs).max() <= PICTURES / 255
