"""IP-Adapters of FLUX.1, Chroma and Stable Diffusion 3 against Diffusers': small random ones, same seed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import perfuse
from perfuse import DiffusionPipeline
from perfuse.arrays.image_processor import ImageProcessor
from perfuse.models import SiglipVisionModel
from perfuse_conformance.checkpoints import (
    EMBED,
    STATES,
    write_flux_adapter,
    write_image_encoder,
    write_sd3_adapter,
    write_siglip_encoder,
)

Make = Callable[[str], Path]
TOLERANCE = 1e-4
FLUX, SD3 = ("flux", "chroma"), ("sd3", "sd3-without-t5")

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Make) -> Path:
    """Two adapters for each model, with an image encoder."""
    made = tmp_path_factory.mktemp("adapters")
    for kind in (*FLUX, *SD3):
        config = json.loads((checkpoint(kind) / "transformer" / "config.json").read_text())
        for seed in range(2):
            file = made / kind / f"{seed}.safetensors"
            if kind in FLUX:
                write_flux_adapter(file, config, seed, xlabs=seed == 0)
            else:
                write_sd3_adapter(file, config, seed)
        (write_image_encoder if kind in FLUX else write_siglip_encoder)(made / kind / "encoder")
    return made


def picture(seed: int, size: tuple[int, int] = (30, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


class Both:
    """Our pipeline and Diffusers' of the same checkpoint, each with the same adapters."""

    def __init__(
        self, model: Path, folder: Path, adapters: int = 1, name: str = "DiffusionPipeline"
    ) -> None:
        without = {"text_encoder_3": None, "tokenizer_3": None} if "t5" in folder.name else {}
        self.theirs = getattr(diffusers, name).from_pretrained(model, **without)
        self.theirs.set_progress_bar_config(disable=True)
        self.ours = getattr(perfuse, name).from_pretrained(model, backend="torch:cpu")
        encoder = folder / "encoder"
        names: dict[str, Any] = {"weight_name": [f"{i}.safetensors" for i in range(adapters)]}
        if folder.name in FLUX:
            names["image_encoder_pretrained_model_name_or_path"] = str(encoder)
            names["image_encoder_dtype"] = torch.float32
        else:  # of a folder Diffusers reads the encoder from where the process runs
            (names["weight_name"],) = names["weight_name"]
            self.theirs.image_encoder = transformers.SiglipVisionModel.from_pretrained(encoder)
            self.theirs.feature_extractor = SiglipImageProcessorPil.from_pretrained(encoder)
            self.ours.image_encoder = SiglipVisionModel.from_pretrained(encoder)
            self.ours.feature_extractor = SiglipImageProcessorPil.from_pretrained(encoder)
        for pipe in (self.ours, self.theirs):
            pipe.load_ip_adapter(str(folder), **names)

    def scale(self, scale: Any) -> None:
        for pipe in (self.ours, self.theirs):
            pipe.set_ip_adapter_scale(scale)

    def check(self, **inputs: Any) -> Any:
        """The latents agree; return ours."""
        given: dict[str, Any] = {
            "prompt": "a red circle",
            "num_inference_steps": 2,
            "output_type": "latent",
            "height": 32,
            "width": 48,
        }
        given |= inputs
        ours = np.asarray(self.ours(**given, seed=0).images)
        theirs = self.theirs(**given, generator=torch.Generator().manual_seed(0)).images.numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= TOLERANCE * max(1, np.abs(theirs).max())
        return ours


def differ(arrays: Sequence[Any]) -> bool:
    """Whether each two of these arrays differ by more than rounding."""
    pairs = ((a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    return all(np.abs(a - b).max() > 1e-3 for a, b in pairs)


#: What guides by a negative prompt.
GUIDED = {
    "flux": {"negative_prompt": "blue", "true_cfg_scale": 2.0},
    "chroma": {"negative_prompt": "blue"},
    "sd3": {"negative_prompt": "blue"},
    "sd3-without-t5": {},
}


@pytest.mark.parametrize("model", ["flux", "chroma", "sd3", "sd3-without-t5"])
def test_one_image(checkpoint: Make, folder: Path, model: str) -> None:
    both = Both(checkpoint(model), folder / model)
    full = both.check(ip_adapter_image=picture(0), **GUIDED[model])
    plain = {} if model == "flux" else {"guidance_scale": 1.0}
    alone = both.check(ip_adapter_image=picture(0), num_images_per_prompt=2, **plain)
    both.scale(0.3)
    weaker = both.check(ip_adapter_image=picture(0), **GUIDED[model])
    other = both.check(ip_adapter_image=picture(1), **GUIDED[model])
    assert differ((full, alone[:1], weaker, other))
    assert both.ours.is_ip_adapter_active
    both.ours.unload_ip_adapter()
    assert not both.ours.is_ip_adapter_active and both.ours.image_encoder is None
    bare = DiffusionPipeline.from_pretrained(checkpoint(model), backend="torch:cpu")
    given = {"num_inference_steps": 2, "output_type": "latent", "seed": 0}
    drawn = [pipe("a red circle", **given).images for pipe in (bare, both.ours)]
    assert np.array_equal(*drawn)


@pytest.mark.parametrize("model", ["flux", "chroma"])
def test_several_with_scales_by_block(checkpoint: Make, folder: Path, model: str) -> None:
    both = Both(checkpoint(model), folder / model, adapters=2)
    images = [[picture(0), picture(1)], picture(2)]
    equal = both.check(ip_adapter_image=images, **GUIDED[model])
    both.scale([0.5, 0.9])
    numbers = both.check(ip_adapter_image=images, **GUIDED[model])
    both.scale([[0.2, 0.8], 0.6])
    lists = both.check(ip_adapter_image=images, **GUIDED[model])
    assert differ((equal, numbers, lists))


@pytest.mark.parametrize("model", ["flux", "chroma"])
def test_what_not_to_draw_like(checkpoint: Make, folder: Path, model: str) -> None:
    both = Both(checkpoint(model), folder / model)
    both.scale([0.9, 0.4])
    usual = both.check(ip_adapter_image=picture(0), **GUIDED[model])
    away = both.check(
        ip_adapter_image=picture(0), negative_ip_adapter_image=picture(1), **GUIDED[model]
    )
    only = both.check(negative_ip_adapter_image=picture(1), **GUIDED[model])
    embeds = torch.randn(2, 1, 3, EMBED, generator=torch.Generator().manual_seed(0))
    given = both.check(
        ip_adapter_image_embeds=[embeds[0]],
        negative_ip_adapter_image_embeds=[embeds[1]],
        num_images_per_prompt=2,
        **GUIDED[model],
    )
    assert differ((usual, away, only, given[:1]))


@pytest.mark.parametrize("model", ["sd3"])
def test_given_states(checkpoint: Make, folder: Path, model: str) -> None:
    both = Both(checkpoint(model), folder / model)
    states = torch.randn(2, 7, STATES, generator=torch.Generator().manual_seed(0))
    guided = both.check(ip_adapter_image_embeds=states, num_images_per_prompt=2)
    alone = both.check(ip_adapter_image_embeds=states[1:], guidance_scale=1.0)
    assert differ((guided[:1], alone))


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_image_prompts_that_end_early(checkpoint: Make, folder: Path, model: str) -> None:
    from perfuse.callbacks import IPAdapterScaleCutoffCallback

    both = Both(checkpoint(model), folder / model)
    whole = both.check(ip_adapter_image=picture(0))
    early = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    ended = both.check(ip_adapter_image=picture(0), callback_on_step_end=early)
    assert differ((whole, ended))


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_with_a_lora(checkpoint: Make, folder: Path, model: str) -> None:
    both = Both(checkpoint(model), folder / model)
    plain = both.check(ip_adapter_image=picture(0))
    name = "transformer_blocks.1.attn.to_q"
    width = both.theirs.transformer.get_submodule(name).weight.shape[1]
    generator = torch.Generator().manual_seed(1)
    state = {
        f"transformer.{name}.lora_{factor}.weight": torch.randn(*shape, generator=generator)
        for factor, shape in {"A": (4, width), "B": (width, 4)}.items()
    }
    for pipe in (both.ours, both.theirs):
        pipe.load_lora_weights(dict(state), adapter_name="one")
    assert differ((plain, both.check(ip_adapter_image=picture(0))))


@pytest.mark.parametrize("model", ["flux", "sd3"])
def test_in_bfloat16(checkpoint: Make, folder: Path, model: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint(model), torch_dtype=torch.bfloat16)
    encoder, name = str(folder / model / "encoder"), "image_encoder_pretrained_model_name_or_path"
    pipe.load_ip_adapter(folder / model, "0.safetensors", **{name: encoder})
    given: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "seed": 0}
    narrow = pipe("red", ip_adapter_image=picture(0), height=32, width=32, **given).images
    both = Both(checkpoint(model), folder / model)
    wide = both.check(prompt="red", ip_adapter_image=picture(0), width=32)
    assert np.abs(np.asarray(narrow.float()) - wide).max() <= 0.05 * np.abs(wide).max()


PICTURES = [
    ("flux", "FluxImg2ImgPipeline", ("image",)),
    ("flux", "FluxInpaintPipeline", ("image", "mask_image")),
    ("flux-kontext", "FluxKontextPipeline", ("image",)),
    ("chroma", "ChromaImg2ImgPipeline", ("image",)),
    ("sd3", "StableDiffusion3Img2ImgPipeline", ("image",)),
    ("sd3", "StableDiffusion3InpaintPipeline", ("image", "mask_image")),
]


@pytest.mark.parametrize(("model", "name", "given"), PICTURES)
def test_from_pictures(
    checkpoint: Make, folder: Path, model: str, name: str, given: tuple[str, ...]
) -> None:
    of = model.removesuffix("-kontext")
    both = Both(checkpoint(model), folder / of, name=name)
    inputs: dict[str, Any] = {one: picture(3, (32, 48)) for one in given}
    if name == "FluxKontextPipeline":
        inputs |= {"max_area": 32 * 48, "_auto_resize": False}
    else:
        inputs["strength"] = 1.0
    drawn = [both.check(ip_adapter_image=picture(seed), **inputs) for seed in (0, 1)]
    assert differ(drawn)


def test_siglip(tmp_path: Path) -> None:
    """The encoder and what makes pictures ready for it, from its own file and from that of a whole SigLIP."""
    write_siglip_encoder(tmp_path)
    theirs = transformers.SiglipVisionModel.from_pretrained(tmp_path)
    processor = SiglipImageProcessorPil.from_pretrained(tmp_path)
    shown = [picture(0), picture(1)]
    pixels = processor(shown, return_tensors="pt").pixel_values
    mine = ImageProcessor.from_config(processor.to_dict())
    assert np.abs(mine(shown).pixel_values - pixels.numpy()).max() <= 1e-5
    assert ImageProcessor.from_config(mine.to_dict()) == mine
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    small = {"hidden_size": STATES, "num_attention_heads": 4, "num_hidden_layers": 1}
    whole = transformers.SiglipModel(
        transformers.SiglipConfig(
            vision_config=theirs.config.to_dict(),
            text_config={**small, "intermediate_size": 48, "vocab_size": 20},
        )
    )
    whole.vision_model.load_state_dict(theirs.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "again")
    for place in (tmp_path, tmp_path / "whole", tmp_path / "again"):
        ours = SiglipVisionModel.from_pretrained(place)
        with torch.no_grad():
            assert (ours(pixels)[0] - expected).abs().max() <= 1e-5
    ours.save_pretrained(tmp_path / "ours")
    back = transformers.SiglipVisionModel.from_pretrained(tmp_path / "ours")
    assert (back(pixels).pooler_output - theirs(pixels).pooler_output).abs().max() <= 1e-5
