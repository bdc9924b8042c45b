"""IP-Adapters of FLUX.1 and Chroma: the picture's queries look at images, too.

XLabs 2024 (https://github.com/XLabs-AI/x-flux): what the blocks with two streams see of images is added
to the picture's tokens at their end, neither gated nor projected.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim
from perfuse.errors import InputError
from perfuse.models.ip_adapter.description import (
    LENGTHS,
    ImageAdapter,
    check_made_for,
)
from perfuse.models.ip_adapter.prompting import (
    Attach,
    Prompting,
    counts_of,
    finite_scale,
    with_inputs,
)
from perfuse.models.registry import attentions
from perfuse.models.shapes import floating

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FLUX"]


class _Flux(Prompting):
    """Adapters with keys and values for each block of two streams."""

    order: ClassVar[tuple[str, ...]] = (
        "weight_name",
        "subfolder",
        "image_encoder_pretrained_model_name_or_path",
        "image_encoder_subfolder",
    )

    def described(self, spec: ComponentSpec, adapters: Sequence[ImageAdapter]) -> ComponentSpec:
        """The denoiser with inputs for each adapter's tokens and scales.

        The tokens of an adapter's images stand beside each other.
        """
        text = spec.signature.input("encoder_hidden_states")
        assert text is not None
        width, layers, inputs, dims = int(text.shape[-1]), _blocks(spec), [], dict[str, Dim]()
        for i, adapter in enumerate(adapters):
            check_made_for(adapter, spec, ("plain",), layers, width)
            length = f"ip_length_{i}"
            inputs += [
                floating(f"ip_tokens_{i}", "batch", length, adapter.width),
                floating(f"ip_scales_{i}", 1, layers),
            ]
            dims[length] = Dim(example=LENGTHS[i])
        return with_inputs(spec, inputs, dims)

    @property
    def attach(self) -> Attach:
        from perfuse.models.ip_adapter.flux_network import attached

        return attached

    def scales(self, scale: Any, spec: ComponentSpec, count: int) -> tuple[Any, ...]:
        """A number for all; for one adapter a list by block; for several a list of either."""
        layers = _blocks(spec)
        if not isinstance(scale, list | tuple):
            return ((finite_scale(scale),),) * count
        by_block = count == 1 and not any(isinstance(one, list | tuple) for one in scale)
        each = [scale] if by_block else list(scale)
        counts_of(each, count)
        return tuple(_of_blocks(one, layers) for one in each)

    def image_encoder(self, folder: Path) -> "nn.Module":
        from perfuse.models.clip_vision.network import load

        return load(folder)


FLUX = _Flux()


def _blocks(spec: ComponentSpec) -> int:
    """How many blocks have two streams."""
    found = attentions(spec)
    assert found is not None
    return sum(one.joint for one in found.each)


def _of_blocks(scale: Any, layers: int) -> Any:
    """A number, or ``{"layers": (…)}``."""
    if not isinstance(scale, list | tuple):
        return (finite_scale(scale),)
    if len(scale) != layers:
        raise InputError(
            f"An IP-Adapter's scale has {len(scale)} numbers; the denoiser has {layers} blocks that look "
            "at images. Give one for each block, or one number."
        )
    return {"layers": tuple(finite_scale(one) for one in scale)}
