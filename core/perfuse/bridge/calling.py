"""What a pipeline of Diffusers takes, by name, and calling it: a plain one or a modular one."""

import inspect
from collections.abc import Mapping
from typing import Any

__all__ = ["call_by_name", "inputs_of"]

#: What a modular pipeline is asked for, as far as its blocks make it.
_MADE = ("images", "videos", "frames", "audio", "audios")


def inputs_of(pipe: Any) -> dict[str, Any]:
    """The names of the inputs that a pipeline takes, each with its default."""
    if _is_modular(pipe):
        inputs = {one.name: one.default for one in pipe.blocks.inputs if one.name is not None}
        return inputs | {"output": None}
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    return {one.name: one.default for one in parameters if one.name not in ("self", "kwargs")}


def call_by_name(pipe: Any, inputs: Mapping[str, Any]) -> Any:
    """Call a pipeline. A modular one is asked for what it makes: pictures, videos, sound."""
    if not _is_modular(pipe) or inputs.get("output") is not None:
        return pipe(**inputs)
    made = {one.name for one in pipe.blocks.outputs}
    return pipe(**{**inputs, "output": [name for name in _MADE if name in made] or sorted(made)})


def _is_modular(pipe: Any) -> bool:
    return callable(getattr(pipe, "load_components", None)) and hasattr(pipe, "blocks")
