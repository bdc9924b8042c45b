"""AuraFlow's transformer as its authors' files hold it, and as LoRAs name its layers."""

from collections.abc import Iterable
from typing import Any

from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.models.original_names import Table, aliases_of, blocks, first_axis, swapped, views_of

__all__ = ["aliases", "original"]

_JOINT, _SINGLE = "joint_transformer_blocks.{}", "single_transformer_blocks.{}"


def _feed(place: str, into: str) -> Table:
    return {
        f"{place}.c_fc1": f"{into}.linear_1",
        f"{place}.c_fc2": f"{into}.linear_2",
        f"{place}.c_proj": f"{into}.out_projection",
    }


_LAYERS: Table = {
    "positional_encoding": "pos_embed.pos_embed",
    "init_x_linear": "pos_embed.proj",
    "cond_seq_linear": "context_embedder",
    "t_embedder.mlp.0": "time_step_proj.linear_1",
    "t_embedder.mlp.2": "time_step_proj.linear_2",
    "double_layers.{}.modX.1": f"{_JOINT}.norm1.linear",
    "double_layers.{}.modC.1": f"{_JOINT}.norm1_context.linear",
    # w2 is the picture's there, and w1 the text's; blocks of one stream have w1 alone.
    "double_layers.{}.attn.w2q": f"{_JOINT}.attn.to_q",
    "double_layers.{}.attn.w2k": f"{_JOINT}.attn.to_k",
    "double_layers.{}.attn.w2v": f"{_JOINT}.attn.to_v",
    "double_layers.{}.attn.w2o": f"{_JOINT}.attn.to_out.0",
    "double_layers.{}.attn.w1q": f"{_JOINT}.attn.add_q_proj",
    "double_layers.{}.attn.w1k": f"{_JOINT}.attn.add_k_proj",
    "double_layers.{}.attn.w1v": f"{_JOINT}.attn.add_v_proj",
    "double_layers.{}.attn.w1o": f"{_JOINT}.attn.to_add_out",
    **_feed("double_layers.{}.mlpX", f"{_JOINT}.ff"),
    **_feed("double_layers.{}.mlpC", f"{_JOINT}.ff_context"),
    "single_layers.{}.modCX.1": f"{_SINGLE}.norm1.linear",
    "single_layers.{}.attn.w1q": f"{_SINGLE}.attn.to_q",
    "single_layers.{}.attn.w1k": f"{_SINGLE}.attn.to_k",
    "single_layers.{}.attn.w1v": f"{_SINGLE}.attn.to_v",
    "single_layers.{}.attn.w1o": f"{_SINGLE}.attn.to_out.0",
    **_feed("single_layers.{}.mlp", f"{_SINGLE}.ff"),
    "modF.1": swapped("norm_out.linear"),
    "final_linear": "proj_out",
}
#: Channels of a head, which no tensor tells: all published sizes have these.
_HEAD = 256
#: Latents of a patch: two by two.
_PATCH = 4


def aliases(layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters call its layers."""
    return aliases_of(_LAYERS, layers)


def original(name: str, shapes: Shapes) -> Original | None:
    """AuraFlow."""
    if name != "transformer" or "double_layers.0.attn.w2q.weight" not in shapes:
        return None
    shapes = first_axis(shapes, {"positional_encoding": 3, "register_tokens": 3})
    return Original(config=_config(shapes), views=views_of(_LAYERS, shapes))


def _config(shapes: Shapes) -> dict[str, Any]:
    width, pixels = shapes["init_x_linear.weight"][1]
    return {
        "in_channels": pixels // _PATCH,
        "out_channels": shapes["final_linear.weight"][1][0] // _PATCH,
        "num_mmdit_layers": blocks(shapes, "double_layers"),
        "num_single_dit_layers": blocks(shapes, "single_layers"),
        "attention_head_dim": _HEAD,
        "num_attention_heads": width // _HEAD,
        "joint_attention_dim": shapes["cond_seq_linear.weight"][1][1],
        "caption_projection_dim": width,
        "pos_embed_max_size": shapes["positional_encoding"][1][1],
    }
