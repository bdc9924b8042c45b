"""PEFT's settings, as Diffusers notes them in a file and PEFT beside one: the factor of each change."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfuse.contract.frozen import FrozenDict
from perfuse.errors import WeightsError
from perfuse.sources.files import read_json

__all__ = ["PEFT_FILE", "PEFT_SETTINGS", "Settings"]

#: The entry of the metadata.
_ENTRY = "lora_adapter_metadata"
#: The two files that PEFT's ``save_pretrained`` writes into a folder.
PEFT_FILE, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
#: What PEFT's kinds call the number that a change is multiplied by, before it is divided by the rank.
_ALPHA = {"LORA": "lora_alpha", "LOHA": "alpha"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """PEFT's settings by part and name: ``{"unet.lora_alpha": 8}``; empty where none are noted."""

    values: Mapping[str, Any] = field(default_factory=FrozenDict)

    @classmethod
    def of(cls, metadata: Mapping[str, str], *, where: str) -> "Settings":
        """Those in the metadata of a file.

        Raises:
            WeightsError: the entry is damaged.
        """
        try:
            values = json.loads(metadata.get(_ENTRY, "{}"))
            return cls(values=FrozenDict(values))
        except (ValueError, TypeError, RecursionError) as exc:
            raise WeightsError(
                f"{where} has settings in its metadata that cannot be read: {exc}. Save it again."
            ) from exc

    @classmethod
    def beside(cls, file: Path, part: str) -> "Settings":
        """Those that PEFT wrote beside a file of its own, for the one part that it is of.

        Raises:
            WeightsError: they cannot be read, or are those of a kind that is not read.
        """
        place = file.with_name(PEFT_SETTINGS)
        if file.name != PEFT_FILE or not place.exists():
            return cls()
        noted = read_json(place, error=WeightsError)
        kind = noted.get("peft_type")
        if kind not in _ALPHA:
            raise WeightsError(
                f"{place} says that {file.name} is of the kind {kind!r}; {', '.join(_ALPHA)} are read "
                "from PEFT's folders. Save it in LyCORIS's layout, or merge it into a checkpoint."
            )
        values = {f"{part}.{name}": value for name, value in noted.items() if value is not None}
        values[f"{part}.lora_alpha"] = noted.get(_ALPHA[kind])
        return cls(values=FrozenDict(values))

    def scale(self, part: str, layer: str, rank: int) -> float:
        """``alpha / rank`` of a layer, or ``alpha / √rank`` (rsLoRA, arXiv:2312.03732); 1 by default.

        Raises:
            WeightsError: it is no number.
        """
        alpha = self.values.get(f"{part}.lora_alpha", rank)
        for pattern, value in (self.values.get(f"{part}.alpha_pattern") or {}).items():
            if layer == pattern.removeprefix("^") or _matches(pattern, layer):
                alpha = value
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise WeightsError(f"The alpha of {part}.{layer} is {alpha!r}, which is no number.")
        rooted = bool(self.values.get(f"{part}.use_rslora"))
        return alpha / (math.sqrt(rank) if rooted else rank)


def _matches(pattern: str, layer: str) -> bool:
    """Whether a pattern of PEFT's means a layer: the end of its name, as a regular expression."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", layer) is not None
    except re.error:
        return False
