"""Single files of transformers beside Diffusers' converters, and drawn with beside their folders."""

import importlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file, save_file
from tests.single_files import vae_names

import perfuse.models
from perfuse import DiffusionPipeline
from perfuse.contract.original import Stacked
from perfuse.errors import CheckpointError, InputError, WeightsError
from perfuse.models.registry import original
from perfuse.sources.layouts import layout_of
from perfuse.sources.single_file import SingleFile

exhaustive = pytest.mark.exhaustive
Make = Callable[[str], Path]
State = dict[str, Any]

#: Of each class a size with few blocks. Diffusers' converter of FLUX.1 knows one width alone.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True},
    "SD3Transformer2DModel": {
        "num_layers": 3,
        "num_attention_heads": 3,
        "caption_projection_dim": 192,
        "dual_attention_layers": (0, 1),
        "qk_norm": "rms_norm",
    },
    "Flux2Transformer2DModel": {
        "num_layers": 2,
        "num_single_layers": 2,
        "num_attention_heads": 3,
        "guidance_embeds": False,
    },
    "ChromaTransformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 1,
        "approximator_hidden_dim": 64,
    },
    "ZImageTransformer2DModel": {"n_layers": 2, "n_refiner_layers": 1, "dim": 256, "n_heads": 2},
    "QwenImageTransformer2DModel": {"num_layers": 2, "num_attention_heads": 3},
    "QwenImage21Transformer2DModel": {"num_layers": 2, "num_attention_heads": 3},
    # Diffusers' converter of Lumina 2 knows one width alone, too.
    "Lumina2Transformer2DModel": {"num_layers": 1, "num_refiner_layers": 1},
    "AuraFlowTransformer2DModel": {
        "num_mmdit_layers": 2,
        "num_single_dit_layers": 1,
        "num_attention_heads": 2,
        "caption_projection_dim": 512,
        "pos_embed_max_size": 9216,
    },
}
CONVERTERS: Mapping[str, Callable[[State], State]] = {
    "FluxTransformer2DModel": theirs.convert_flux_transformer_checkpoint_to_diffusers,
    "SD3Transformer2DModel": theirs.convert_sd3_transformer_checkpoint_to_diffusers,
    "Flux2Transformer2DModel": theirs.convert_flux2_transformer_checkpoint_to_diffusers,
    "ChromaTransformer2DModel": theirs.convert_chroma_transformer_checkpoint_to_diffusers,
    "ZImageTransformer2DModel": theirs.convert_z_image_transformer_checkpoint_to_diffusers,
    "QwenImageTransformer2DModel": dict,
    "QwenImage21Transformer2DModel": theirs.convert_qwen_image21_transformer_checkpoint_to_diffusers,
    "Lumina2Transformer2DModel": theirs.convert_lumina2_to_diffusers,
    "AuraFlowTransformer2DModel": theirs.convert_auraflow_transformer_checkpoint_to_diffusers,
}
ROOMS = {
    "FluxTransformer2DModel": "flux_transformer",
    "SD3Transformer2DModel": "sd3_transformer",
    "Flux2Transformer2DModel": "flux2_transformer",
    "ChromaTransformer2DModel": "chroma_transformer",
    "ZImageTransformer2DModel": "z_image_transformer",
    "QwenImage21Transformer2DModel": "qwen_image_21_transformer",
    "Lumina2Transformer2DModel": "lumina2_transformer",
    "AuraFlowTransformer2DModel": "aura_flow_transformer",
}


def stored_as(class_name: str, state: Mapping[str, Any]) -> State:
    """A model's tensors under the original names: our table read backwards.

    Whether the table is right is for Diffusers' converter to say, which reads the result.
    """
    room = ROOMS.get(class_name)
    if room is None:
        return dict(state)
    aliases = importlib.import_module(f"perfuse.models.{room}.original").aliases
    layers = dict.fromkeys(name.rpartition(".")[0] for name in state)
    found, left = State(), dict(state)
    for other, place in aliases(layers).items():
        one = place if isinstance(place, Stacked) else Stacked(layers=(place,))
        for last in ("weight", "bias"):
            parts = [left.pop(f"{layer}.{last}", None) for layer in one.layers]
            if parts[0] is None:  # without a bias, or under the name of an XLabs processor
                continue
            whole = torch.cat(parts)
            if one.swapped:
                whole = torch.cat(whole.chunk(2)[::-1])
            norm = other.endswith(("query_norm", "key_norm")) or ".norms." in other
            found[f"{other}.{'scale' if norm else last}"] = whole
    if "pos_embed.pos_embed" in left:
        table = "positional_encoding" if room == "aura_flow_transformer" else "pos_embed"
        found[table] = left.pop("pos_embed.pos_embed")
    return {**found, **left}


