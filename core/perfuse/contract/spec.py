"""The hardware-neutral description of a pipeline: plain data, no weights, no engine.

A ``PipelineSpec`` is read from a checkpoint, written to an artifact's manifest and read back from
it. Everything a backend or an exporter may ask about a component is in its ``ComponentSpec``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from perfuse.errors import ArtifactError, InputError

__all__ = [
    "Array",
    "ComponentSpec",
    "LatentSpec",
    "PipelineSpec",
    "Signature",
    "TensorSpec",
]


#: A numpy array, or a torch tensor where the denoiser runs on a torch device.
Array = Any


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One named tensor of a signature."""

    name: str
    #: ``"float32"``, ``"int64"``, …; ``"float"`` follows the component's precision inside the
    #: graph and is float32 where a program is called.
    dtype: str
    #: A number, or the name of a dimension that is known at run time: ``"batch"``, ``"height"``.
    shape: tuple[int | str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(name=data["name"], dtype=data["dtype"], shape=tuple(data["shape"]))

    def resolve(self, dims: Mapping[str, int]) -> tuple[int | str, ...]:
        """The shape with the dimensions that ``dims`` knows put in."""
        return tuple(dims.get(d, d) if isinstance(d, str) else d for d in self.shape)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The named inputs and outputs of a component: flat, tensors only."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            inputs=tuple(TensorSpec.from_dict(tensor) for tensor in data["inputs"]),
            outputs=tuple(TensorSpec.from_dict(tensor) for tensor in data["outputs"]),
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.outputs)

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the symbolic dimensions of the inputs, in order of appearance."""
        names = (d for tensor in self.inputs for d in tensor.shape if isinstance(d, str))
        return tuple(dict.fromkeys(names))

    def resolve(self, dims: Mapping[str, int]) -> "Signature":
        """The same signature with the dimensions that ``dims`` knows put in."""
        return Signature(
            inputs=tuple(
                TensorSpec(name=t.name, dtype=t.dtype, shape=t.resolve(dims)) for t in self.inputs
            ),
            outputs=tuple(
                TensorSpec(name=t.name, dtype=t.dtype, shape=t.resolve(dims)) for t in self.outputs
            ),
        )

    def bind(self, inputs: Mapping[str, Array], *, component: str) -> dict[str, int]:
        """Check the arrays of one call and return the size of every symbolic dimension.

        Raises:
            InputError: an input is missing, unknown, or has another rank or size than declared.
        """
        if inputs.keys() != set(self.input_names):
            missing = [name for name in self.input_names if name not in inputs]
            unknown = [name for name in inputs if name not in self.input_names]
            raise InputError(
                f"{component} takes {', '.join(self.input_names)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}."
            )
        dims: dict[str, int] = {}
        for tensor in self.inputs:
            shape = tuple(inputs[tensor.name].shape)
            fits = len(shape) == len(tensor.shape) and all(
                (dims.setdefault(want, size) if isinstance(want, str) else want) == size
                for want, size in zip(tensor.shape, shape, strict=True)
            )
            if not fits:
                wanted = ", ".join(
                    f"{d}={dims[d]}" if isinstance(d, str) and d in dims else str(d)
                    for d in tensor.shape
                )
                raise InputError(
                    f"{component} takes {tensor.name} of shape ({wanted}); got {shape}."
                )
        return dims


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """How a pipeline's latents relate to its autoencoder's, and to pixels.

    The pipeline's latent is ``(z - mean) / std * scaling_factor`` where mean and std are given, and
    ``(z - shift_factor) * scaling_factor`` where they are not.
    """

    channels: int
    #: Pixels that a latent spans, in height and in width.
    downscale: int
    scaling_factor: float
    shift_factor: float = 0.0
    #: One number a channel.
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def decode_coefficients(self) -> tuple[Any, Any]:
        """``(a, b)`` such that the autoencoder's latent is ``a * latent + b``.

        Floats, or float32 numpy arrays [1, C, 1, 1] where mean and std are given.
        """
        if self.mean is None or self.std is None:
            return 1.0 / self.scaling_factor, self.shift_factor
        import numpy as np

        shape = (1, self.channels, 1, 1)
        std = np.asarray(self.std, dtype=np.float32).reshape(shape)
        mean = np.asarray(self.mean, dtype=np.float32).reshape(shape)
        return std / np.float32(self.scaling_factor), mean

    def to_dict(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "downscale": self.downscale,
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
            "mean": list(self.mean) if self.mean is not None else None,
            "std": list(self.std) if self.std is not None else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            channels=data["channels"],
            downscale=data["downscale"],
            scaling_factor=data["scaling_factor"],
            shift_factor=data["shift_factor"],
            mean=tuple(data["mean"]) if data["mean"] is not None else None,
            std=tuple(data["std"]) if data["std"] is not None else None,
        )


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """One tensor computation with weights."""

    #: ``"text_encoder"``, ``"unet"``, ``"vae_encoder"``, ``"vae_decoder"``, …
    name: str
    #: The checkpoint's class for it, e.g. ``"UNet2DConditionModel"``.
    class_name: str
    #: Its folder in the checkpoint; two components may share one, as the two halves of a VAE do.
    folder: str
    #: The checkpoint's ``config.json``, as it is.
    config: Mapping[str, Any]
    signature: Signature
    #: Dimensions that must be multiples of a number: ``{"height": 8}``. Checked on the host.
    multiples: Mapping[str, int] = field(default_factory=dict)
    #: Dimensions that must not exceed a number: ``{"sequence": 77}``. Checked on the host.
    maximums: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("config", "multiples", "maximums"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def guided_batch(self) -> int:
        """The batch of one picture, where a graph must fix it: 2 for a denoiser with guidance.

        Classifier-free guidance asks it with and without the words at once (Ho and Salimans,
        https://arxiv.org/abs/2207.12598). One that was distilled takes the scale as an input.
        """
        inputs = self.signature.input_names
        guided = "encoder_hidden_states" in inputs and "timestep_cond" not in inputs
        return 2 if guided else 1

    def check_dims(self, dims: Mapping[str, int]) -> None:
        """Raise ``InputError`` where a size is not one that the component can take."""
        for name, multiple in self.multiples.items():
            size = dims.get(name)
            if size is not None and size % multiple:
                low = size // multiple * multiple
                raise InputError(
                    f"{self.name} takes {name} in multiples of {multiple}; got {size}. "
                    f"Use {max(low, multiple)} or {low + multiple}."
                )
        for name, maximum in self.maximums.items():
            if dims.get(name, 0) > maximum:
                raise InputError(
                    f"{self.name} takes a {name} of at most {maximum}; got {dims[name]}."
                )

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "class_name": self.class_name,
            "folder": self.folder,
            "config": dict(self.config),
            "signature": self.signature.to_dict(),
            "multiples": dict(self.multiples),
            "maximums": dict(self.maximums),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            name=data["name"],
            class_name=data["class_name"],
            folder=data["folder"],
            config=data["config"],
            signature=Signature.from_dict(data["signature"]),
            multiples=data["multiples"],
            maximums=data["maximums"],
        )


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """A whole pipeline: its components, schedule, latents, tokenizers and tasks."""

    #: The checkpoint's pipeline class, e.g. ``"StableDiffusionPipeline"``.
    class_name: str
    #: What it can do: ``("text-to-image",)``. The first is the one that a bare call runs.
    tasks: tuple[str, ...]
    components: Mapping[str, ComponentSpec]
    #: ``scheduler_config.json``, ``_class_name`` included.
    scheduler: Mapping[str, Any]
    #: ``None`` where the denoiser works on pixels.
    latents: LatentSpec | None
    #: Tokenizer name to its folder in the checkpoint.
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    #: Scalars of ``model_index.json``, e.g. ``force_zeros_for_empty_prompt``.
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("components", "scheduler", "tokenizers", "options"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def denoiser(self) -> ComponentSpec:
        """The component that the loop calls."""
        for name in ("unet", "transformer"):
            if name in self.components:
                return self.components[name]
        raise ArtifactError(
            f"{self.class_name} has no denoiser; it has {', '.join(self.components)}."
        )

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the checkpoint was trained for."""
        size = self.denoiser.config.get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        scale = self.latents.downscale if self.latents is not None else 1
        return height * scale, width * scale

    @property
    def size_multiple(self) -> int:
        """Heights and widths in pixels must be multiples of this."""
        scale = self.latents.downscale if self.latents is not None else 1
        return math.lcm(scale, *(m * scale for m in self.denoiser.multiples.values()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "class_name": self.class_name,
            "tasks": list(self.tasks),
            "components": {name: c.to_dict() for name, c in self.components.items()},
            "scheduler": dict(self.scheduler),
            "latents": self.latents.to_dict() if self.latents is not None else None,
            "tokenizers": dict(self.tokenizers),
            "options": dict(self.options),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` wrote.

        Raises:
            ArtifactError: a field is missing or of another kind.
        """
        try:
            return cls(
                class_name=data["class_name"],
                tasks=tuple(data["tasks"]),
                components={
                    name: ComponentSpec.from_dict(c) for name, c in data["components"].items()
                },
                scheduler=data["scheduler"],
                latents=(
                    LatentSpec.from_dict(data["latents"]) if data["latents"] is not None else None
                ),
                tokenizers=data["tokenizers"],
                options=data["options"],
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ArtifactError(
                f"A pipeline spec was read and {exc!r} is missing or malformed in it. "
                "Export the model again with this version of perfuse."
            ) from exc
