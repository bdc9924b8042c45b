"""Which model an adapter looks to be made for, by the names and shapes of its tensors."""

import re
from collections.abc import Mapping

__all__ = ["looks_like"]

#: What a name has in it that no other model's has.
_NAMES: Mapping[str, str] = {
    r"double_blocks|single_blocks|single_transformer_blocks": "Flux",
    r"joint_blocks|context_block|attn.add_q_proj": "Stable Diffusion 3",
    r"img_mlp|txt_mlp": "Qwen-Image",
    r"adaLN_modulation.*noise_refiner|noise_refiner": "Z-Image or Lumina",
    r"cross_attn.*ffn|blocks_\d+_cross_attn|blocks\.\d+\.cross_attn": "Wan",
    r"lora_prior_|(down|decoder)_blocks_\d+_\d+_attention": "Stable Cascade",
    r"temporal_transformer|motion_modules": "AnimateDiff",
}
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
    for key, shape in shapes.items():
        if _READS_TEXT.search(key) and _FIRST.search(key) and len(shape) > 1:
            return _WIDTHS.get(shape[1])
    return None
