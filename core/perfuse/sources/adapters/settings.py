"""What Diffusers notes of PEFT's settings in a file: the factor of each layer's change."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfuse.contract.frozen import FrozenDict
from perfuse.errors import WeightsError

__all__ = ["Settings"]

#: The entry of the metadata.
_ENTRY = "lora_adapter_metadata"


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
