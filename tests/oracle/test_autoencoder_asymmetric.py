"""The asymmetric autoencoder against Diffusers': outputs, files, and in the place of a pipeline's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.oracle.pairs import Pair, make_gentle

from perfuse import DiffusionPipeline
from perfuse.capture import build, capture
from perfuse.errors import CheckpointError, InputError
from perfuse.models import AsymmetricAutoencoderKL
from perfuse.tasks.tiling import in_pieces
from perfuse_conformance.checkpoints import edit_json, randomise

Make = Callable[[str], Path]

SMALL: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "down_block_out_channels": [8, 16],
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "up_block_out_channels": [12, 24],
    "layers_per_up_block": 2,
    "norm_num_groups": 4,
}


def picture(*size: int) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def mask(*size: int) -> torch.Tensor:
    return (torch.rand(*size, generator=torch.Generator().manual_seed(1)) > 0.5).float()


@pytest.mark.parametrize(("widths", "size"), [([12, 24], (8, 12)), ([8, 16, 32, 32], (16, 24))])
@torch.no_grad()
def test_outputs_and_names(widths: list[int], size: tuple[int, int], tmp_path: Path) -> None:
    fields = {**SMALL, "up_block_out_channels": widths}
    for half, block in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        fields[f"{half}_block_types"] = [block] * len(widths)
    fields["down_block_out_channels"] = [8] * len(widths)
    theirs = randomise(diffusers.AsymmetricAutoencoderKL(**fields), seed=1)
    theirs.save_pretrained(tmp_path)
    ours = AsymmetricAutoencoderKL.from_pretrained(tmp_path).eval()
    image = picture(2, 3, *size)
    latents = theirs.encode(image).latent_dist.mean
    assert (ours.encode(image).latent_dist.mean - latents).abs().max() < 1e-5
    for more in ({}, {"image": image, "mask": mask(2, 1, *size)}):
        wanted = theirs.decode(latents, **more).sample
        torch.testing.assert_close(ours.decode(latents, **more).sample, wanted, rtol=0, atol=1e-5)
    torch.manual_seed(0)
    one = diffusers.AsymmetricAutoencoderKL(**fields).state_dict()
    torch.manual_seed(0)
    other = AsymmetricAutoencoderKL(**fields).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def with_asymmetric(folder: Path) -> Path:
    vae = AsymmetricAutoencoderKL(**SMALL, sample_size=16)
    randomise(vae, 1).save_pretrained(folder / "vae")
    edit_json(folder / "model_index.json", vae=["diffusers", "AsymmetricAutoencoderKL"])
    return make_gentle(folder)


def smooth(*size: int) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def half() -> Image.Image:
    found = Image.new("L", (16, 24), 0)
    found.paste(255, (8, 4, 14, 16))
    return found


def test_in_a_pipeline(copy_of: Make) -> None:
    folder = with_asymmetric(copy_of("words"))
    pair = Pair.open(folder, "StableDiffusionPipeline")
    plain = pair.check_pictures(3, prompt="a circle", height=16, width=24)
    assert plain.shape == (1, 16, 24, 3)
    inpaint = pair.like("StableDiffusionInpaintPipeline")
    given: dict[str, Any] = {"image": smooth(16, 24), "mask_image": half(), "strength": 0.75}
    given |= {"height": 24, "width": 16}
    inpaint.check_pictures(3, prompt="a circle", **given)
    whole = {"image": smooth(32, 48), "mask_image": half().resize((32, 48)), "strength": 1.0}
    inpaint.check_pictures(3, prompt="a circle", **whole, height=16, width=16, padding_mask_crop=2)
    drawn = [inpaint.ours(["a"] * 2, **given, num_inference_steps=2, seed=1).images]
    inpaint.ours.vae_slicing = True  # what is kept goes with each picture
    drawn.append(inpaint.ours(["a"] * 2, **given, num_inference_steps=2, seed=1).images)
    assert all(np.array_equal(a, b) for a, b in zip(*drawn, strict=True))
    with pytest.raises(InputError, match="decodes beside the picture that is kept"):
        latents = torch.zeros(1, 4, 8, 8)
        inpaint.ours("a", image=latents, mask_image=half(), height=16, width=16)


def test_a_model_set_on_a_pipeline(copy_of: Make) -> None:
    pair = Pair.open(make_gentle(copy_of("words")), "StableDiffusionInpaintPipeline")
    theirs = randomise(diffusers.AsymmetricAutoencoderKL(**SMALL), seed=2)
    pair.ours.vae = pair.theirs.vae = theirs
    given = {"image": smooth(16, 16), "mask_image": half().resize((16, 16))}
    pair.check_pictures(3, prompt="a circle", **given, height=16, width=16)


def test_a_tile_sees_its_part_of_what_is_kept(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    pipe.vae_tiling = True
    random = np.random.default_rng(0)
    latents, image = random.random((1, 1, 20, 28)), random.random((1, 1, 40, 56))

    def run(small: np.ndarray, large: np.ndarray) -> np.ndarray:
        return small.repeat(2, axis=2).repeat(2, axis=3) + large

    tools: Any = pipe
    tiles = in_pieces(tools, run, latents, tile=8, into=16, beside=(image,))
    assert np.abs(tiles - run(latents, image)).max() < 1e-6


@torch.no_grad()
def test_a_captured_decoder_takes_any_size(copy_of: Make) -> None:
    folder = with_asymmetric(copy_of("words"))
    pipe = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    decoder = pipe.component("vae_decoder")
    assert decoder.spec.signature.dims == ("batch", "latent_height", "latent_width")
    given = (picture(1, 4, 64, 72), picture(1, 3, 128, 144), mask(1, 1, 128, 144))
    (wanted,) = build(decoder)(*given)
    (found,) = capture(decoder).module()(*given)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("format", "backend"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_an_export_draws_as_its_checkpoint(
    copy_of: Make, tmp_path: Path, format: str, backend: str
) -> None:
    pytest.importorskip(backend)
    pipe = DiffusionPipeline.from_pretrained(with_asymmetric(copy_of("words")), backend="torch:cpu")
    pipe.export(tmp_path / "exported", to=format)
    other = DiffusionPipeline.from_pretrained(tmp_path / "exported")
    given: dict[str, Any] = {"num_inference_steps": 3, "seed": 3, "height": 24, "width": 16}
    for more in ({}, {"image": smooth(16, 24), "mask_image": half(), "strength": 0.75}):
        a, b = (
            np.asarray(one("red", **given, **more).images[0]).astype(int) for one in (pipe, other)
        )
        assert a.std() > 5
        assert np.abs(a - b).max() <= 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no 64 channels at 1/1"):
        AsymmetricAutoencoderKL(**{**SMALL, "up_block_out_channels": [16, 64]})
    with pytest.raises(CheckpointError, match="encoder has 1 blocks and the decoder 2"):
        AsymmetricAutoencoderKL(**{**SMALL, "down_block_out_channels": [8]})


def test_a_diffusion_decoder_is_left_out(copy_of: Make) -> None:
    folder = copy_of("words")
    edit_json(folder / "model_index.json", vae=["diffusers", "ConsistencyDecoderVAE"])
    edit_json(folder / "vae" / "config.json", _class_name="ConsistencyDecoderVAE")
    with pytest.raises(CheckpointError, match="ConsistencyDecoderVAE, which perfuse leaves out"):
        DiffusionPipeline.from_pretrained(folder)
