"""Helpers to write component descriptions."""

from typing import Any

from perfuse.contract.spec import TensorSpec

__all__ = ["TIMESTEP", "floating", "pair"]

#: The timestep input that every denoiser has.
TIMESTEP = TensorSpec(name="timestep", dtype="float32", shape=("batch",))


def floating(name: str, *shape: int | str) -> TensorSpec:
    """A tensor in the component's precision."""
    return TensorSpec(name=name, dtype="float", shape=shape)


def pair(size: Any) -> tuple[int, int] | None:
    """A config's ``sample_size``: one number for both, or height and width, or none."""
    if not size:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
