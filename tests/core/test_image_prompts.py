"""Image prompts: what is refused, on an engine, and graphs without an adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfuse import DiffusionPipeline
from perfuse.errors import CheckpointError, InputError, WeightsError
from perfuse_conformance.checkpoints import EMBED, write_adapter, write_image_encoder

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]
GIVEN: dict[str, Any] = {
    "prompt": "a red circle",
    "num_inference_steps": 2,
    "seed": 0,
    "output_type": "latent",
}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


@pytest.fixture
def adapters(checkpoint: Make, tmp_path: Path) -> Path:
    config = json.loads((checkpoint("words") / "unet" / "config.json").read_text())
    write_adapter(tmp_path / "plain.safetensors", "plain", config)
    write_adapter(tmp_path / "plus.safetensors", "plus", config)
    write_adapter(tmp_path / "wide.safetensors", "plain", {**config, "cross_attention_dim": 48})
    write_image_encoder(tmp_path / "image_encoder")
    return tmp_path


def opened(checkpoint: Make, folder: Path, *names: str, **settings: Any) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), **settings)
    pipe.load_ip_adapter(folder, weight_name=[f"{name}.safetensors" for name in names])
    return pipe


def test_files_that_are_refused(checkpoint: Make, adapters: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"))
    before = pipe.spec
    (adapters / "a.bin").write_bytes(b"never read")
    (adapters / "cut.safetensors").write_bytes((adapters / "plain.safetensors").read_bytes()[:900])
    for name, error, said in (
        ("a.bin", WeightsError, "is a pickle, which can run any code"),
        ("cut.safetensors", WeightsError, "cannot be read as an IP-Adapter's safetensors file"),
        ("none.safetensors", WeightsError, "there is no such file"),
        ("image_encoder/model.safetensors", WeightsError, "has no tensors image_proj"),
        ("wide.safetensors", InputError, "3 attentions over states of width 48, and unet has 3 of"),
    ):
        with pytest.raises(error, match=said):
            pipe.load_ip_adapter(adapters, weight_name=name)
    with pytest.raises(InputError, match="2 folders and 3 weight_name were given"):
        pipe.load_ip_adapter(adapters, subfolder=["", ""], weight_name=["a", "b", "c"])
    with pytest.raises(CheckpointError, match="there is no such folder"):
        pipe.load_ip_adapter(adapters / "nowhere", weight_name="plain.safetensors")
    assert pipe.spec == before


def test_calls_that_are_refused(checkpoint: Make, adapters: Path) -> None:
    bare = DiffusionPipeline.from_pretrained(checkpoint("words"))
    with pytest.raises(InputError, match="has no IP-Adapter. Load one"):
        bare(**GIVEN, ip_adapter_image=PICTURE)
    with pytest.raises(InputError, match="The scale 0.5 was set; the pipeline has no IP-Adapter"):
        bare.set_ip_adapter_scale(0.5)
    pipe = opened(checkpoint, adapters, "plain")
    embeds = np.zeros((2, 1, EMBED), np.float32)
    for inputs, said in (
        ({}, "has an IP-Adapter, and no image for it was given"),
        (
            {"ip_adapter_image": PICTURE, "ip_adapter_image_embeds": [embeds]},
            "ip_adapter_image and ip_adapter_image_embeds was given",
        ),
        ({"ip_adapter_image": [PICTURE, PICTURE]}, "has 2 entries; the pipeline has 1 IP-Adapters"),
        (
            {"ip_adapter_image_embeds": [embeds[:1]]},
            "an array of shape .1, 1, 16.; image_projection",
        ),
        (
            {"ip_adapter_image_embeds": [embeds[..., 1:]]},
            "of width 15; image_projection_0 takes 16",
        ),
        (
            {"ip_adapter_image": PICTURE, "cross_attention_kwargs": {"gain": 1}},
            "cross_attention_kwargs has gain; this task takes ip_adapter_masks",
        ),
        (
            {
                "ip_adapter_image": PICTURE,
                "cross_attention_kwargs": {"ip_adapter_masks": [np.ones((1, 2, 16, 16))]},
            },
            "the adapter has 1 images, and its masks are",
        ),
    ):
        with pytest.raises(InputError, match=said):
            pipe(**GIVEN, **inputs)
    with pytest.raises(InputError, match="the denoiser has down: block_0; up: block_0"):
        pipe.set_ip_adapter_scale({"down": {"block_7": 1.0}})
    with pytest.raises(InputError, match="has 1 numbers; the block has 2 attentions"):
        pipe.set_ip_adapter_scale({"up": {"block_0": [1.0]}})


def test_without_an_image_encoder(checkpoint: Make, adapters: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"))
    pipe.load_ip_adapter(adapters, weight_name="plain.safetensors", image_encoder_folder=None)
    assert pipe.image_encoder is None
    with pytest.raises(InputError, match="has no image encoder to look at it"):
        pipe(**GIVEN, ip_adapter_image=PICTURE)
    embeds = np.ones((2, 1, EMBED), np.float32)
    assert np.isfinite(pipe(**GIVEN, ip_adapter_image_embeds=[embeds]).images).all()


def test_the_plain_graph_stays_as_it_is(checkpoint: Make, adapters: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"))
    spec, before = pipe.spec, pipe.component("unet")
    pipe.load_ip_adapter(adapters, weight_name="plain.safetensors")
    loaded = pipe.component("unet")
    assert loaded.fingerprint != before.fingerprint
    pipe.set_ip_adapter_scale(0.5)  # no other graph
    assert pipe.component("unet").fingerprint == loaded.fingerprint
    pipe.unload_ip_adapter()
    assert pipe.spec == spec
    assert pipe.component("unet").fingerprint == before.fingerprint


def test_it_is_saved_without_the_adapter(checkpoint: Make, adapters: Path, tmp_path: Path) -> None:
    pipe = opened(checkpoint, adapters, "plain")
    drawn = pipe(**GIVEN, ip_adapter_image=PICTURE).images
    pipe.save_pretrained(tmp_path / "saved")
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert again.spec.options == DiffusionPipeline.from_pretrained(checkpoint("words")).spec.options
    again.load_ip_adapter(adapters, weight_name="plain.safetensors", image_encoder_folder=None)
    assert np.array_equal(again(**GIVEN, ip_adapter_image=PICTURE).images, drawn)


@pytest.mark.export
@pytest.mark.exhaustive
def test_on_another_engine(checkpoint: Make, adapters: Path) -> None:
    pytest.importorskip("onnxruntime")
    inputs: dict[str, Any] = {**GIVEN, "ip_adapter_image": [[PICTURE, PICTURE.rotate(90)]]}
    masks = {"ip_adapter_masks": [np.random.default_rng(0).random((1, 2, 16, 16), np.float32)]}
    drawn = []
    for backend in ("torch:cpu", "torch:cpu,unet=onnxruntime"):
        pipe = opened(checkpoint, adapters, "plus", backend=backend)
        latents = [pipe(**inputs).images, pipe(**inputs, cross_attention_kwargs=masks).images]
        pipe.set_ip_adapter_scale({"up": 0.7})
        drawn.append([np.asarray(one) for one in (*latents, pipe(**inputs).images)])
    for ours, expected in zip(*drawn, strict=True):
        assert np.abs(ours - expected).max() <= 1e-3
    assert len({array.tobytes() for array in drawn[0]}) == 3


def test_on_the_command_line(checkpoint: Make, adapters: Path) -> None:
    from click.testing import CliRunner

    from perfuse.cli import main

    PICTURE.save(adapters / "shown.png")
    drawn = adapters / "drawn.png"
    asked = ["generate", "a red circle", "--model", str(checkpoint("words")), "--steps", "2"]
    asked += ["--seed", "0", "--output", str(drawn)]
    asked += ["--ip-adapter", f"{adapters / 'plain.safetensors'}:0.4"]
    asked += ["--ip-adapter", str(adapters / "plus.safetensors")]
    shown = ["--ip-adapter-image", str(adapters / "shown.png")] * 2
    done = CliRunner().invoke(main, [*asked, *shown])
    assert done.exit_code == 0, done.stderr
    pipe = opened(checkpoint, adapters, "plain", "plus")
    pipe.set_ip_adapter_scale([0.4, 1.0])
    given = {**GIVEN, "output_type": "pil", "ip_adapter_image": [PICTURE, PICTURE]}
    assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(pipe(**given).images[0]))
    wrong = CliRunner().invoke(main, [*asked[:-4], "--ip-adapter", "a.safetensors:much"])
    assert wrong.exit_code == 2 and "--ip-adapter 'a.safetensors:much' was given" in wrong.stderr
