"""Which model an adapter looks to be made for, by the names and shapes of its tensors."""

import re
from collections.abc import Mapping

__all__ = ["looks_like"]

#: What a name has in it that no other model's has.
_NAMES: Mapping[str, str] = {
    r"distilled_guidance_layer": "Chroma",
    r"single_stream_modulation|to_qkv_mlp_proj|linear_in\b|ff_linear": "FLUX.2",
    r"img_mod.lin|single_blocks.*modulation|proj_mlp": "FLUX.1",
    r"joint_blocks|context_block": "Stable Diffusion 3",
    r"(img|txt)_mlp.net|(img|txt)_mod.1": "Qwen-Image",
    r"noise_refiner|context_refiner|layers.\d+.(attention|feed_forward)": "Z-Image or Lumina",
    r"cross_attn.*ffn|blocks_\d+_cross_attn|blocks\.\d+\.cross_attn": "Wan",
    r"lora_prior_|(down|decoder)_blocks_\d+_\d+_attention": "Stable Cascade",
    r"temporal_transformer|motion_modules": "AnimateDiff",
}
#: FLUX's fused layer, and how many times the width it has rows.
_FUSED = re.compile(r"single_blocks.\d+.linear1.*(lora_B|lora_up).weight")
_FLUX = {7: "FLUX.1", 9: "FLUX.2"}
_FLUX_BLOCKS = re.compile(r"double_blocks|single_blocks|single_transformer_blocks")
#: Blocks of two streams, which several models name alike.
_JOINT = re.compile(r"transformer_blocks.(\d+).attn.add_q_proj.*(lora_A|lora.down).weight")
_SD_3_WIDTHS = (1536, 2432)
#: FLUX.1 has 19 such blocks, Qwen-Image 60.
_FLUX_1_BLOCKS = 19
#: The width of the text states that the attention of a UNet reads.
_WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "Stable Diffusion XL",
    1280: "the refiner of Stable Diffusion XL",
}
_READS_TEXT = re.compile(r"attn2[._](processor[._])?to_[kv]")
_FIRST = re.compile(r"(lora_A|lora[._]down|lora\.down|_lora\.down)\.weight$")


def looks_like(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The model that an adapter is for, as people call it; ``None`` where nothing tells.

    Args:
        shapes: The names of the file's tensors, and their shapes.
    """
    for pattern, name in _NAMES.items():
        if any(re.search(pattern, key) for key in shapes):
            return name
    if any(_FLUX_BLOCKS.search(key) for key in shapes):
        return _flux(shapes)
    joint = {int(m[1]): shapes[m.string] for m in map(_JOINT.search, shapes) if m is not None}
    if joint:
        if joint[max(joint)][-1] in _SD_3_WIDTHS:
            return "Stable Diffusion 3"
        return "FLUX.1" if max(joint) < _FLUX_1_BLOCKS else "Qwen-Image"
    for key, shape in shapes.items():
        if _READS_TEXT.search(key) and _FIRST.search(key) and len(shape) > 1:
            return _WIDTHS.get(shape[1])
    return None


def _flux(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """FLUX.1 or FLUX.2, whose fused layers have other proportions."""
    for key, shape in shapes.items():
        if _FUSED.search(key):
            down = key.replace("lora_B", "lora_A").replace("lora_up", "lora_down")
            width = shapes.get(down, shape)[-1]
            return _FLUX.get(shape[0] // width, "FLUX")
    return "FLUX"
