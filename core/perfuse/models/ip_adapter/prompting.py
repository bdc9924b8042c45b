"""How image prompts are added to a denoiser: what each kind of denoiser says of its adapters."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim, TensorSpec
from perfuse.errors import InputError
from perfuse.models.ip_adapter.description import LENGTHS, ImageAdapter, projection

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Attach", "Prompting", "counts_of", "finite_scale", "with_inputs"]

#: ``(module, names of its inputs, adapters) -> module``: a top-level function.
Attach = Callable[["nn.Module", tuple[str, ...], tuple[ImageAdapter, ...]], "nn.Module"]


class Prompting(ABC):
    """What a kind of denoiser says of the IP-Adapters that are made for it, without torch.

    Each adapter adds inputs to the denoiser, one of them ``ip_scales_N`` [groups, attentions]: how much
    each group of its images counts in each attention.
    """

    #: What Diffusers' ``load_ip_adapter`` takes by position after the model.
    order: ClassVar[tuple[str, ...]] = ("weight_name", "subfolder", "image_encoder_folder")
    #: The adapter's file where none is named.
    weight_name: ClassVar[str] = ""
    #: How much an adapter counts until another scale is set.
    scale: ClassVar[float] = 1.0
    #: The most adapters at once.
    most: ClassVar[int] = len(LENGTHS)
    #: What is read of an image encoder's folder.
    encoder_files: ClassVar[tuple[str, ...]] = ("model.safetensors", "config.json")

    @abstractmethod
    def described(self, spec: ComponentSpec, adapters: Sequence[ImageAdapter]) -> ComponentSpec:
        """The denoiser with inputs for each adapter.

        Raises:
            InputError: an adapter was made for another denoiser.
        """

    def projections(self, adapters: Sequence[ImageAdapter]) -> tuple[ComponentSpec, ...]:
        """The components that make tokens of images, one for each adapter; none if the denoiser does."""
        return tuple(projection(adapter, i) for i, adapter in enumerate(adapters))

    @property
    @abstractmethod
    def attach(self) -> Attach:
        """What puts adapters into the denoiser's flat module; it may change that.

        It raises ``InputError`` for a module of the user's that no adapter fits.
        """

    @abstractmethod
    def scales(self, scale: Any, spec: ComponentSpec, count: int) -> tuple[Any, ...]:
        """The scale of each of so many adapters, as Diffusers' ``set_ip_adapter_scale`` takes them.

        Returns:
            For each adapter numbers, one or one for each group of images, or ``{"layers": (…)}``, one for
            each attention.

        Raises:
            InputError: there are more or fewer, or they are no numbers.
        """

    @abstractmethod
    def image_encoder(self, folder: Path) -> "nn.Module":
        """The image encoder in a folder; its weights stay memory-mapped.

        Raises:
            CheckpointError: the folder or its config cannot be read.
            WeightsError: tensors are missing, unexpected, misshapen or damaged.
        """

    def processor(self, size: int, folder: Path | None) -> Mapping[str, Any]:
        """The settings of what makes pictures ready for an encoder that takes them of this size.

        Args:
            size: The side of a picture, in pixels.
            folder: The encoder's folder, if it was read from one.
        """
        return {"size": {"shortest_edge": size}, "crop_size": size}


def with_inputs(
    spec: ComponentSpec, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]
) -> ComponentSpec:
    """A denoiser that takes these besides its own inputs, and their dimensions."""
    signature = dataclasses.replace(spec.signature, inputs=(*spec.signature.inputs, *inputs))
    return dataclasses.replace(spec, signature=signature, dims={**spec.dims, **dims})


def finite_scale(scale: Any) -> float:
    """A number that an adapter can count."""
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise InputError(f"An IP-Adapter's scale is a number, a list or a dict; got {scale!r}.")
    return float(scale)


def counts_of(scales: Sequence[Any], count: int) -> None:
    """Raise ``InputError`` unless there are as many scales as adapters."""
    if len(scales) != count:
        raise InputError(
            f"{len(scales)} scales were given; the pipeline has {count} IP-Adapters. Give one for each."
        )
