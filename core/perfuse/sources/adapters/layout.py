"""How files of adapters name their tensors: which part of a pipeline, which layer, which factor.

Three ways are known, and their tensors may be mixed with none of another:

- Diffusers' and PEFT's: ``unet.down_blocks.0.….to_q.lora_A.weight``, before that
  ``….to_q.lora.down.weight`` and ``….attn1.processor.to_q_lora.down.weight``;
- kohya's, LyCORIS's and OneTrainer's: ``lora_unet_down_blocks_0_…_to_q.lora_down.weight``, with
  ``alpha``;
- ComfyUI's, and that of those who publish models: ``diffusion_model.input_blocks.1.….to_q.lora_up.weight``,
  ``double_blocks.0.img_attn.qkv.lora_A.weight``, and with processors as XLabs writes them,
  ``double_blocks.0.processor.qkv_lora1.down.weight``.

A layer may have the name that the model of another layout has for it: its architecture knows them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DENOISER", "T5", "Key", "read_key"]

#: Stands for the part that is the pipeline's denoiser, whatever its name.
DENOISER = "denoiser"
#: Stands for the last text encoder: of three, or of FLUX.1's two, files call it the third.
T5 = "t5"

#: How a key may begin, and the part that this names.
_PARTS: Mapping[str, str] = {
    "lora_unet_": DENOISER,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": T5,
    "lora_transformer_": DENOISER,
    "lycoris_": DENOISER,
    "diffusion_model.": DENOISER,
    "model.diffusion_model.": DENOISER,
    "base_model.model.": DENOISER,
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": T5,
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
}
#: How a key may end, and the factor that this names.
_FACTORS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "lora_A.weight",
            "lora_A.default.weight",
            "lora.down.weight",
            "lora_down.weight",
            "lora_linear_layer.down.weight",
        ),
        "down",
    ),
    **dict.fromkeys(
        (
            "lora_B.weight",
            "lora_B.default.weight",
            "lora.up.weight",
            "lora_up.weight",
            "lora_linear_layer.up.weight",
        ),
        "up",
    ),
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    **{name: name for kind in ("hada_w1", "hada_w2") for name in (f"{kind}_a", f"{kind}_b")},
    **{name: name for name in ("hada_t1", "hada_t2", "lokr_t2")},
    **{name: name for kind in ("lokr_w1", "lokr_w2") for name in (kind, f"{kind}_a", f"{kind}_b")},
}
#: Before 2023, Diffusers' attention processors held their own layers, ``processor.to_q_lora.down``; XLabs'
#: have two of a kind, for the picture and for the text.
_OLD = re.compile(
    r"(.+?)(?:\.processor)?\.(to_q|to_k|to_v|to_out|qkv|proj)_lora(\d?)\.(down|up)\.weight"
)


@dataclass(frozen=True, kw_only=True)
class Key:
    """What the name of a tensor says."""

    #: ``DENOISER``, or the name of a text encoder.
    part: str
    #: The layer, with ``_`` for every ``.``, as kohya writes it.
    layer: str
    #: The layer as the file writes it.
    name: str
    #: ``"down"``, ``"alpha"``, ``"hada_w1_a"`` …
    factor: str


def read_key(name: str) -> Key | None:
    """What the name of a tensor says; ``None`` for one that says nothing known."""
    start = next((start for start in _PARTS if name.startswith(start)), "")
    part, rest = _PARTS.get(start, DENOISER), name.removeprefix(start)
    if old := _OLD.fullmatch(rest):
        name = f"{old[1]}.{old[2]}{old[3]}"
        return Key(part=part, layer=_flat(name), name=name, factor=old[4])
    for end, factor in _FACTORS.items():
        if rest.endswith(f".{end}"):
            layer = rest.removesuffix(f".{end}").replace(".processor.", ".")
            return Key(part=part, layer=_flat(layer), name=layer, factor=factor)
    return None


def _flat(layer: str) -> str:
    return layer.replace(".", "_")
