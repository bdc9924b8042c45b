"""Text encoders as llama.cpp's tools write them: GGUF files with names of their own.

One lies in the folder of its component, beside ``config.json`` and in the place of the safetensors.
Names are those of llama.cpp's ``gguf.constants`` (T5ENCODER, QWEN2VL, QWEN3).
"""

from pathlib import Path

from perfuse.errors import WeightsError
from perfuse.models.original_names import Table, views_of
from perfuse.sources.original import OriginalFile
from perfuse.sources.weights import Weights

__all__ = ["weights_of_llama"]

_T5, _QWEN = "encoder.block.{}.layer", "model.layers.{}"
_ENCODER: Table = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
    **{f"enc.blk.{{}}.attn_{one}": f"{_T5}.0.SelfAttention.{one}" for one in "qkvo"},
    "enc.blk.{}.attn_rel_b": f"{_T5}.0.SelfAttention.relative_attention_bias",
    "enc.blk.{}.attn_norm": f"{_T5}.0.layer_norm",
    "enc.blk.{}.ffn_gate": f"{_T5}.1.DenseReluDense.wi_0",
    "enc.blk.{}.ffn_up": f"{_T5}.1.DenseReluDense.wi_1",
    "enc.blk.{}.ffn_down": f"{_T5}.1.DenseReluDense.wo",
    "enc.blk.{}.ffn_norm": f"{_T5}.1.layer_norm",
}
_DECODER: Table = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    **{f"blk.{{}}.attn_{one}": f"{_QWEN}.self_attn.{one}_proj" for one in "qkv"},
    "blk.{}.attn_output": f"{_QWEN}.self_attn.o_proj",
    "blk.{}.attn_q_norm": f"{_QWEN}.self_attn.q_norm",
    "blk.{}.attn_k_norm": f"{_QWEN}.self_attn.k_norm",
    "blk.{}.attn_norm": f"{_QWEN}.input_layernorm",
    **{f"blk.{{}}.ffn_{one}": f"{_QWEN}.mlp.{one}_proj" for one in ("gate", "up", "down")},
    "blk.{}.ffn_norm": f"{_QWEN}.post_attention_layernorm",
}
#: By ``general.architecture``. Others, as llama and gemma2, have rows in another order, or norms that one
#: was added to.
_TABLES = {
    "t5": _ENCODER,
    "t5encoder": _ENCODER,
    "qwen2vl": _DECODER,
    "qwen3": _DECODER,
}
#: T5's other half, which a whole model's file has.
_LEFT_OUT = "dec."


def weights_of_llama(folder: Path) -> Weights | None:
    """The weights of a component's folder that has them as a GGUF file; ``None`` for any other.

    Raises:
        WeightsError: there are several such files, or it is of another architecture, or damaged.
        InputError: the package ``gguf`` is not installed.
    """
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [one for one in there if one.suffix.lower() == ".gguf"]
    if not files or any(one.suffix == ".safetensors" for one in there):
        return None
    if len(files) > 1:
        raise WeightsError(
            f"{folder} has {', '.join(one.name for one in files)}; one of them can be its weights. "
            "Move the others elsewhere."
        )
    header = OriginalFile.open(files[0]).header
    kind = header.metadata.get("general.architecture", "")
    if kind not in _TABLES:
        raise WeightsError(
            f"{files[0]} is of the architecture {kind!r}; {', '.join(_TABLES)} are read as text "
            "encoders. Take the model's safetensors."
        )
    shapes = {n: one for n, one in header.shapes.items() if not n.startswith(_LEFT_OUT)}
    return Weights.of(files[0], header, views_of(_TABLES[kind], shapes))