def hollow(class_name: str, **fields: Any) -> Any:
    with torch.device("meta"):
        return getattr(diffusers, class_name)(**{**SIZES[class_name], **fields})


def numbered(model: Any) -> State:
    """Tensors whose rows are told apart by their number; those of blocks have one column."""
    found = State()
    for i, (name, tensor) in enumerate(model.state_dict().items()):
        rows = torch.arange(tensor.shape[0], dtype=torch.float32) + 100_000 * i
        rows = rows.reshape(-1, *(1 for _ in tensor.shape[1:]))
        found[name] = rows if "blocks." in name else rows.expand(tensor.shape)
    return found


def shapes_of(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ("float32", tuple(tensor.shape)) for name, tensor in state.items()}


@pytest.mark.parametrize("class_name", SIZES)
def test_read_as_diffusers_converts(class_name: str) -> None:
    model = hollow(class_name)
    state = numbered(model)
    stored = stored_as(class_name, state)
    found = original("transformer", shapes_of(stored))
    assert found is not None
    assert found[0] == class_name
    converted = CONVERTERS[class_name](dict(stored))
    assert set(found[1].views) == set(converted) == set(state)
    for name, view in found[1].views.items():
        tensor = view.of(stored[view.stored])
        assert tensor.shape == converted[name].shape == view.shape
        first = tensor.reshape(len(tensor), -1)[:, 0]
        assert torch.equal(first, converted[name].reshape(len(tensor), -1)[:, 0])
        array = view.of_array(stored[view.stored].numpy())
        np.testing.assert_array_equal(array.reshape(len(array), -1)[:, 0], first.numpy())
    whole = original("transformer", shapes_of(stored_as(class_name, model.state_dict())))
    assert whole is not None
    with torch.device("meta"):
        rebuilt = getattr(perfuse.models, class_name)(**whole[1].config)
    assert shapes_of(rebuilt.state_dict()) == shapes_of(model.state_dict())


@pytest.mark.parametrize(
    ("class_name", "fields", "name"),
    [
        ("FluxTransformer2DModel", {}, "FLUX.1 dev"),
        ("FluxTransformer2DModel", {"guidance_embeds": False}, "FLUX.1 schnell"),
        ("FluxTransformer2DModel", {"in_channels": 384, "out_channels": 64}, "FLUX.1 Fill"),
        ("SD3Transformer2DModel", {}, "Stable Diffusion 3.5 medium"),
        ("SD3Transformer2DModel", {"dual_attention_layers": ()}, "Stable Diffusion 3.5 large"),
        (
            "SD3Transformer2DModel",
            {"dual_attention_layers": (), "qk_norm": None},
            "Stable Diffusion 3",
        ),
        ("Flux2Transformer2DModel", {"num_attention_heads": 24}, "FLUX.2 klein 4B"),
        ("ChromaTransformer2DModel", {}, "Chroma"),
        ("ZImageTransformer2DModel", {}, "Z-Image-Turbo"),
        ("QwenImageTransformer2DModel", {}, "Qwen-Image"),
        ("QwenImage21Transformer2DModel", {}, "Qwen-Image 2.1"),
        ("Lumina2Transformer2DModel", {}, "Lumina 2"),
        ("AuraFlowTransformer2DModel", {}, "AuraFlow 0.3"),
        ("AuraFlowTransformer2DModel", {"pos_embed_max_size": 1024}, "AuraFlow 0.2"),
    ],
)
def test_recognised(class_name: str, fields: Mapping[str, Any], name: str) -> None:
    stored = stored_as(class_name, hollow(class_name, **fields).state_dict())
    found = original("transformer", shapes_of(stored))
    assert found is not None
    layout = layout_of(found[1].config, [f"model.diffusion_model.{one}" for one in stored])
    assert layout is not None
    assert layout.name == name


