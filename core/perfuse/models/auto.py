"""``AutoModel``: a model of whichever class its ``config.json`` names."""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perfuse.errors import CheckpointError
from perfuse.models.registry import model_class
from perfuse.sources.model_index import CONFIG, read_json

__all__ = ["AutoModel"]


class AutoModel:
    """Loads one model of a checkpoint without its class being named."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError("AutoModel loads models of other classes: use AutoModel.from_pretrained.")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        **settings: Any,
    ) -> Any:
        """Load a model of the class that its config names; Diffusers' own where perfuse has none.

        Args:
            pretrained_model_or_path: A component's folder, or with ``subfolder`` a checkpoint's
                folder or a Hub id.
            subfolder: The component's folder in it.
            **settings: As of the models' own ``from_pretrained``.

        Raises:
            CheckpointError: there is no such model, or no class of this name.
            WeightsError: tensors are missing, unexpected, misshapen or damaged.
        """
        from perfuse.models.loading import component_folder

        folder = component_folder(pretrained_model_or_path, subfolder, settings)
        config = read_json(Path(folder) / CONFIG)
        named = config.get("_class_name") or next(iter(config.get("architectures", ())), None)
        kind = model_class(named) if named is not None else None
        if kind is None and named is not None and find_spec("diffusers") is not None:
            kind = getattr(import_module("diffusers"), named, None)
        if kind is None:
            raise CheckpointError(
                f"{folder} holds a {named!r}, which neither perfuse nor Diffusers, if it is installed, "
                "has a model of. Load it with the library that it is of, and set it on a pipeline."
            )
        return kind.from_pretrained(folder, **settings)
