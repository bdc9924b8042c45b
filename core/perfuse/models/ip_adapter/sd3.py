"""IP-Adapters of Stable Diffusion 3: each attention of the picture looks at itself and at images again.

InstantX 2024 (https://huggingface.co/InstantX/SD3.5-Large-IP-Adapter). The resampler is told the timestep,
so it is part of the denoiser.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim
from perfuse.errors import InputError
from perfuse.models.ip_adapter.description import LENGTHS, ImageAdapter, check_made_for
from perfuse.models.ip_adapter.prompting import Attach, Prompting, finite_scale, with_inputs
from perfuse.models.registry import attentions
from perfuse.models.shapes import floating
from perfuse.sources.model_index import PROCESSOR, read_json

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SD3"]


class _SD3(Prompting):
    """One adapter, with keys and values for each attention, also the second ones of dual blocks."""

    weight_name: ClassVar[str] = "ip-adapter.safetensors"
    scale: ClassVar[float] = 0.5
    most: ClassVar[int] = 1
    encoder_files: ClassVar[tuple[str, ...]] = (*Prompting.encoder_files, PROCESSOR)

    def described(self, spec: ComponentSpec, adapters: Sequence[ImageAdapter]) -> ComponentSpec:
        """The denoiser with inputs for an image's states and the adapter's scales."""
        found, inputs, dims = attentions(spec), [], dict[str, Dim]()
        assert found is not None
        layers = len(found.each)
        for i, adapter in enumerate(adapters):
            check_made_for(adapter, spec, ("timed",), layers, found.width)
            length = f"ip_length_{i}"
            inputs += [
                floating(f"ip_states_{i}", "batch", length, adapter.inputs),
                floating(f"ip_scales_{i}", 1, layers),
            ]
            dims[length] = Dim(example=LENGTHS[i])
        return with_inputs(spec, inputs, dims)

    def projections(self, adapters: Sequence[ImageAdapter]) -> tuple[ComponentSpec, ...]:
        return ()

    @property
    def attach(self) -> Attach:
        from perfuse.models.ip_adapter.sd3_network import attached

        return attached

    def scales(self, scale: Any, spec: ComponentSpec, count: int) -> tuple[Any, ...]:
        """One number."""
        if isinstance(scale, list | tuple | Mapping):
            raise InputError(f"The IP-Adapter of Stable Diffusion 3 has one scale; got {scale!r}.")
        return ((finite_scale(scale),),) * count

    def image_encoder(self, folder: Path) -> "nn.Module":
        from perfuse.models.siglip_vision.network import load

        return load(folder)

    def processor(self, size: int, folder: Path | None) -> Mapping[str, Any]:
        """SigLIP's, as the file beside the encoder says; the whole picture, made square, without one."""
        if folder is not None and (folder / PROCESSOR).is_file():
            return read_json(folder / PROCESSOR)
        kind = "SiglipImageProcessor"
        return {"image_processor_type": kind, "size": {"height": size, "width": size}}


SD3 = _SD3()
