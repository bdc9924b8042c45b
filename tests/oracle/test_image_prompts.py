"""IP-Adapters against Diffusers': small random ones of each kind, same seed, torch on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")


from perfuse import DiffusionPipeline
from perfuse.arrays.resize import bicubic
from perfuse.models.ip_adapter.cross_attentions import cross_attentions
from perfuse_conformance.checkpoints import EMBED, write_adapter, write_image_encoder

Make = Callable[[str], Path]
TOLERANCE = 1e-4

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Make) -> Path:
    """Adapters of each kind for SD and SDXL, with an image encoder."""
    made = tmp_path_factory.mktemp("adapters")
    for kind in ("sd1", "sdxl"):
        unet = json.loads((checkpoint(kind) / "unet" / "config.json").read_text())
        for seed, of in enumerate(("plain", "face", "full", "plus")):
            write_adapter(made / kind / f"{of}.safetensors", of, unet, seed)
        write_image_encoder(made / kind / "image_encoder")
    return made


def picture(seed: int, size: tuple[int, int] = (30, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


class Both:
    """Our pipeline and Diffusers' of the same checkpoint, each with the same adapters."""

    def __init__(self, model: Path, folder: Path, *names: str, scheduler: Any = None) -> None:
        self.theirs = diffusers.DiffusionPipeline.from_pretrained(
            model, **({"add_watermarker": False} if "xl" in folder.name else {})
        )
        self.theirs.set_progress_bar_config(disable=True)
        self.ours = DiffusionPipeline.from_pretrained(model, backend="torch:cpu")
        for pipe in (self.ours, self.theirs):
            pipe.load_ip_adapter(
                str(folder.parent),
                subfolder=folder.name,
                weight_name=[f"{name}.safetensors" for name in names],
            )

    def check(self, **inputs: Any) -> Any:
        """The latents agree; return ours."""
        given: dict[str, Any] = {
            "prompt": "a red circle",
            "num_inference_steps": 2,
            "output_type": "latent",
        }
        given |= inputs
        ours = self.ours(**given, seed=0).images
        theirs = self.theirs(**given, generator=torch.Generator().manual_seed(0)).images.numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= TOLERANCE * max(1, np.abs(theirs).max())
        return ours


@pytest.mark.parametrize("model", ["sd1", "sdxl"])
@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_one_image(checkpoint: Make, folder: Path, model: str, kind: str) -> None:
    both = Both(checkpoint(model), folder / model, kind)
    full = both.check(ip_adapter_image=picture(0), num_images_per_prompt=2)
    for pipe in (both.ours, both.theirs):
        pipe.set_ip_adapter_scale(0.3)
    weaker = both.check(ip_adapter_image=picture(0), num_images_per_prompt=2)
    assert np.abs(full - weaker).max() > 0.01
    # Of several images of one adapter the tokens stand beside each other.
    both.check(ip_adapter_image=[[picture(0), picture(1)]], guidance_scale=1.0)
    bare = DiffusionPipeline.from_pretrained(checkpoint(model), backend="torch:cpu")
    before = bare("a red circle", num_inference_steps=2, output_type="latent", seed=0).images
    both.ours.unload_ip_adapter()
    after = both.ours("a red circle", num_inference_steps=2, output_type="latent", seed=0).images
    assert np.array_equal(before, after)


def test_several_with_scales_and_masks(checkpoint: Make, folder: Path) -> None:
    both = Both(checkpoint("sd1"), folder / "sd1", "plain", "full")
    images = [[picture(0), picture(1)], picture(2)]
    blocks = {"down": {"block_0": [0.7]}, "up": {"block_1": [0.0, 0.9]}}
    for pipe in (both.ours, both.theirs):
        pipe.set_ip_adapter_scale([0.5, blocks])
    unmasked = both.check(ip_adapter_image=images)
    masks = np.zeros((3, 16, 16), np.float32)
    masks[0, :, :8] = masks[1, :, 8:] = masks[2, 4:12] = 1
    given = [torch.from_numpy(masks[None, :2]), torch.from_numpy(masks[None, 2:])]
    for pipe in (both.ours, both.theirs):
        pipe.set_ip_adapter_scale([[0.5, 0.8], 0.6])
    masked = both.check(ip_adapter_image=images, cross_attention_kwargs={"ip_adapter_masks": given})
    assert np.abs(masked - unmasked).max() > 0.01
    # Another size, whose masks are a little too high.
    tall = torch.rand(1, 2, 26, 16, generator=torch.Generator().manual_seed(0))
    both.check(
        ip_adapter_image=images,
        cross_attention_kwargs={"ip_adapter_masks": [tall, torch.from_numpy(masks[None, 2:])]},
        height=24,
        width=16,
    )


def test_image_prompts_that_end_early(checkpoint: Make, folder: Path) -> None:
    from perfuse.callbacks import IPAdapterScaleCutoffCallback

    both = Both(checkpoint("sd1"), folder / "sd1", "plain")
    whole = both.check(ip_adapter_image=picture(0))
    early = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    ended = both.check(ip_adapter_image=picture(0), callback_on_step_end=early)
    assert np.abs(whole - ended).max() > 1e-3


def test_given_embeddings(checkpoint: Make, folder: Path) -> None:
    both = Both(checkpoint("sd1"), folder / "sd1", "face")
    embeds = torch.randn(2, 3, EMBED, generator=torch.Generator().manual_seed(0))
    both.check(ip_adapter_image_embeds=[embeds])
    both.check(ip_adapter_image_embeds=[embeds[1:]], guidance_scale=1.0)


@pytest.mark.parametrize(
    "config",
    [
        {"layers_per_block": [2, 1]},
        {"transformer_layers_per_block": [1, 2], "mid_block_type": "UNetMidBlock2D"},
        {
            "transformer_layers_per_block": [[1, 2], 1],
            "reverse_transformer_layers_per_block": [1, [2, 1, 3]],
            "layers_per_block": 2,
        },
    ],
)
def test_the_order_of_cross_attentions(config: dict[str, Any]) -> None:
    from perfuse_conformance.checkpoints import unet_config

    whole = unet_config(
        down_block_types=["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2
    )
    unet = diffusers.UNet2DConditionModel(**{**whole, **config})
    theirs = [name for name in unet.attn_processors if "attn2" in name]
    parts = {"down": "down_blocks.{}.", "up": "up_blocks.{}.", "mid": "mid_block."}
    ours = [
        f"{parts[one.part].format(one.block)}attentions.{one.attention}"
        f".transformer_blocks.{one.layer}.attn2.processor"
        for one in cross_attentions(unet.config)
    ]
    assert ours == theirs


@pytest.mark.parametrize("size", [(5, 7), (16, 16), (33, 12)])
def test_bicubic(size: tuple[int, int]) -> None:
    array = torch.rand(2, 16, 20, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.functional.interpolate(array[None], size=size, mode="bicubic")[0]
    assert np.abs(bicubic(array.numpy(), *size) - theirs.numpy()).max() <= 1e-5
