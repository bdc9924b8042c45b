"""The tensors that a checkpoint of a class and a config has, seen on a model without content."""

import importlib
from typing import Any

from perfuse.contract.spec import ComponentSpec
from perfuse.errors import InputError
from perfuse.models.registry import find, network
from perfuse.sources.plain import to_plain

__all__ = ["stored_tensors"]


def stored_tensors(spec: ComponentSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors' names, dtypes and shapes; of a tensor that has several names the first.

    Whatever is floating is ``float32``: that depends on how a checkpoint was saved.

    Raises:
        CheckpointError: the class is unknown.
        InputError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as exc:
        raise InputError(
            f"The tensors of {spec.name} were to be counted from its config; that needs torch, which "
            "is not installed. Run: pip install 'perfuse[torch]'"
        ) from exc

    kind = network(spec.class_name)
    with torch.device("meta"):
        if kind is not None:
            model = kind.from_config(spec.config)
        else:
            library = importlib.import_module(find(spec.class_name, asked=spec.name).library)
            kind = getattr(library, spec.class_name)
            model = kind(kind.config_class.from_dict(to_plain(spec.config)))
    seen: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {
        name: (_dtype(one), tuple(one.shape))
        for name, one in state.items()
        if seen.setdefault(id(one), name) == name
    }


def _dtype(tensor: Any) -> str:
    return "float32" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
