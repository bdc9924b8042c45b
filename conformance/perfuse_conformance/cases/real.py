"""Real checkpoints, as far as their configs go: ``real.json``, and a folder of one without weights.

Each model says where its config was taken from; a number that no source confirms is named there.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from perfuse_conformance.cases.checkpoint_parts import write_json

__all__ = ["REAL", "write_configs"]

#: In place of the chat template of Qwen's tokenizers, which is longer, and says the same of a prompt.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: ``preprocessor_config.json`` of Qwen 2.5 VL.
_SEEING = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@cache
def _known() -> dict[str, Any]:
    text = Path(__file__).with_name("real.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


#: The names of the checkpoints: ``"z-image-turbo"``.
REAL: tuple[str, ...] = tuple(_known()["pipelines"])


def write_configs(folder: Path, name: str) -> Path:
    """Write a checkpoint's configs, as one that was downloaded without its weights has them.

    Args:
        folder: Where to write.
        name: One of ``REAL``.

    Returns:
        The folder.
    """
    pipeline = _known()["pipelines"][name]
    index: dict[str, Any] = {"_class_name": pipeline["class"], **pipeline.get("index", {})}
    for part, model in pipeline["models"].items():
        found = _known()["models"][model]
        write_json(folder / part / "config.json", found["config"])
        index[part] = ["transformers" if "encoder" in part else "diffusers", found["class"]]
    for part, class_name in pipeline["tokenizers"].items():
        kind = "Qwen2Tokenizer" if part == "processor" else class_name
        settings = {"tokenizer_class": kind, "chat_template": _TEMPLATE}
        write_json(folder / part / "tokenizer_config.json", settings)
        if part == "processor":
            write_json(folder / part / "preprocessor_config.json", _SEEING)
        index[part] = ["transformers", class_name]
    write_json(folder / "scheduler" / "scheduler_config.json", pipeline["scheduler"])
    index["scheduler"] = ["diffusers", pipeline["scheduler"]["_class_name"]]
    write_json(folder / "model_index.json", index)
    return folder
