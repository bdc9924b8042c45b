"""The autoencoder as CompVis' and Stability AI's files hold it."""

import re
from typing import Any

from perfuse.contract.original import Original, Shapes, View

__all__ = ["original"]

_PLACES = (
    (r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"(encoder|decoder)\.mid\.attn_1\.norm\.", r"\1.mid_block.attentions.0.group_norm."),
    (r"(encoder|decoder)\.mid\.attn_1\.([qkv])\.", r"\1.mid_block.attentions.0.to_\2."),
    (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.", r"\1.mid_block.attentions.0.to_out.0."),
    (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
)
_UP = re.compile(r"decoder\.up\.(\d+)\.(block|upsample)\.")
_DOWN = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight")
#: What training stored beside the model: the discriminator and the perceptual metric.
_TRAINING = ("loss.", "model_ema.")


def original(name: str, shapes: Shapes) -> Original | None:
    """An autoencoder of Stable Diffusion; its scaling factor is in no tensor."""
    known = {"decoder.conv_in.weight", "decoder.mid.block_1.conv1.weight"}
    if name != "vae" or not known <= shapes.keys():
        return None
    kept = {key: shape for key, (_, shape) in shapes.items() if not key.startswith(_TRAINING)}
    levels = {int(match[1]) for key in kept if (match := _UP.match(key))}
    views = {}
    for key, shape in kept.items():
        # The linear layers of the attention are stored as convolutions of 1×1.
        flat = shape[:2] if ".mid.attn_1." in key and shape[2:] in ((1,), (1, 1)) else shape
        views[_renamed(key, len(levels))] = View(stored=key, shape=flat)
    return Original(config=_config(kept), views=views)


def _renamed(key: str, levels: int) -> str:
    """Diffusers' name; its decoder counts levels from the smallest picture to the largest."""

    def up(match: re.Match[str]) -> str:
        place = "resnets" if match[2] == "block" else "upsamplers.0"
        return f"decoder.up_blocks.{levels - 1 - int(match[1])}.{place}."

    key = _UP.sub(up, key)
    for pattern, place in _PLACES:
        key = re.sub(pattern, place, key)
    return key


def _config(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    blocks = [(int(m[1]), int(m[2]), shapes[m[0]][0]) for m in map(_DOWN.fullmatch, shapes) if m]
    widths = [width for _, _, width in sorted(block for block in blocks if block[1] == 0)]
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 1 + max(layer for _, layer, _ in blocks),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }
