"""Image prompts of FLUX.1, Chroma and Stable Diffusion 3: what is refused, other engines, exports."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfuse import DiffusionPipeline
from perfuse.errors import CheckpointError, InputError, WeightsError
from perfuse_conformance.checkpoints import (
    EMBED,
    STATES,
    write_adapter,
    write_flux_adapter,
    write_image_encoder,
    write_sd3_adapter,
    write_siglip_encoder,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from perfuse.capture import build, capture, example_inputs

Make = Callable[[str], Path]
GIVEN: dict[str, Any] = {
    "prompt": "a red circle",
    "num_inference_steps": 2,
    "seed": 0,
    "height": 32,
    "width": 48,
    "output_type": "latent",
}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
EMBEDS = np.zeros((1, 1, EMBED), np.float32)


def config(model: Path) -> Any:
    return json.loads((model / "transformer" / "config.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Make) -> Path:
    """An adapter for each family beside its image encoder, and some that do not fit."""
    made = tmp_path_factory.mktemp("adapters")
    flux = config(checkpoint("flux"))
    for kind in ("flux", "chroma"):
        write_flux_adapter(made / kind / "own.safetensors", config(checkpoint(kind)))
        write_image_encoder(made / kind / "image_encoder")
    write_sd3_adapter(made / "sd3" / "ip-adapter.safetensors", config(checkpoint("sd3")))
    write_siglip_encoder(made / "sd3" / "image_encoder")
    write_flux_adapter(made / "flux" / "deep.safetensors", {**flux, "num_layers": 3})
    unet = json.loads((checkpoint("words") / "unet" / "config.json").read_text())
    write_adapter(made / "flux" / "unet.safetensors", "plus", unet)
    write_adapter(made / "sd3" / "unet.safetensors", "plain", unet)
    return made


def opened(checkpoint: Make, folder: Path, kind: str, **settings: Any) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), **settings)
    named = {} if kind == "sd3" else {"weight_name": "own.safetensors"}
    pipe.load_ip_adapter(folder / kind, **named)
    return pipe


def test_files_that_are_refused(checkpoint: Make, folder: Path) -> None:
    flux = DiffusionPipeline.from_pretrained(checkpoint("flux"))
    sd3 = DiffusionPipeline.from_pretrained(checkpoint("sd3"))
    before = flux.spec, sd3.spec
    for pipe, name, said in (
        (flux, "flux/unet.safetensors", "its projection is Plus, and transformer takes plain"),
        (flux, "flux/deep.safetensors", "has 3 attentions .* and transformer has 2 of width 32"),
        (flux, "sd3/ip-adapter.safetensors", "is a resampler that is told the timestep"),
        (sd3, "sd3/unet.safetensors", "takes a resampler that is told the timestep"),
        (sd3, "flux/own.safetensors", "its projection is plain"),
    ):
        with pytest.raises(InputError, match=said):
            pipe.load_ip_adapter(folder, weight_name=name)
    with pytest.raises(InputError, match="2 IP-Adapters were to be loaded; this family takes 1"):
        sd3.load_ip_adapter(folder / "sd3", ["ip-adapter.safetensors"] * 2)
    with pytest.raises(InputError, match="was to be loaded from a dict. Name its folder"):
        flux.load_ip_adapter({"image_proj": {}, "ip_adapter": {}}, weight_name="own")
    with pytest.raises(InputError, match="load_ip_adapter was given much, which it lacks"):
        flux.load_ip_adapter(folder / "flux", "own.safetensors", much=1)
    with pytest.raises(WeightsError, match="there is no such file"):
        flux.load_ip_adapter(folder / "flux", "none.safetensors")
    with pytest.raises(CheckpointError):
        flux.load_ip_adapter(folder / "flux", "own.safetensors", "", folder / "nowhere")
    with pytest.raises(InputError, match="5 names were given by position after the model"):
        flux.load_ip_adapter(folder / "flux", *"abcde")
    assert (flux.spec, sd3.spec) == before
    other = DiffusionPipeline.from_pretrained(checkpoint("z-image"))
    with pytest.raises(InputError, match="for which there are none"):
        other.load_ip_adapter(folder / "flux", "own.safetensors")


def test_calls_that_are_refused(checkpoint: Make, folder: Path) -> None:
    for kind in ("flux", "sd3"):
        bare = DiffusionPipeline.from_pretrained(checkpoint(kind))
        with pytest.raises(InputError, match="has no IP-Adapter. Load one"):
            bare(**GIVEN, ip_adapter_image=PICTURE)
        pipe = opened(checkpoint, folder, kind)
        with pytest.raises(InputError, match="has an IP-Adapter, and no image for it was given"):
            pipe(**GIVEN)
        with pytest.raises(
            InputError, match="ip_adapter_image and ip_adapter_image_embeds was giv"
        ):
            pipe(**GIVEN, ip_adapter_image=PICTURE, ip_adapter_image_embeds=EMBEDS)
        with pytest.raises(InputError, match="has an array of shape .1, 16."):
            pipe(**GIVEN, ip_adapter_image_embeds=EMBEDS[0])
        with pytest.raises(InputError, match="a number, a list or a dict; got 'much'"):
            pipe.set_ip_adapter_scale("much")
    states = np.zeros((3, 5, STATES), np.float32)
    with pytest.raises(InputError, match="takes .2, states, width., those of no image first"):
        pipe(**GIVEN, ip_adapter_image_embeds=states)
    with pytest.raises(InputError, match="of width 31; the adapter takes 32"):
        pipe(**GIVEN, ip_adapter_image_embeds=states[:2, :, 1:])
    with pytest.raises(
        InputError, match="Image prompts for 2 pictures were given, and 1 are drawn"
    ):
        pipe(**GIVEN, ip_adapter_image=[PICTURE, PICTURE])
    with pytest.raises(InputError, match="Stable Diffusion 3 has one scale"):
        pipe.set_ip_adapter_scale([0.5])
    pipe = opened(checkpoint, folder, "flux")
    with pytest.raises(InputError, match="has 3 numbers; the denoiser has 2 blocks that look"):
        pipe.set_ip_adapter_scale([0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="2 scales were given; the pipeline has 1 IP-Adapters"):
        pipe.set_ip_adapter_scale([[0.1, 0.2], 0.3])
    with pytest.raises(InputError, match="has 2 entries; the pipeline has 1 IP-Adapters"):
        pipe(**GIVEN, ip_adapter_image=[PICTURE, PICTURE])
    with pytest.raises(InputError, match="gives no image_embeds. Use the image encoder"):
        from perfuse.models import SiglipVisionModel

        pipe.image_encoder = SiglipVisionModel.from_pretrained(folder / "sd3" / "image_encoder")
        pipe(**GIVEN, ip_adapter_image=PICTURE)


def test_the_plain_graph_stays_as_it_is(checkpoint: Make, folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("flux"))
    spec, before = pipe.spec, pipe.component("transformer")
    pipe.load_ip_adapter(folder / "flux", "own.safetensors")
    loaded = pipe.component("transformer")
    assert loaded.fingerprint != before.fingerprint
    pipe.set_ip_adapter_scale([0.5, 0.2])  # no other graph
    assert pipe.component("transformer").fingerprint == loaded.fingerprint
    pipe.unload_ip_adapter()
    assert pipe.spec == spec
    assert pipe.component("transformer").fingerprint == before.fingerprint


def test_with_what_else_rewrites_a_transformer(checkpoint: Make, folder: Path) -> None:
    """Blocks that are left out, for speed and for guidance, leave the images in the others."""
    always = opened(checkpoint, folder, "flux")(**GIVEN, ip_adapter_image=PICTURE).images
    cached = opened(checkpoint, folder, "flux", transforms=["first-block:threshold=1e-9"])
    assert np.allclose(cached(**GIVEN, ip_adapter_image=PICTURE).images, always, atol=1e-5)
    pipe = opened(checkpoint, folder, "flux", transforms=["pab"])
    with pytest.raises(InputError, match="also look at the images of an IP-Adapter"):
        pipe(**GIVEN, ip_adapter_image=PICTURE)
    pipe = opened(checkpoint, folder, "sd3")
    given = {**GIVEN, "ip_adapter_image": PICTURE, "skip_layer_guidance_stop": 1.0}
    drawn = [np.asarray(pipe(**given, skip_guidance_layers=one).images) for one in (None, [1])]
    pipe.set_ip_adapter_scale(0.0)
    drawn.append(np.asarray(pipe(**given, skip_guidance_layers=[1]).images))
    assert all(np.abs(a - b).max() > 1e-3 for a, b in pairwise(drawn))


ENGINES = ["onnxruntime", "openvino"]


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["flux", "chroma", "sd3"])
def test_on_another_engine(checkpoint: Make, folder: Path, kind: str, engine: str) -> None:
    pytest.importorskip(engine)
    images = PICTURE if kind == "sd3" else [[PICTURE, PICTURE.rotate(90)]]
    drawn = []
    for backend in ("torch:cpu", engine):
        pipe = opened(checkpoint, folder, kind, backend=backend)
        latents = [pipe(**GIVEN, ip_adapter_image=images).images]
        pipe.set_ip_adapter_scale(0.1)
        latents.append(pipe(**{**GIVEN, "height": 48}, ip_adapter_image=PICTURE).images)
        drawn.append([np.asarray(one) for one in latents])
        pipe.close()
    for ours, expected in zip(*drawn, strict=True):
        assert np.abs(ours - expected).max() <= 1e-3 * max(1, np.abs(expected).max())


@pytest.mark.export
@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_a_captured_graph(checkpoint: Make, folder: Path, kind: str) -> None:
    """It takes other numbers of tokens of images than it was captured with."""
    component = opened(checkpoint, folder, kind).component("transformer")
    module, graph = build(component), capture(component).module()
    example = example_inputs(component, torch.float32)
    at = component.spec.signature.input_names.index(
        "ip_tokens_0" if kind == "flux" else "ip_states_0"
    )
    for length in (4, 9):
        given = [*example[:at], example[at][:, :length], *example[at + 1 :]]
        with torch.no_grad():
            assert torch.allclose(graph(*given)[0], module(*given)[0], atol=1e-4)


@pytest.mark.export
@pytest.mark.exhaustive
def test_an_export(checkpoint: Make, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pipe = opened(checkpoint, folder, "sd3", backend="torch:cpu")
    pipe.set_ip_adapter_scale(0.7)
    pipe.export(tmp_path / "exported", to="onnx")
    again = DiffusionPipeline.from_pretrained(tmp_path / "exported")
    drawn = [np.asarray(one(**GIVEN, ip_adapter_image=PICTURE).images) for one in (pipe, again)]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1e-3 * max(1, np.abs(drawn[0]).max())


def test_on_the_command_line(checkpoint: Make, folder: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from perfuse.cli import main

    PICTURE.save(tmp_path / "shown.png")
    drawn = tmp_path / "drawn.png"
    asked = ["generate", "a red circle", "--model", str(checkpoint("flux")), "--steps", "2"]
    asked += ["--height", "32", "--width", "48", "--seed", "0", "--output", str(drawn)]
    asked += ["--negative-prompt", "blue", "--true-cfg", "2"]
    asked += ["--ip-adapter", f"{folder / 'flux' / 'own.safetensors'}:0.4"]
    asked += ["--ip-adapter-image", str(tmp_path / "shown.png")]
    done = CliRunner().invoke(
        main, [*asked, "--negative-ip-adapter-image", str(tmp_path / "shown.png")]
    )
    assert done.exit_code == 0, done.stderr
    pipe = opened(checkpoint, folder, "flux")
    pipe.set_ip_adapter_scale(0.4)
    given = {**GIVEN, "output_type": "pil", "negative_prompt": "blue", "true_cfg_scale": 2.0}
    both = {"ip_adapter_image": PICTURE, "negative_ip_adapter_image": PICTURE}
    expected = pipe(**given, **both).images[0]
    assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(expected))


def test_a_pipeline_with_an_image_encoder_is_saved(
    checkpoint: Make, folder: Path, tmp_path: Path
) -> None:
    without = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = opened(checkpoint, folder, "sd3", **without)
    drawn = pipe(**GIVEN, ip_adapter_image=PICTURE).images
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["feature_extractor"] == ["transformers", "SiglipImageProcessor"]
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    again.load_ip_adapter(folder / "sd3", image_encoder_folder="nowhere")
    assert np.array_equal(again(**GIVEN, ip_adapter_image=PICTURE).images, drawn)
