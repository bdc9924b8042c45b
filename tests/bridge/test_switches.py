"""What a user switches on a pipeline between two pictures, at the pipeline's own level: none is drawn as before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse import ArtifactStore
from perfuse_conformance.bridged.measure import call_of, pipeline_of
from perfuse_conformance.bridged.recipe import recipes

pytestmark = pytest.mark.export


def small_tiles(pipe: Any) -> None:
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 8


#: Each is done to the pipeline as the ones before left it.
SWITCHES: dict[str, Callable[[Any], object]] = {
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "FreeU off": lambda pipe: pipe.disable_freeu(),
    "decoding in tiles": small_tiles,
    "decoding whole": lambda pipe: pipe.vae.disable_tiling(),
    "decoding one by one": lambda pipe: pipe.vae.enable_slicing(),
    "attention in slices": lambda pipe: pipe.enable_attention_slicing(1),
    "attention whole": lambda pipe: pipe.disable_attention_slicing(),
    "one matrix for three": lambda pipe: pipe.fuse_qkv_projections(),
    "three matrices": lambda pipe: pipe.unfuse_qkv_projections(),
    "channels last": lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    "another scheduler": lambda pipe: setattr(
        pipe, "scheduler", diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    ),
    "float64": lambda pipe: pipe.to(torch.float64),
    "float32": lambda pipe: pipe.to(torch.float32),
    "weights cast around each layer": lambda pipe: pipe.unet.enable_layerwise_casting(
        torch.bfloat16, torch.float32
    ),
    "layers moved": lambda pipe: pipe.vae.enable_group_offload(
        torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level"
    ),
}
#: Those that make another picture.
SEEN = ("FreeU", "FreeU off", "decoding in tiles", "decoding whole", "another scheduler")


def draw(pipe: Any) -> Any:
    call = {**call_of("StableDiffusionPipeline"), "num_inference_steps": 2}
    call["prompt"] = [call["prompt"], "a circle"]
    torch.manual_seed(0)
    return np.asarray(pipe(**call, generator=torch.Generator().manual_seed(0)).images)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_switches_of_a_pipeline(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    recipe = next(one for one in recipes() if one.name == "StableDiffusionPipeline")
    (_, eager), (_, pipe) = pipeline_of(recipe), pipeline_of(recipe)
    perfuse.accelerate(pipe, engine, store=ArtifactStore(tmp_path))
    before = draw(eager)
    assert np.abs(draw(pipe) - before).max() < 1e-3
    for name, switch in SWITCHES.items():
        for one in (eager, pipe):
            switch(one)
        expected = draw(eager)
        assert np.abs(draw(pipe) - expected).max() < 1e-3, name
        assert np.abs(expected - before).max() > 5e-3 or name not in SEEN, f"{name} is not seen"
        before = expected
    rows = {row.name: row.reasons for row in pipe.perfuse.report() if row.torch_calls}
    assert rows.keys() == {"unet", "vae_decode"}, rows
    # The last switches put hooks on layers. What else an engine could not run is said before.
    assert all("hook" in reasons[-1] for reasons in rows.values()), rows
