"""Single-file checkpoints against Diffusers' own converters and its ``from_single_file``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.single_files import (
    KINDS,
    make_folder,
    open_clip,
    original_tensors,
    unet_names,
    vae_names,
    write_single_file,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.loaders import single_file_utils as theirs

from perfuse import DiffusionPipeline
from perfuse.models.registry import original
from perfuse.sources.layouts import layout_of

pytestmark = pytest.mark.slow

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

_CLASSES = {"sdxl": "StableDiffusionXLPipeline"}
_SD = {"layers_per_block": 2, "block_out_channels": [320, 640, 1280, 1280]}
_SD_2 = {
    **_SD,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
_XL = {
    "layers_per_block": 2,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}
#: The configs in the repositories that Diffusers takes them from, and what the layout is called.
FULL_SIZE: Mapping[str, dict[str, Any]] = {
    "Stable Diffusion 1": {**_SD, "cross_attention_dim": 768, "attention_head_dim": 8},
    "Stable Diffusion 2": _SD_2,
    "Stable Diffusion XL": {
        **_XL,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816,
    },
    "Stable Diffusion XL refiner": {
        **_XL,
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": [
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4,
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
}


def shapes_of(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ("float32", tuple(tensor.shape)) for name, tensor in state.items()}


def plain(views: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: view.shape for name, view in views.items()}


def sized(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def zeros(model: Any) -> dict[str, Any]:
    """A model's tensors at full size, which take no memory."""
    return {name: torch.zeros(1).expand(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_unet_of_full_size(name: str) -> None:
    """The same names and shapes as Diffusers' converter, and a config that builds this model."""
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(**FULL_SIZE[name])
    state = zeros(model)
    names = unet_names(list(state), 2)
    stored = {names[key]: tensor for key, tensor in state.items()}
    found = original("unet", shapes_of(stored))
    assert found is not None
    class_name, ours = found
    assert class_name == "UNet2DConditionModel"
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in stored.items()}
    converted = theirs.convert_ldm_unet_checkpoint(prefixed, model.config)
    assert plain(ours.views) == sized(converted) == sized(state)
    assert {key: view.stored for key, view in ours.views.items()} == names
    with torch.device("meta"):
        rebuilt = diffusers.UNet2DConditionModel(**ours.config)
    assert sized(rebuilt.state_dict()) == sized(state)
    heads = [
        block.attentions[0].num_attention_heads
        for block in model.up_blocks
        if "Attn" in str(type(block))
    ]
    assert heads == [
        block.attentions[0].num_attention_heads
        for block in rebuilt.up_blocks
        if "Attn" in str(type(block))
    ]
    layout = layout_of(ours.config, [])
    assert layout is not None
    assert layout.name == name


def test_autoencoder_of_full_size() -> None:
    config = {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    }
    with torch.device("meta"):
        model = diffusers.AutoencoderKL(**config)
    state = zeros(model)
    names = vae_names(list(state), 4)
    stored = {
        names[key]: tensor[:, :, None, None]
        if ".attn_1." in names[key] and tensor.ndim == 2
        else tensor
        for key, tensor in state.items()
    }
    found = original("vae", shapes_of({**stored, "loss.logvar": torch.zeros(())}))
    assert found is not None
    converted = theirs.convert_ldm_vae_checkpoint(dict(stored), model.config)
    assert plain(found[1].views) == sized(converted) == sized(state)
    with torch.device("meta"):
        rebuilt = diffusers.AutoencoderKL(**found[1].config)
    assert sized(rebuilt.state_dict()) == sized(state)


#: The text encoders of Stable Diffusion 1, 2 and XL: layers as stored, width, whether projected.
TEXT_ENCODERS = {
    "SD 1": ("text_encoder", 12, 768, False),
    "SD 2": ("text_encoder", 24, 1024, False),
    "XL": ("text_encoder_2", 32, 1280, True),
}


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_text_encoder_of_full_size(name: str) -> None:
    part, layers, width, projected = TEXT_ENCODERS[name]
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )
    with torch.device("meta"):
        model = transformers.CLIPTextModelWithProjection(config)
    state = zeros(model)
    if part == "text_encoder":
        del state["text_projection.weight"]
    if name == "SD 1":
        stored = {f"transformer.{key}": tensor for key, tensor in state.items()}
        prefixed = {f"cond_stage_model.{key}": tensor for key, tensor in stored.items()}
        converted = theirs.convert_ldm_clip_checkpoint(prefixed)
    else:

        def join(tensors: list[Any]) -> Any:
            return torch.zeros(1).expand(3 * tensors[0].shape[0], *tensors[0].shape[1:])

        stored = {f"model.{key}": tensor for key, tensor in open_clip(state, join).items()}
        stored["model.logit_scale"] = torch.zeros(())
        if not projected:
            stored["model.text_projection"] = torch.zeros(1).expand(width, width)
        prefix = "conditioner.embedders.1." if projected else "cond_stage_model."
        prefixed = {prefix + key: tensor for key, tensor in stored.items()}
        cut = {
            key: tensor for key, tensor in prefixed.items() if not key.endswith("in_proj_weight")
        }
        weights = {key: tensor for key, tensor in prefixed.items() if key not in cut}
        converted = theirs.convert_open_clip_checkpoint(model, cut, prefix=f"{prefix}model.")
        # Diffusers copies these, so one layer of them stands for all.
        one = dict(list(weights.items())[:1])
        converted |= theirs.convert_open_clip_checkpoint(model, one, prefix=f"{prefix}model.")
    found = original(part, shapes_of(stored))
    assert found is not None
    class_name, ours = found
    assert class_name == ("CLIPTextModelWithProjection" if projected else "CLIPTextModel")
    mine = plain(ours.views)
    assert sized(converted).items() <= mine.items()
    kept = 23 if name == "SD 2" else layers
    expected = {k: s for k, s in sized(state).items() if f".layers.{kept}." not in k}
    assert mine == expected
    assert ours.config["num_hidden_layers"] == kept
    assert ours.config["num_attention_heads"] == width // 64
    assert ours.config["hidden_act"] == ("quick_gelu" if name == "SD 1" else "gelu")


