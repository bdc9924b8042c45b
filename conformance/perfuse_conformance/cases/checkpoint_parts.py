"""What small random checkpoints are made of: configs, models, tokenizers, files.

Every parameter is drawn at random, those that models start with zeros or ones included: a zero
hides what it multiplies. The same seed gives the same files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "WORDS",
    "adapter_config",
    "byte_codes",
    "controlnet_config",
    "ddpm_config",
    "dpt_config",
    "edit_json",
    "randomise",
    "unet_config",
    "union_config",
    "vae_config",
    "write_bert",
    "write_bert_words",
    "write_checker",
    "write_json",
    "write_model",
    "write_processor",
    "write_t5",
    "write_text_encoder",
    "write_tokenizer",
    "write_word_pieces",
]

WORDS = ["a", "the", "red", "green", "blue", "circle", "square", "on", "white", "background"]
_START, _END = "<|startoftext|>", "<|endoftext|>"


def randomise(module: Any, seed: int = 0) -> Any:
    """Draw every parameter anew, in the order of the state dict, at a scale that keeps signals."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                one = "norm" in name and name.endswith("weight")
                parameter.copy_((1.0 if one else 0.0) + 0.1 * noise)
    return module.eval()


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; ``...`` takes one out."""
    value = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {name: item for name, item in value.items() if item is not ...})


def unet_config(**fields: Any) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        **fields,
    }


def controlnet_config(unet: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A ControlNet for a UNet of this config; the checkpoints here have two pixels a latent."""
    kept = {n: value for n, value in unet.items() if n not in ("sample_size", "up_block_types")}
    return {**kept, "conditioning_embedding_out_channels": [8, 16], **fields}


def union_config(unet: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A ControlNet-Union for a UNet of this config."""
    width = unet["block_out_channels"][0]
    sizes = {"num_trans_channel": width, "num_proj_channel": width, "num_trans_head": 4}
    return {**controlnet_config(unet), **sizes, **fields}


def adapter_config(**fields: Any) -> dict[str, Any]:
    return {"channels": [32, 64], "num_res_blocks": 1, "downscale_factor": 2, **fields}


def dpt_config(**fields: Any) -> dict[str, Any]:
    """A hybrid DPT, as Stable Diffusion 2's depth model has it, for pictures of 64x64."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
        "is_hybrid": True,
        "backbone_out_indices": [0, 1, 2, 3],
        "reassemble_factors": [1, 1, 1, 0.5],
        "neck_hidden_sizes": [16, 32, 32, 32],
        "fusion_hidden_size": 16,
        "backbone_featmap_shape": [1, 64, 4, 4],
        "backbone_config": {
            "model_type": "bit",
            "embedding_size": 8,
            "hidden_sizes": [16, 32, 64, 128],
            "depths": [1, 2, 1],
            "num_groups": 2,
            "layer_type": "bottleneck",
            "global_padding": "same",
            "embedding_dynamic_padding": True,
            "out_features": ["stage1", "stage2", "stage3"],
        },
        **fields,
    }


def vae_config(**fields: Any) -> dict[str, Any]:
    return {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [16, 32],
        "norm_num_groups": 8,
        "sample_size": 16,
        **fields,
    }


def ddpm_config(**fields: Any) -> dict[str, Any]:
    return {
        "sample_size": 16,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        **fields,
    }


def write_checker(folder: Path, *, seed: int = 0, threshold: float = 1.0) -> Path:
    """Add a safety checker and its image processor to a checkpoint; pictures are 24×24 for it.

    ``threshold`` is the middle of what a cosine is compared with: at 1 nothing is objected to.
    """
    import torch

    import perfuse.models

    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 24,
        "patch_size": 8,
    }
    kind: Any = perfuse.models.StableDiffusionSafetyChecker
    checker = randomise(kind(projection_dim=16, vision_config=vision), seed)
    with torch.no_grad():
        for parameter in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
            parameter += threshold
    checker.save_pretrained(folder / "safety_checker")
    write_processor(folder)
    edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )
    return folder


