"""What Black Forest Labs' files call the blocks of FLUX.1 and of what was made of it, and XLabs' LoRAs."""

from perfuse.models.original_names import Table, stacked

__all__ = ["BLOCKS", "PROCESSORS"]

_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_OWN = stacked(f"{_DOUBLE}.attn", "to_q", "to_k", "to_v")
_TEXT = stacked(f"{_DOUBLE}.attn", "add_q_proj", "add_k_proj", "add_v_proj")

BLOCKS: Table = {
    "double_blocks.{}.img_attn.qkv": _OWN,
    "double_blocks.{}.txt_attn.qkv": _TEXT,
    "double_blocks.{}.img_attn.norm.query_norm": f"{_DOUBLE}.attn.norm_q",
    "double_blocks.{}.img_attn.norm.key_norm": f"{_DOUBLE}.attn.norm_k",
    "double_blocks.{}.txt_attn.norm.query_norm": f"{_DOUBLE}.attn.norm_added_q",
    "double_blocks.{}.txt_attn.norm.key_norm": f"{_DOUBLE}.attn.norm_added_k",
    "double_blocks.{}.img_attn.proj": f"{_DOUBLE}.attn.to_out.0",
    "double_blocks.{}.txt_attn.proj": f"{_DOUBLE}.attn.to_add_out",
    "double_blocks.{}.img_mlp.0": f"{_DOUBLE}.ff.net.0.proj",
    "double_blocks.{}.img_mlp.2": f"{_DOUBLE}.ff.net.2",
    "double_blocks.{}.txt_mlp.0": f"{_DOUBLE}.ff_context.net.0.proj",
    "double_blocks.{}.txt_mlp.2": f"{_DOUBLE}.ff_context.net.2",
    "single_blocks.{}.linear1": stacked(
        _SINGLE, "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", shares=(1, 1, 1, 4)
    ),
    "single_blocks.{}.norm.query_norm": f"{_SINGLE}.attn.norm_q",
    "single_blocks.{}.norm.key_norm": f"{_SINGLE}.attn.norm_k",
    "single_blocks.{}.linear2": f"{_SINGLE}.proj_out",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
}
#: XLabs' processors, of the picture (1) and of the text (2).
PROCESSORS: Table = {
    "double_blocks.{}.qkv1": _OWN,
    "double_blocks.{}.qkv2": _TEXT,
    "double_blocks.{}.proj1": f"{_DOUBLE}.attn.to_out.0",
    "double_blocks.{}.proj2": f"{_DOUBLE}.attn.to_add_out",
    "single_blocks.{}.qkv": stacked(f"{_SINGLE}.attn", "to_q", "to_k", "to_v"),
    "single_blocks.{}.proj": f"{_SINGLE}.proj_out",
}
