"""Language models and their tokenizers for small random checkpoints."""

from pathlib import Path
from typing import Any

from perfuse_conformance.cases.checkpoint_parts import WORDS, byte_codes, randomise, write_json

__all__ = [
    "write_gemma_tokenizer",
    "write_language_model",
    "write_language_tokenizer",
    "write_qwen3_vl",
    "write_qwen_vl",
    "write_qwen_vl_processor",
    "write_vision_processor",
]

_END, _TURN, _TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_OF_PICTURES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
#: Two turns as models of the Qwen family have them, and a setting that a pipeline gives.
_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)


#: The same for messages whose content is in parts.
_IN_PARTS = _TEMPLATE.replace("message.content", "message.content[0].text")


def write_language_tokenizer(folder: Path, *, template: bool = True, eyes: bool = False) -> int:
    """Write Qwen's ``vocab.json`` and ``merges.txt``, all bytes and a few words; return its size.

    With ``eyes``, the last token stands for a state of a picture.
    """
    vocab = [chr(code) for code in byte_codes()]
    merges = []
    for word in (*WORDS, *(f"Ġ{word}" for word in WORDS)):
        left = word[0]
        for letter in word[1:]:
            if left + letter not in vocab:
                merges.append(f"{left} {letter}")
                vocab.append(left + letter)
            left += letter
    special = (_END, _TURN, _TURN_END, *(_OF_PICTURES if eyes else ()))
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocab)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    added = {
        str(len(vocab) + i): {"content": token, "special": True, "normalized": False}
        for i, token in enumerate(special)
    }
    config: dict[str, Any] = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 512,
        "added_tokens_decoder": added,
        "eos_token": _TURN_END,
        "pad_token": _END,
        "unk_token": None,
    }
    config |= {"chat_template": _TEMPLATE} if template else {}
    write_json(folder / "tokenizer_config.json", config)
    return len(vocab) + len(special)


def write_gemma_tokenizer(folder: Path) -> int:
    """Write Gemma's ``tokenizer.json``, all letters and a few words; return its size."""
    import tokenizers
    from tokenizers import decoders, normalizers, processors

    named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    special, space = list(named.values()), "\N{LOWER ONE EIGHTH BLOCK}"
    vocab = [*special, *(chr(code) for code in range(33, 127)), space, "\n"]
    merges = []
    for word in (*WORDS, *(space + word for word in WORDS)):
        left = word[0]
        for letter in word[1:]:
            if left + letter not in vocab:
                merges.append((left, letter))
                vocab.append(left + letter)
            left += letter
    table = {token: i for i, token in enumerate(vocab)}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(table, merges, unk_token="<unk>", fuse_unk=True)
    )
    made.normalizer = normalizers.Replace(" ", space)
    made.decoder = decoders.Replace(space, " ")
    ends = [("<bos>", table["<bos>"])]
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=ends)
    made.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "GemmaTokenizerFast", "model_max_length": 2048}
    config |= {"padding_side": "left", "add_bos_token": True}
    write_json(folder / "tokenizer_config.json", {**config, **named})
    return len(vocab)


def write_language_model(
    folder: Path, family: str, kind: str, vocab_size: int, seed: int, **fields: Any
) -> None:
    """A language model of Transformers', ``("Qwen3", "ForCausalLM")``; two queries share a key."""
    import transformers

    settings = getattr(transformers, f"{family}Config")(**{**_sizes(vocab_size), **fields})
    model = getattr(transformers, f"{family}{kind}")(settings)
    randomise(model, seed).save_pretrained(folder)


def write_qwen_vl(folder: Path, vocab_size: int, seed: int, *, eyes: bool = False) -> None:
    """Qwen 2.5 VL; without ``eyes`` it reads text alone, although it has them."""
    import transformers

    turned = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    ends = {"bos_token_id": None, "eos_token_id": None}
    text = {**_sizes(vocab_size), "rope_parameters": turned, **ends}
    seeing: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
    }
    if eyes:  # windows of four by four patches, but for the second layer
        text |= {"max_position_embeddings": 1024}
        seeing |= {"depth": 3, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}
    settings = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**seeing, "out_hidden_size": 32},
        image_token_id=vocab_size - 1,
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(settings)
    randomise(model, seed).save_pretrained(folder)


def write_qwen_vl_processor(folder: Path) -> int:
    """Write the processor of Qwen 3 VL, whose folder holds a tokenizer; return that's size."""
    size = write_language_tokenizer(folder, template=False, eyes=True)
    (folder / "chat_template.jinja").write_text(_IN_PARTS, "utf-8")
    write_vision_processor(folder, most=4096)
    return size


def write_qwen3_vl(folder: Path, vocab_size: int, seed: int) -> None:
    """Qwen 3 VL, whose eyes have three layers, and give details of the first two."""
    import transformers

    turned = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]}
    eyes: dict[str, Any] = {"depth": 3, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    eyes |= {"patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    settings = transformers.Qwen3VLConfig(
        text_config={
            **_sizes(vocab_size),
            "max_position_embeddings": 1024,
            "rope_parameters": {**turned, "mrope_interleaved": True},
        },
        vision_config={**eyes, "out_hidden_size": 32},
        image_token_id=vocab_size - 1,
    )
    model = transformers.Qwen3VLForConditionalGeneration(settings)
    randomise(model, seed).save_pretrained(folder)


def write_vision_processor(folder: Path, *, most: int = 1024) -> None:
    """Write the ``preprocessor_config.json`` of eyes: at most 32 by 32 pixels, or their like."""
    config = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": 256,
        "max_pixels": most,
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    write_json(folder / "preprocessor_config.json", config)


def _sizes(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
