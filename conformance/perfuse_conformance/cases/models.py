"""The models that the suite brings: small random ones of each family, made in the cache."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from perfuse.sources import ArtifactStore, tool_versions

__all__ = ["RANDOM_MODELS", "path_of"]

#: What ``--model`` may name besides a checkpoint, and the kind that it is. Their pictures mean
#: nothing; their numbers tell as much as a trained model's, and every weight is different from zero.
RANDOM_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "random-sd": "sd1",
        "random-sd-checked": "sd1-checked",
        "random-sd2": "sd2",
        "random-sdxl": "sdxl",
        "random-lcm": "lcm",
        "random-ddpm": "ddpm",
        "random-control": "control",
        "random-union": "union",
    }
)


def path_of(model: str | None) -> str | None:
    """The folder of one of ``RANDOM_MODELS``, made the first time; anything else as it is."""
    if model == "shapes":
        return None
    if model is None or model not in RANDOM_MODELS or Path(model).exists():
        return model

    kind = RANDOM_MODELS[model]

    def make(partial: Path) -> None:
        from perfuse_conformance.cases.checkpoints import make_checkpoint

        make_checkpoint(partial, kind)

    key = {"kind": kind, "tools": tool_versions(("perfuse", "torch"))}
    return str(ArtifactStore.default().get_or_make(model, key, make))
