"""Text encoders whose denoiser takes texts of one length, as descriptions, without torch."""

from collections.abc import Mapping
from dataclasses import replace

from perfuse.contract.spec import ComponentSpec, Role

__all__ = ["as_read"]


def as_read(spec: ComponentSpec, others: Mapping[str, ComponentSpec], states: str) -> ComponentSpec:
    """The text encoder with the number of tokens that its denoiser takes, if it takes no other.

    Args:
        spec: The text encoder.
        others: The components of its pipeline.
        states: What the denoiser calls its states, [batch, tokens, width].
    """
    for one in others.values():
        taken = one.signature.input(states) if one.role == Role.DENOISER else None
        if taken is not None and isinstance(taken.shape[1], int):
            return _fixed(spec, taken.shape[1])
    return spec


def _fixed(spec: ComponentSpec, length: int) -> ComponentSpec:
    return replace(
        spec,
        signature=spec.signature.resolve({"sequence": length}),
        dims={name: dim for name, dim in spec.dims.items() if name != "sequence"},
    )
