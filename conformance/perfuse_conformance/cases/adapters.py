"""Small random IP-Adapters, in the layout of their authors, and the image encoder before them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perfuse_conformance.cases.checkpoint_parts import randomise, write_json

__all__ = [
    "EMBED",
    "STATES",
    "write_adapter",
    "write_flux_adapter",
    "write_image_encoder",
    "write_sd3_adapter",
    "write_siglip_encoder",
]

#: The widths of the image encoder's embedding and states.
EMBED, STATES = 16, 32


def write_image_encoder(folder: Path, *, projection_dim: int = EMBED, seed: int = 9) -> None:
    """An image encoder for pictures of 24×24."""
    import perfuse.models

    kind: Any = perfuse.models.CLIPVisionModelWithProjection
    model = kind(
        hidden_size=STATES,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=24,
        patch_size=8,
        projection_dim=projection_dim,
    )
    randomise(model, seed).save_pretrained(folder)


def write_siglip_encoder(folder: Path, *, seed: int = 9) -> None:
    """SigLIP's image encoder for pictures of 24×24, and what makes them ready for it."""
    import perfuse.models

    kind: Any = perfuse.models.SiglipVisionModel
    model = kind(
        hidden_size=STATES,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=24,
        patch_size=8,
    )
    randomise(model, seed).save_pretrained(folder)
    processor = {"image_processor_type": "SiglipImageProcessor"}
    write_json(
        folder / "preprocessor_config.json", {**processor, "size": {"height": 24, "width": 24}}
    )


def write_adapter(file: Path, kind: str, config: Mapping[str, Any], seed: int = 0) -> Path:
    """An adapter of a kind for a UNet, every number random, in the layout of its authors."""
    draw = _drawing(seed)
    width = config["cross_attention_dim"]
    image: dict[str, Any] = {}
    if kind == "plain":
        image |= _plain(draw, width)
    elif kind == "face":
        image |= {"proj.0.weight": draw(EMBED * 2, EMBED), "proj.0.bias": draw(EMBED * 2)}
        image |= {"proj.2.weight": draw(4 * width, EMBED * 2), "proj.2.bias": draw(4 * width)}
        image |= {"norm.weight": 1 + draw(width), "norm.bias": draw(width)}
    elif kind == "full":
        image |= {"proj.0.weight": draw(STATES, STATES), "proj.0.bias": draw(STATES)}
        image |= {"proj.2.weight": draw(width, STATES), "proj.2.bias": draw(width)}
        image |= {"proj.3.weight": 1 + draw(width), "proj.3.bias": draw(width)}
    else:
        image |= _resampler(draw, width)
    tensors = {f"image_proj.{name}": tensor for name, tensor in image.items()}
    for i, inner in enumerate(_cross_attentions(config)):
        for which in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * i + 1}.{which}.weight"] = draw(inner, width)
    return _saved(file, tensors)


def write_flux_adapter(
    file: Path, config: Mapping[str, Any], seed: int = 0, *, xlabs: bool = True
) -> Path:
    """An adapter for a transformer of FLUX.1 or Chroma, in XLabs' layout or that of IP-Adapter's authors."""
    draw = _drawing(seed)
    width = config["joint_attention_dim"]
    inner = config["num_attention_heads"] * config["attention_head_dim"]
    image, name = "image_proj", "ip_adapter.{}.to_{}_ip"
    if xlabs:
        image = "ip_adapter_proj_model"
        name = "double_blocks.{}.processor.ip_adapter_double_stream_{}_proj"
    tensors = {f"{image}.{part}": tensor for part, tensor in _plain(draw, width).items()}
    for i in range(config["num_layers"]):
        for which in "kv":
            tensors[f"{name.format(i, which)}.weight"] = draw(inner, width)
            tensors[f"{name.format(i, which)}.bias"] = draw(inner)
    return _saved(file, tensors)


def write_sd3_adapter(file: Path, config: Mapping[str, Any], seed: int = 0) -> Path:
    """An adapter for a transformer of Stable Diffusion 3, in InstantX's layout."""
    draw = _drawing(seed)
    head = config["attention_head_dim"]
    width, told = config["num_attention_heads"] * head, _INNER
    image = _resampler(draw, width)
    for layer, (out, inputs) in (("linear_1", (told, 8)), ("linear_2", (told, told))):
        image[f"time_embedding.{layer}.weight"] = draw(out, inputs)
        image[f"time_embedding.{layer}.bias"] = draw(out)
    for i in range(_DEPTH):
        image[f"layers.{i}.2.1.weight"] = draw(4 * told, told)
        image[f"layers.{i}.2.1.bias"] = draw(4 * told)
    tensors = {f"image_proj.{name}": tensor for name, tensor in image.items()}
    for i in range(config["num_layers"] + len(config["dual_attention_layers"])):
        own = f"ip_adapter.{i}"
        tensors[f"{own}.norm_ip.linear.weight"] = draw(2 * width, told)
        tensors[f"{own}.norm_ip.linear.bias"] = draw(2 * width)
        for which in "kv":
            tensors[f"{own}.to_{which}_ip.weight"] = draw(width, width)
        for norm in ("norm_q", "norm_k", "norm_ip_k"):
            tensors[f"{own}.{norm}.weight"] = 1 + draw(head)
    return _saved(file, tensors)


#: The width of a resampler, and its layers.
_INNER, _DEPTH = 24, 4


def _drawing(seed: int) -> Callable[..., Any]:
    """Draws random tensors of the shapes that it is called with."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Any:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    return draw


def _plain(draw: Callable[..., Any], width: int) -> dict[str, Any]:
    """A projection of an embedding to four tokens."""
    return {
        "proj.weight": draw(4 * width, EMBED),
        "proj.bias": draw(4 * width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
    }


def _resampler(draw: Callable[..., Any], width: int) -> dict[str, Any]:
    """A resampler of states to five tokens."""
    image = {"latents": draw(1, 5, _INNER)}
    for name, shape in (("proj_in", (_INNER, STATES)), ("proj_out", (width, _INNER))):
        image |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    image |= {"norm_out.weight": 1 + draw(width), "norm_out.bias": draw(width)}
    for i in range(_DEPTH):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            image[f"layers.{i}.{norm}.weight"] = 1 + draw(_INNER)
            image[f"layers.{i}.{norm}.bias"] = draw(_INNER)
        image[f"layers.{i}.0.to_q.weight"] = draw(64, _INNER)
        image[f"layers.{i}.0.to_kv.weight"] = draw(128, _INNER)
        image[f"layers.{i}.0.to_out.weight"] = draw(_INNER, 64)
        image[f"layers.{i}.1.1.weight"] = draw(4 * _INNER, _INNER)
        image[f"layers.{i}.1.3.weight"] = draw(_INNER, 4 * _INNER)
    return image


def _saved(file: Path, tensors: Mapping[str, Any]) -> Path:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), file)
    return file


def _cross_attentions(config: Mapping[str, Any]) -> list[int]:
    """The width of each cross-attention of a UNet: those on the way down, up, and in the middle."""
    import perfuse.models

    kind: Any = perfuse.models.UNet2DConditionModel
    weights = kind(**config).state_dict()
    found = [name for name in weights if name.endswith("attn2.to_k.weight")]
    parts = ("down_blocks", "up_blocks", "mid_block")
    ordered = sorted(found, key=lambda name: parts.index(name.partition(".")[0]))
    return [int(weights[name].shape[0]) for name in ordered]