def write_processor(folder: Path, size: int = 24) -> None:
    """Add to a checkpoint the image processor of what looks at pictures of this size."""
    processor: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor"}
    processor |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    write_json(folder / "feature_extractor" / "preprocessor_config.json", processor)


def write_model(folder: Path, class_name: str, config: Mapping[str, Any], seed: int) -> None:
    import perfuse.models

    model = getattr(perfuse.models, class_name)(**config)
    randomise(model, seed).save_pretrained(folder)


def write_text_encoder(
    folder: Path, class_name: str, vocab_size: int, seed: int, **fields: Any
) -> None:
    import transformers

    config = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,  # as in SD 1's config: the highest id of a prompt ends it
        "pad_token_id": 1,
        **fields,
    }
    if config["eos_token_id"] is None:
        config |= {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1}
    model = getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))
    randomise(model, seed).save_pretrained(folder)


def write_tokenizer(folder: Path, *, pad_token: str = _END) -> int:
    """Write CLIP's ``vocab.json`` and ``merges.txt``, all bytes and a few words; return its size."""
    letters = [chr(code) for code in byte_codes()]
    vocab = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], 1):
            right = letter + "</w>" if i == len(word) - 1 else letter
            if left + right not in vocab:
                merges.append(f"{left} {right}")
                vocab.append(left + right)
            left += right
    vocab += [_START, _END]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocab)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    names = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": pad_token}
    write_json(folder / "special_tokens_map.json", names)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", {**config, **names})
    return len(vocab)


def write_t5(
    folder: Path, vocab_size: int, seed: int, *, family: str = "T5", **fields: Any
) -> None:
    """Write an encoder of T5's version 1.1, or of UMT5, whose states are 32 wide."""
    import transformers

    config = {
        "vocab_size": vocab_size,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "feed_forward_proj": "gated-gelu",
        **fields,
    }
    settings = getattr(transformers, f"{family}Config")(**config)
    model = getattr(transformers, f"{family}EncoderModel")(settings)
    randomise(model, seed).save_pretrained(folder)


def write_bert(folder: Path, vocab_size: int, seed: int, **fields: Any) -> None:
    """Write a BERT, whose states are 24 wide."""
    import transformers

    config = {
        "vocab_size": vocab_size,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 80,
        **fields,
    }
    model = transformers.BertModel(transformers.BertConfig(**config))
    randomise(model, seed).save_pretrained(folder)


def write_bert_words(folder: Path) -> int:
    """Write ``vocab.txt`` of a BERT tokenizer, a few words and all letters; return its size."""
    letters = [chr(code) for code in range(33, 127)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocab += [one for one in letters if one not in vocab] + [f"##{one}" for one in letters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", "utf-8")
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", config)
    return len(vocab)


def write_word_pieces(folder: Path) -> int:
    """Write a T5 tokenizer, a few words and all letters; return its size."""
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers, processors

    special = ["<pad>", "</s>", "<unk>"]
    pieces = [(f"\N{LOWER ONE EIGHTH BLOCK}{word}", -2.0) for word in WORDS]
    letters = [(chr(code), -8.0) for code in range(33, 127)]
    vocab = [
        *((one, 0.0) for one in special),
        ("\N{LOWER ONE EIGHTH BLOCK}", -4.0),
        *pieces,
        *letters,
    ]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=2, byte_fallback=False))
    spaces = tokenizers.Regex(" {2,}")
    made.normalizer = normalizers.Sequence(
        [normalizers.Strip(left=False, right=True), normalizers.Replace(spaces, " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    ends = [("</s>", 1)]
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=ends)
    made.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", names)
    config = {"tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "extra_ids": 0}
    write_json(folder / "tokenizer_config.json", {**config, **names})
    return len(vocab)


def byte_codes() -> list[int]:
    """The characters by which GPT-2's byte-level BPE shows the 256 bytes, in CLIP's order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return shown + [256 + i for i in range(256 - len(shown))]
