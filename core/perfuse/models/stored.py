"""The tensors that a checkpoint of a class and a config has, seen on a model without content."""

import importlib

from perfuse.contract.spec import ComponentSpec
from perfuse.errors import InputError
from perfuse.models.registry import find, network
from perfuse.sources.plain import to_plain

__all__ = ["stored_shapes"]


def stored_shapes(spec: ComponentSpec) -> dict[str, tuple[int, ...]]:
    """Tensors' names and shapes; of a tensor that has several names the first.

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
    return {n: tuple(one.shape) for n, one in state.items() if seen.setdefault(id(one), n) == n}