def written(folder: Path, class_name: str, path: Path, *, whole: bool = True) -> Path:
    """A checkpoint's folder as one file, as ComfyUI writes it."""
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    stored = {f"model.diffusion_model.{n}": t for n, t in stored_as(class_name, state).items()}
    if whole:
        vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
        names = vae_names(list(vae), 2)
        for name, tensor in vae.items():
            conv = ".mid.attn_1." in names[name] and tensor.ndim == 2
            stored[f"vae.{names[name]}"] = tensor[:, :, None, None] if conv else tensor
        for part, place in PLACES[class_name].items():
            inner = load_file(folder / part / "model.safetensors")
            for name, tensor in inner.items():
                old = "" if name.startswith(("text_", "encoder.", "shared.")) else "text_model."
                stored[f"text_encoders.{place}.transformer.{old}{name}"] = tensor
    save_file({name: tensor.contiguous().clone() for name, tensor in stored.items()}, path)
    return path


PLACES = {
    "FluxTransformer2DModel": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "SD3Transformer2DModel": {"text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
}
CALL = {
    "prompt": "a red circle",
    "height": 16,
    "width": 24,
    "num_inference_steps": 2,
    "max_sequence_length": 24,
    "seed": 0,
    "output_type": "np",
}


def without(folder: Path, into: Path, *parts: str) -> Path:
    """A checkpoint's folder with configs and tokenizers, and no weights of some models."""
    shutil.copytree(folder, into)
    for part in parts:
        for file in (into / part).glob("*.safetensors"):
            file.unlink()
    return into


@pytest.mark.parametrize(
    ("kind", "class_name", "whole"),
    [
        ("flux", "FluxTransformer2DModel", True),
        pytest.param("sd3", "SD3Transformer2DModel", True, marks=exhaustive),
        pytest.param("flux-fill", "FluxTransformer2DModel", False, marks=exhaustive),
        pytest.param("klein", "Flux2Transformer2DModel", False, marks=exhaustive),
        pytest.param("z-image", "ZImageTransformer2DModel", False, marks=exhaustive),
        pytest.param("qwen-image", "QwenImageTransformer2DModel", False, marks=exhaustive),
        pytest.param("qwen-image-21", "QwenImage21Transformer2DModel", False, marks=exhaustive),
        pytest.param("lumina2", "Lumina2Transformer2DModel", False, marks=exhaustive),
        pytest.param("aura-flow", "AuraFlowTransformer2DModel", False, marks=exhaustive),
    ],
)
def test_a_file_draws_what_its_folder_draws(
    checkpoint: Make, tmp_path: Path, kind: str, class_name: str, whole: bool
) -> None:
    folder = checkpoint(kind)
    file = written(folder, class_name, tmp_path / "one.safetensors", whole=whole)
    held = ["transformer", *(["vae", *PLACES[class_name]] if whole else ())]
    rest = without(folder, tmp_path / "rest", *held)
    call: dict[str, Any] = dict(CALL)
    if kind == "flux-fill":
        pixels = np.random.default_rng(0).uniform(size=(1, 16, 24, 3))
        call |= {"image": pixels, "mask_image": pixels[..., :1]}
    expected = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")(**call).images
    pipe = DiffusionPipeline.from_single_file(file, config=rest, backend="torch:cpu")
    # A tensor that begins elsewhere in memory is multiplied in another order.
    np.testing.assert_allclose(pipe(**call).images, expected, atol=1e-5)
    model = getattr(perfuse.models, class_name).from_single_file(
        file, config=folder, subfolder="transformer"
    )
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_what_is_not_in_the_file(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint("flux")
    path = tmp_path / "one.safetensors"
    state = {
        name: torch.zeros(tensor.shape, dtype=torch.float8_e4m3fn)
        for name, tensor in stored_as(
            "FluxTransformer2DModel",
            hollow("FluxTransformer2DModel", num_attention_heads=1).state_dict(),
        ).items()
    }
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"FLUX.1 dev, has transformer; the rest was to be"):
        SingleFile.open(path, offline=True)
    with pytest.raises(InputError, match="takes tokenizers and scheduler from a checkpoint"):
        SingleFile.open(path, config=folder, prediction_type="epsilon")
    pipe = DiffusionPipeline.from_single_file(path, config=folder, backend="torch:cpu")
    with pytest.raises(WeightsError, match="do not fit what its config says"):
        pipe(**CALL)
    del state["double_blocks.0.img_attn.norm.query_norm.scale"]
    save_file(state, path)
    with pytest.raises(WeightsError, match="a FluxTransformer2DModel, lacks double_blocks.0"):
        SingleFile.open(path, config=folder)
