"""Small random IP-Adapters, in the layout of their authors, and the image encoder before them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse_conformance.cases.checkpoint_parts import randomise

__all__ = ["EMBED", "STATES", "write_adapter", "write_image_encoder"]

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


def write_adapter(file: Path, kind: str, config: Mapping[str, Any], seed: int = 0) -> Path:
    """An adapter of a kind for a UNet, every number random, in the layout of its authors."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Any:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    width = config["cross_attention_dim"]
    image: dict[str, Any] = {}
    if kind == "plain":
        image |= {"proj.weight": draw(4 * width, EMBED), "proj.bias": draw(4 * width)}
        image |= {"norm.weight": 1 + draw(width), "norm.bias": draw(width)}
    elif kind == "face":
        image |= {"proj.0.weight": draw(EMBED * 2, EMBED), "proj.0.bias": draw(EMBED * 2)}
        image |= {"proj.2.weight": draw(4 * width, EMBED * 2), "proj.2.bias": draw(4 * width)}
        image |= {"norm.weight": 1 + draw(width), "norm.bias": draw(width)}
    elif kind == "full":
        image |= {"proj.0.weight": draw(STATES, STATES), "proj.0.bias": draw(STATES)}
        image |= {"proj.2.weight": draw(width, STATES), "proj.2.bias": draw(width)}
        image |= {"proj.3.weight": 1 + draw(width), "proj.3.bias": draw(width)}
    else:
        inner = 24
        image["latents"] = draw(1, 5, inner)
        for name, shape in (("proj_in", (inner, STATES)), ("proj_out", (width, inner))):
            image |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
        image |= {"norm_out.weight": 1 + draw(width), "norm_out.bias": draw(width)}
        for i in range(4):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                image[f"layers.{i}.{norm}.weight"] = 1 + draw(inner)
                image[f"layers.{i}.{norm}.bias"] = draw(inner)
            image[f"layers.{i}.0.to_q.weight"] = draw(64, inner)
            image[f"layers.{i}.0.to_kv.weight"] = draw(128, inner)
            image[f"layers.{i}.0.to_out.weight"] = draw(inner, 64)
            image[f"layers.{i}.1.1.weight"] = draw(4 * inner, inner)
            image[f"layers.{i}.1.3.weight"] = draw(inner, 4 * inner)
    tensors = {f"image_proj.{name}": tensor for name, tensor in image.items()}
    for i, inner in enumerate(_cross_attentions(config)):
        for which in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * i + 1}.{which}.weight"] = draw(inner, width)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
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
