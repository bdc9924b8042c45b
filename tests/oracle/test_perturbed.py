"""Guidance by worse versions of the UNet, against Diffusers' pipelines and hooks."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.oracle.pairs import Pair, make_gentle

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import perfuse
from perfuse import Perturbation, SkipLayerGuidance
from perfuse_conformance.checkpoints import edit_json, make_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = make_gentle(make_checkpoint(tmp_path_factory.mktemp("pag") / "sd1", "sd1"))
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPAGPipeline")
    return Pair.open(folder, "StableDiffusionPAGPipeline")


def applied(pair: Pair, layers: Any) -> dict[str, Any]:
    """Diffusers' pipeline is told its layers when it is made, ours when it is called."""
    pair.theirs.set_pag_applied_layers(layers)
    return {"own": {"pag_applied_layers": layers}}


def test_pag_is_diffusers_pipeline(sd: Pair) -> None:
    usual = sd.check(prompt="a red circle", pag_scale=0.0)
    pag = sd.check(prompt="a red circle")
    assert np.abs(pag - usual).max() > 1e-3
    assert np.abs(sd.check(prompt="a red circle", pag_scale=5.0) - pag).max() > 1e-3
    sd.check(prompt=["a cat", "two red cats"], guidance_scale=0.0, num_images_per_prompt=2)
    sd.check(prompt="a cat", pag_adaptive_scale=0.005, guidance_rescale=0.7, negative_prompt="dog")
    for layers in ("up", ["down_blocks.0", "mid"], "attentions.(0|1).transformer_blocks.0.attn1"):
        other = sd.check(prompt="a red circle", **applied(sd, layers))
        assert np.abs(other - pag).max() > 1e-3
    applied(sd, "mid")


def test_pag_is_diffusers_sdxl_pipeline(tmp_path: Path) -> None:
    folder = make_gentle(make_checkpoint(tmp_path / "sdxl", "sdxl"))
    edit_json(folder / "model_index.json", _class_name="StableDiffusionXLPAGPipeline")
    pair = Pair.open(folder, "StableDiffusionXLPAGPipeline", add_watermarker=False)
    pag = pair.check(prompt="a red circle")
    assert np.abs(pair.check(prompt="a red circle", pag_scale=0.0) - pag).max() > 1e-3


def test_pag_is_enabled_where_a_pipeline_is_opened(sd: Pair) -> None:
    """``enable_pag`` and ``pag_applied_layers`` are arguments of the opening in Diffusers."""
    where = sd.ours.source.model
    given = {"enable_pag": True, "pag_applied_layers": ["up"]}
    ours = perfuse.AutoPipelineForText2Image.from_pretrained(where, **given)
    assert type(ours).__name__ == "StableDiffusionPAGPipeline"
    sd.theirs.set_pag_applied_layers(["up"])
    Pair(ours, sd.theirs).check(prompt="a red circle")
    sd.theirs.set_pag_applied_layers("mid")
    after = perfuse.AutoPipelineForImage2Image.from_pipe(ours)
    assert type(after).__name__ == "StableDiffusionPAGImg2ImgPipeline"
    plain = perfuse.AutoPipelineForImage2Image.from_pipe(ours, enable_pag=False)
    assert type(plain).__name__ == "StableDiffusionImg2ImgPipeline"


def test_pag_of_other_layers(sd: Pair) -> None:
    """``set_pag_applied_layers`` changes what is perturbed between two calls."""
    both = sd.like("StableDiffusionPAGPipeline")
    both.ours = perfuse.AutoPipelineForText2Image.from_pipe(sd.ours, enable_pag=True)
    call = {"prompt": "a red circle", "pag_scale": 2.0}
    before = both.check(**call)
    for layers in (["mid", "up"], "down"):
        for pipe in (both.ours, both.theirs):
            pipe.set_pag_applied_layers(layers)
        after = both.check(**call)
        assert abs(after - before).max() > 1e-3
    assert both.ours.pag_scale == both.theirs.pag_scale == 2.0
    assert both.ours.pag_adaptive_scale == both.theirs.pag_adaptive_scale


def test_pag_draws_after_pictures(sd: Pair) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    mask = Image.new("L", image.size)
    mask.paste(255, (8, 8, 32, 24))
    given = {"prompt": "a red circle", "image": image, "strength": 0.8}
    after = sd.like("StableDiffusionPAGImg2ImgPipeline").check(**given)
    usual = sd.like("StableDiffusionPAGImg2ImgPipeline").check(**given, pag_scale=0.0)
    assert np.abs(after - usual).max() > 1e-3
    inpainting = sd.like("StableDiffusionPAGInpaintPipeline")
    size = {"height": 32, "width": 32}
    masked = inpainting.check(**given, mask_image=mask, **size)
    assert np.abs(masked - after).max() > 1e-3


def predicted(pair: Pair, kind: str, layers: str, amount: float = 0.0) -> np.ndarray:
    """What a worse version of our UNet predicts."""
    worse = Perturbation(kind=kind, layers=(layers,), amount=amount)
    program = pair.ours.program(pair.ours.entry(worse))
    return np.asarray(program(**{n: a.numpy() for n, a in inputs(pair).items()})["out_sample"])


def inputs(pair: Pair) -> dict[str, Any]:
    width = pair.theirs.unet.config.cross_attention_dim
    draw = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, 16, 16, generator=draw),
        "timestep": torch.tensor([801.0, 3.0]),
        "encoder_hidden_states": torch.randn(2, 7, width, generator=draw),
    }


def theirs(pair: Pair, unet: Any) -> np.ndarray:
    with torch.no_grad():
        given = inputs(pair)
        out = unet(given.pop("sample"), given.pop("timestep"), **given).sample
    array: np.ndarray = out.numpy()
    return array


FIRST = "mid_block.attentions.0.transformer_blocks"


def test_skipped_blocks_are_those_that_diffusers_skips(sd: Pair) -> None:
    unet = copy.deepcopy(sd.theirs.unet)
    config = diffusers.LayerSkipConfig(indices=[0], fqn=FIRST)
    diffusers.hooks.apply_layer_skip(unet, config)
    expected = theirs(sd, unet)
    assert np.abs(expected - theirs(sd, sd.theirs.unet)).max() > 1e-3
    assert np.abs(predicted(sd, "skip", FIRST) - expected).max() < 1e-5
    guider = SkipLayerGuidance(skip_layer_config=config)
    assert guider.branches[-1].perturbation is not None
    assert np.abs(predicted(sd, "skip", *guider.skip_layer_guidance_layers) - expected).max() < 1e-5


@pytest.mark.parametrize("sigma", [0.4, 1.5, 6.0, -1.0], ids=str)
def test_blurred_queries_are_those_of_the_paper(sd: Pair, sigma: float) -> None:
    """Diffusers' function has the paper's two cases, and takes the other one than the paper's code.

    ``is_inf`` leads to the Gaussian there, and a finite deviation to the mean.
    """
    from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d

    unet = copy.deepcopy(sd.theirs.unet)
    size = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    threshold = 0.0 if sigma > 0 else math.inf

    def blur(module: Any, given: Any, query: Any) -> Any:
        return _gaussian_blur_2d(query.clone(), size, sigma, threshold)

    for name, module in unet.named_modules():
        if name.endswith("attn1.to_q") and "up_blocks" in name:
            module.register_forward_hook(blur)
    expected = theirs(sd, unet)
    assert np.abs(expected - theirs(sd, sd.theirs.unet)).max() > 1e-4
    assert np.abs(predicted(sd, "blur", "up", sigma) - expected).max() < 1e-5
