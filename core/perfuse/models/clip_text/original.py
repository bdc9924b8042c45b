"""CLIP's text encoders in single files: Transformers' names behind a prefix, or OpenCLIP's."""

import re
from typing import Any

from perfuse.contract.original import Original, Shapes, View

__all__ = ["original", "original_projected"]

_TRANSFORMERS, _OPEN = "transformer.", "model."
_NAMES = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_POSITIONS = "position_embedding.weight"
#: Of OpenCLIP's 24 layers, Stable Diffusion 2 runs all but the last.
_LAYERS_OF_SD_2 = 23
_HEAD = 64
#: In every such config of Stability AI's; with 2, the token with the highest id ends a prompt.
_TOKENS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def original(name: str, shapes: Shapes) -> Original | None:
    """The first text encoder: OpenAI's CLIP, or OpenCLIP without its projection."""
    return _read(shapes, projected=False) if name == "text_encoder" else None


def original_projected(name: str, shapes: Shapes) -> Original | None:
    """The second text encoder of SDXL, whose pooled output is projected."""
    return _read(shapes, projected=True) if name == "text_encoder_2" else None


def _read(shapes: Shapes, *, projected: bool) -> Original | None:
    plain = {key: shape for key, (_, shape) in shapes.items()}
    if any(key.startswith(_TRANSFORMERS) and key.endswith(_POSITIONS) for key in plain):
        views = _from_transformers(plain, projected)
    elif f"{_OPEN}positional_embedding" in plain:
        views = _from_open_clip(plain, projected)
    else:
        return None
    act = "quick_gelu" if f"{_OPEN}positional_embedding" not in plain and not projected else "gelu"
    return Original(config={**_config(views, projected), "hidden_act": act}, views=views)


def _from_transformers(shapes: dict[str, tuple[int, ...]], projected: bool) -> dict[str, View]:
    views = {}
    for key, shape in shapes.items():
        name = key.removeprefix(_TRANSFORMERS)
        if not key.startswith(_TRANSFORMERS) or name.endswith("position_ids"):
            continue
        if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            name = f"text_model.{name}"  # as files of before 2023 have it
        if name.startswith("text_model.") or (projected and name == "text_projection.weight"):
            views[name] = View(stored=key, shape=shape)
    return views


def _from_open_clip(shapes: dict[str, tuple[int, ...]], projected: bool) -> dict[str, View]:
    views: dict[str, View] = {}
    for key, shape in shapes.items():
        name = key.removeprefix(_OPEN)
        if name in _NAMES:
            views[_NAMES[name]] = View(stored=key, shape=shape)
        elif name == "text_projection" and projected:
            views["text_projection.weight"] = View(
                stored=key, shape=(shape[1], shape[0]), transposed=True
            )
        elif (layer := _LAYER.fullmatch(name)) and (projected or int(layer[1]) < _LAYERS_OF_SD_2):
            views |= _layer(f"text_model.encoder.layers.{layer[1]}", layer[2], key, shape)
    return views


def _layer(place: str, name: str, key: str, shape: tuple[int, ...]) -> dict[str, View]:
    """A tensor of one layer; query, key and value are stored as one, one above the other."""
    if not name.startswith("attn.in_proj_"):
        inner, _, last = name.rpartition(".")
        return {f"{place}.{_INNER.get(inner, inner)}.{last}": View(stored=key, shape=shape)}
    width, last = shape[0] // 3, name.removeprefix("attn.in_proj_")
    return {
        f"{place}.self_attn.{one}_proj.{last}": View(
            stored=key, shape=(width, *shape[1:]), rows=(i * width, (i + 1) * width)
        )
        for i, one in enumerate("qkv")
    }


def _config(views: dict[str, View], projected: bool) -> dict[str, Any]:
    vocabulary, width = views["text_model.embeddings.token_embedding.weight"].shape
    layers = {key.split(".")[3] for key in views if key.startswith("text_model.encoder.layers.")}
    projection = views["text_projection.weight"].shape[0] if projected else width
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": views["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "projection_dim": projection,
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // _HEAD,
        "max_position_embeddings": views["text_model.embeddings.position_embedding.weight"].shape[
            0
        ],
        **_TOKENS,
    }
