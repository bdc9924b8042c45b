"""What small random pipelines are made of: tokenizers, text encoders, autoencoders, pictures."""

from typing import Any

from perfuse_conformance.cases.checkpoint_parts import WORDS, unet_config, vae_config

__all__ = [
    "PROMPT",
    "SIDE",
    "clip",
    "clip_vision",
    "flow",
    "image_processor",
    "mask",
    "picture",
    "t5",
    "tokenizer",
    "unet",
    "vae",
    "video",
]

PROMPT = "a red circle on the white background"
#: Pictures are this wide and high.
SIDE = 32
#: Words beyond those of the prompt, so that templates of language models are not all unknown.
_VOCABULARY = ("<pad>", "</s>", "<unk>", "<s>", *WORDS)


def tokenizer(*, start: bool = False, length: int = 16, **fields: Any) -> Any:
    """A tokenizer of whole words that ends what it reads, and starts it if asked to."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(_VOCABULARY)}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    single = f"{'<s> ' if start else ''}$A </s>"
    special = [(word, numbers[word]) for word in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        model_max_length=length,
        **fields,
    )


def _sizes(hidden: int) -> dict[str, int]:
    return {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2}


def clip(hidden: int = 32, *, projected: bool = False, **fields: Any) -> Any:
    """A CLIP text encoder; ``projected`` as the second one of SDXL is."""
    import transformers

    config = transformers.CLIPTextConfig(
        **_sizes(hidden),
        num_attention_heads=4,
        projection_dim=hidden,
        vocab_size=len(_VOCABULARY),
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=3,
        **fields,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config)


def clip_vision(hidden: int = 32, **fields: Any) -> Any:
    """A CLIP image encoder for pictures of 32×32."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        **_sizes(hidden),
        **{
            "num_attention_heads": 4,
            "projection_dim": hidden,
            "image_size": SIDE,
            "patch_size": 8,
            **fields,
        },
    )
    return CLIPVisionModelWithProjection(config)


def image_processor() -> Any:
    """Prepares pictures for ``clip_vision``."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


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


def unet(**fields: Any) -> Any:
    """Stable Diffusion's UNet with two levels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**unet_config(**fields))


def vae(**fields: Any) -> Any:
    """An autoencoder whose latents are half as wide and high as pictures."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**vae_config(**fields))


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
