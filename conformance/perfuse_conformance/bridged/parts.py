"""What small random pipelines are made of: tokenizers, text encoders, autoencoders, pictures."""

import functools
from collections.abc import Callable
from typing import Any

from perfuse_conformance.cases.checkpoint_parts import WORDS, unet_config, vae_config

__all__ = [
    "PROMPT",
    "SIDE",
    "bert",
    "clip",
    "clip_vision",
    "clip_vision_config",
    "flow",
    "image_processor",
    "language_model",
    "mask",
    "picture",
    "qwen_vl",
    "seeded",
    "siglip",
    "t5",
    "tokenizer",
    "unet",
    "vae",
    "vae_of_eight",
    "video",
]

PROMPT = "a red circle on the white background"
#: Pictures are this wide and high.
SIDE = 32
_VOCABULARY = ("<pad>", "</s>", "<unk>", "<s>", *WORDS)


def seeded(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make a model with the same random weights wherever it is made: its graphs are then shared."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make(*args, **kwargs)

    return made


def tokenizer(*, start: bool = False, length: int = 16, chat: bool = False) -> Any:
    """A tokenizer of whole words that ends what it reads, and starts it if asked to.

    ``chat`` gives it a template for what a user and an assistant say, as language models have.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(_VOCABULARY)}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    single = f"{'<s> ' if start else ''}$A </s>"
    special = [(word, numbers[word]) for word in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        model_max_length=length,
        **({"chat_template": template} if chat else {}),
    )


def _sizes(hidden: int) -> dict[str, int]:
    return {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2}


@seeded
def clip(hidden: int = 32, *, projected: bool = False, **fields: Any) -> Any:
    """A CLIP text encoder; ``projected`` as the second one of SDXL is."""
    import transformers

    sizes = {**_sizes(hidden), "num_attention_heads": 4, "max_position_embeddings": 16}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    words = {"vocab_size": len(_VOCABULARY), "projection_dim": hidden}
    config = transformers.CLIPTextConfig(**{**sizes, **ends, **words, **fields})
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config)


def clip_vision_config(hidden: int = 32, **fields: Any) -> Any:
    """Of a CLIP image encoder for pictures of 32×32."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        **_sizes(hidden),
        **{
            "num_attention_heads": 4,
            "projection_dim": hidden,
            "image_size": SIDE,
            "patch_size": 8,
            **fields,
        },
    )


@seeded
def clip_vision(hidden: int = 32, **fields: Any) -> Any:
    """A CLIP image encoder for pictures of 32×32."""
    from transformers import CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(clip_vision_config(hidden, **fields))


@seeded
def siglip(hidden: int = 32) -> Any:
    """SigLIP's image encoder for pictures of 32×32."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        **_sizes(hidden), num_attention_heads=4, image_size=SIDE, patch_size=8
    )
    return SiglipVisionModel(config)


def image_processor() -> Any:
    """Prepares pictures for ``clip_vision``."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


@seeded
def t5(hidden: int = 32, *, multilingual: bool = False) -> Any:
    """A T5 encoder; ``multilingual`` is UMT5's, whose every layer has its own positions."""
    import transformers

    name = "UMT5" if multilingual else "T5"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(_VOCABULARY),
        d_model=hidden,
        d_kv=8,
        d_ff=2 * hidden,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    return getattr(transformers, f"{name}EncoderModel")(config)


@seeded
def bert(hidden: int = 32) -> Any:
    """A BERT encoder."""
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=len(_VOCABULARY), num_attention_heads=4, **_sizes(hidden))
    return BertModel(config)


@seeded
def language_model(family: str, kind: str, hidden: int = 32, **fields: Any) -> Any:
    """A language model of transformers: ``("Qwen3", "ForCausalLM")``. Two queries share a key."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        **_language(hidden),
        **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, **fields},
    )
    return getattr(transformers, f"{family}{kind}")(config)


def _language(hidden: int) -> dict[str, int]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4}
    return {**_sizes(hidden), **heads, "vocab_size": len(_VOCABULARY)}


@seeded
def qwen_vl(hidden: int = 32) -> Any:
    """Qwen2.5-VL, which reads text, and pictures where a pipeline gives it some."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        **_language(hidden),
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "pad_token_id": 0,
    }
    vision = {
        "depth": 2,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_heads": 4,
        "out_hidden_size": hidden,
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


@seeded
def unet(**fields: Any) -> Any:
    """Stable Diffusion's UNet with two levels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**unet_config(**fields))


@seeded
def vae(**fields: Any) -> Any:
    """An autoencoder whose latents are half as wide and high as pictures."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**vae_config(**fields))


def vae_of_eight(**fields: Any) -> Any:
    """An autoencoder whose latents are an eighth as wide and high, for pipelines that take that as given."""
    levels = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 8}
    levels |= {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    return vae(**{**levels, **fields})


def flow(**fields: Any) -> Any:
    """The scheduler of rectified flows."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**fields)


def picture(side: int = SIDE, seed: int = 0) -> Any:
    """A picture of noise."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask(side: int = SIDE) -> Any:
    """A mask whose left half is to be drawn anew."""
    import numpy as np
    from PIL import Image

    pixels = np.zeros((side, side), dtype=np.uint8)
    pixels[:, : side // 2] = 255
    return Image.fromarray(pixels)


def video(frames: int, side: int = SIDE) -> list[Any]:
    """Pictures of noise, one after another."""
    return [picture(side, seed) for seed in range(frames)]