@pytest.mark.parametrize("kind", KINDS)
def test_pictures(kind: str, tmp_path: Path) -> None:
    """A file draws what its folder draws, and what Diffusers draws from the file."""
    folder = make_folder(tmp_path / kind, kind)
    path = write_single_file(folder, kind, tmp_path / "model.safetensors")
    ours = DiffusionPipeline.from_single_file(
        path, tokenizer_from=folder, scheduler_from=folder, backend="torch:cpu"
    )
    whole = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    call = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
    latents = ours("a red circle", seed=0, **call).images
    same = whole("a red circle", seed=0, **call).images
    if kind == "sdxl":
        # BLAS adds up otherwise where a matrix begins elsewhere in memory; the weights are the same.
        np.testing.assert_allclose(latents, same, rtol=1e-5, atol=1e-5 * np.abs(same).max())
    else:
        np.testing.assert_array_equal(latents, same)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if name in ours.spec.components or name == "vae":
            mine, told = getattr(ours, name).state_dict(), getattr(whole, name).state_dict()
            assert mine.keys() == told.keys()
            assert all(torch.equal(mine[key], told[key]) for key in told)

    if kind == "sd2":  # query, key and value are views of one stored tensor
        attention = (
            ours.text_encoder.text_model
            if hasattr(ours.text_encoder, "text_model")
            else ours.text_encoder
        )
        layer = attention.encoder.layers[0].self_attn
        stored = {one.weight.untyped_storage().data_ptr() for one in (layer.q_proj, layer.k_proj)}
        assert len(stored) == 1

    pipeline = getattr(diffusers, _CLASSES.get(kind, "StableDiffusionPipeline"))
    peer = pipeline.from_single_file(str(path), config=str(folder), local_files_only=True)
    peer.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    drawn = peer("a red circle", generator=generator, **call).images.numpy()
    np.testing.assert_allclose(latents, drawn, atol=1e-5 * np.abs(drawn).max())


def test_averages_of_training(tmp_path: Path) -> None:
    """``extract_ema`` takes what Diffusers' converter takes."""
    from safetensors.torch import save_file

    folder = make_folder(tmp_path / "sd1", "sd1")
    tensors = original_tensors(folder, "sd1")
    for name in [name for name in tensors if name.startswith("model.diffusion_model.")]:
        tensors["model_ema." + name.partition(".")[2].replace(".", "")] = tensors[name] * 0.5
    path = tmp_path / "ema.safetensors"
    save_file(tensors, path)
    for averaged in (False, True):
        pipe = DiffusionPipeline.from_single_file(path, extract_ema=averaged, backend="torch:cpu")
        told = theirs.convert_ldm_unet_checkpoint(
            tensors, {"layers_per_block": 1}, extract_ema=averaged
        )
        mine = pipe.unet.state_dict()
        assert mine.keys() == told.keys()
        assert all(torch.equal(mine[name], told[name]) for name in told)
