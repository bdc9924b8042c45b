"""Which tensors of a language model's checkpoint each of its components reads, without torch."""

import re
from collections.abc import Iterable

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.models.language_model.description import LAST, layers_of
from perfuse.sources.fitting import Rename

__all__ = ["aliases", "reads", "stored_names"]

#: What may stand before the names of its layers, by Transformers' class and version.
_BEFORE = ("language_model.model", "model.language_model", "language_model", "model")
_PREFIX = re.compile(rf"^({'|'.join(map(re.escape, _BEFORE))})\.")
_OTHER = re.compile(r"^(model\.)?(lm_head|visual)\.")
_EYES = re.compile(r"^(model\.)?visual\.")
_LAYER = re.compile(r"layers\.(\d+)\.")


def aliases(layers: Iterable[str]) -> dict[str, str]:
    """What files of adapters call its layers: as the class that was trained does."""
    return {f"{before}.{layer}": layer for layer in layers for before in _BEFORE}


def reads(spec: ComponentSpec, name: str) -> bool:
    """Whether a component reads a stored tensor: eyes and text encoder share a folder."""
    return stored_names(spec)(name) is not None


def stored_names(spec: ComponentSpec) -> Rename:
    """A stored tensor's name in the module; ``None`` for the head, eyes or text, and layers left out."""
    if spec.role == Role.IMAGE_ENCODER:
        return _of_eyes
    depth, normed = max(layers_of(spec)), LAST in spec.signature.output_names

    def rename(stored: str) -> str | None:
        if _OTHER.match(stored):
            return None
        name = _PREFIX.sub("", stored)
        layer = _LAYER.match(name)
        above = int(layer[1]) >= depth if layer else name == "norm.weight" and not normed
        return None if above else name

    return rename


def _of_eyes(stored: str) -> str | None:
    found = _EYES.match(stored)
    return stored[found.end() :] if found else None
