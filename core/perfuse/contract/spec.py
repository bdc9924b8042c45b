"""The hardware-neutral description of a pipeline: plain data, no weights, no engine.

A ``PipelineSpec`` is read from a checkpoint, written to an artifact's manifest and read back from
it. Everything that a backend or an exporter needs to know of a component is in ``ComponentSpec``.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.latents import LatentSpec
from perfuse.errors import ArtifactError, InputError

__all__ = [
    "Array",
    "ComponentSpec",
    "Dim",
    "PipelineSpec",
    "Role",
    "Signature",
    "TensorSpec",
]


#: The largest size of an axis that is taken for one.
_MOST = 2**31 - 1
#: The name of a dimension, and what one that follows from another is.
_DIM = re.compile(r"\w+([*/][1-9]\d{0,5})?")

#: A numpy array, or a torch tensor if the denoiser runs on a torch device.
Array = Any


class Role:
    """What a component is for, with the tensor names that every component of a role has.

    A component may have more inputs: conditions, which a task computes, and host inputs, which its
    architecture computes (``Architecture.host_inputs``).
    """

    #: ``sample``, ``timestep``, … to ``out_sample``.
    DENOISER = "denoiser"
    #: ``input_ids``, … to hidden states.
    TEXT_ENCODER = "text_encoder"
    #: ``sample``, a picture in [-1, 1], to ``latent_parameters``: means and log-variances.
    LATENT_ENCODER = "latent_encoder"
    #: ``latent_sample`` to ``sample``, a picture in about [-1, 1]. One that is made for inpainting
    #: also takes the ``image`` and the ``mask``, which is 0 where the picture is kept.
    LATENT_DECODER = "latent_decoder"
    #: Pictures to states or embeddings.
    IMAGE_ENCODER = "image_encoder"
    #: ``image_embeds`` to ``scaled_embeds``, which noise is added to.
    EMBEDDING_SCALE = "embedding_scale"
    #: ``scaled_embeds`` to ``image_embeds``.
    EMBEDDING_UNSCALE = "embedding_unscale"
    #: An embedding or states of images to ``image_tokens``, which a denoiser attends to.
    IMAGE_PROJECTION = "image_projection"
    #: ``clip_input``, pictures as an image processor makes them, to ``special_scores`` and
    #: ``concept_scores``: above zero where a picture is nearer to a concept than is allowed.
    SAFETY_CHECKER = "safety_checker"
    #: ``pixel_values``, pictures as an image processor makes them, to ``predicted_depth``
    #: [B, H, W], larger where nearer.
    DEPTH_ESTIMATOR = "depth_estimator"
    #: A ControlNet: the denoiser's inputs and a picture, to residuals for the denoiser.
    CONTROL = "control"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One named tensor of a signature."""

    name: str
    #: ``"float32"``, ``"int64"``, …; ``"float"`` is the component's precision inside the graph, and
    #: float32 in the arrays that a program takes and returns.
    dtype: str
    #: For each axis its size, or the name of a symbolic dimension: ``"batch"``, ``"height"``. A
    #: dimension that follows from another is written ``"latent_height/4"``: a quarter, rounded up;
    #: or ``"latent_height*8"``.
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        for dim in self.shape:
            if not (_DIM.fullmatch(dim) if isinstance(dim, str) else is_size(dim)):
                raise InputError(
                    f"{self.name} has the shape {self.shape!r}; sizes from 1 to {_MOST} and names of "
                    "dimensions were expected."
                )

    def resolve(self, dims: Mapping[str, int]) -> tuple[int | str, ...]:
        """The shape with the dimensions in ``dims`` replaced by their sizes."""
        return tuple(_resolved(d, dims) if isinstance(d, str) else d for d in self.shape)


def is_size(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number that a size can be."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST


def follows(dim: str) -> bool:
    """Whether a dimension follows from another one."""
    return "/" in dim or "*" in dim


def _wanted(dim: int | str, size: int, dims: dict[str, int]) -> int | str:
    """The size that an axis must have; one that is not known yet is ``size`` from now on."""
    if isinstance(dim, str):
        return _resolved(dim, dims) if follows(dim) else dims.setdefault(dim, size)
    return dim


def _resolved(dim: str, dims: Mapping[str, int]) -> int | str:
    """The size of a dimension, or of one that follows from another; its name if not known."""
    name, sign, number = dim.partition("*" if "*" in dim else "/")
    if name not in dims:
        return dim
    if sign == "*":
        return dims[name] * int(number)
    return -(-dims[name] // int(number)) if sign else dims[name]


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The named inputs and outputs of a component: flat, tensors only."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.outputs)

    @property
    def dims(self) -> tuple[str, ...]:
        """The symbolic dimensions of the inputs that follow from no other, in order of appearance."""
        names = (d for tensor in self.inputs for d in tensor.shape if isinstance(d, str))
        return tuple(dict.fromkeys(name for name in names if not follows(name)))

    def input(self, name: str) -> TensorSpec | None:
        """The input of this name, or ``None``."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def resolve(self, dims: Mapping[str, int]) -> "Signature":
        """The signature with the dimensions in ``dims`` replaced by their sizes."""
        return Signature(
            inputs=tuple(replace(t, shape=t.resolve(dims)) for t in self.inputs),
            outputs=tuple(replace(t, shape=t.resolve(dims)) for t in self.outputs),
        )

    def bind(self, inputs: Mapping[str, Array], *, component: str) -> dict[str, int]:
        """Check the arrays of one call and return the size of every symbolic dimension.

        Raises:
            InputError: an input is missing or unknown, or its rank or size is not as declared.
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
                _wanted(want, size, dims) == size
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
class Dim:
    """The sizes that a symbolic dimension of a component takes; the host checks them at a call."""

    #: Sizes are multiples of this.
    multiple: int = 1
    #: The largest size.
    maximum: int | None = None
    #: The size to capture the graph with, in units of ``multiple``; different for each dimension of
    #: a component. ``None`` lets capture choose one.
    example: int | None = None
    #: The least size that capture may assume, in units of ``multiple``. Above 1 where needed:
    #: torch.export specialises on a size of 1, also where a network halves a size down to 1. ``None``
    #: for 1 where an example is given, and for half of the size that capture chooses otherwise.
    smallest: int | None = None
    #: Whether capture finds out itself how the dimension depends on others, or that it cannot vary:
    #: for modules that are not perfuse's own. Whoever captures has to heed the graph's guards.
    inferred: bool = False

    def __post_init__(self) -> None:
        for name in ("multiple", "maximum", "example", "smallest"):
            value = getattr(self, name)
            if not (value is None and name != "multiple") and not is_size(value):
                raise InputError(f"{name} of a dimension is {value!r}; it takes 1 to {_MOST}.")


_ANY = Dim()


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """The description of one component: a tensor computation with weights."""

    #: ``"text_encoder"``, ``"unet"``, ``"vae_encoder"``, ``"vae_decoder"``, …
    name: str
    #: What it is for: one of the values in ``Role``.
    role: str = Role.OTHER
    #: The checkpoint's class for it, e.g. ``"UNet2DConditionModel"``.
    class_name: str
    #: Its folder in the checkpoint; two components may share one, as the two halves of a VAE do.
    folder: str
    #: The checkpoint's ``config.json``, unchanged.
    config: Mapping[str, Any]
    signature: Signature
    #: Symbolic dimension to the sizes it takes; a dimension that is not listed takes any size.
    dims: Mapping[str, Dim] = field(default_factory=FrozenDict)
    #: For a denoiser: the height and width, in latents, that it was trained for.
    sample_size: tuple[int, int] | None = None
    #: For a denoiser: ``"branches"`` if guidance runs it with and without the prompt,
    #: ``"embedded"`` if it takes the guidance scale as an input, ``""`` if it has no guidance.
    guidance: str = ""
    #: For a denoiser that reads a language model: which of its hidden states, joined in this order.
    #: Counted as Transformers does: 0 the embeddings, then one a layer; -1 the last.
    reads_layers: tuple[int, ...] = ()
    #: Whether the last of them is read after the language model's last norm.
    reads_normed: bool = True
    #: Whether it overflows in float16, and therefore runs in float32 in a float16 pipeline.
    upcast: bool = False
    #: The component whose weights this one shares: another graph (entry) over the same weights.
    entry_of: str | None = None

    def __post_init__(self) -> None:
        for name in ("config", "dims"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    @property
    def part(self) -> str:
        """The pipeline attribute that holds its model: ``"vae"`` for both halves of a VAE."""
        return self.folder if self.folder != "." else self.name

    @property
    def branches(self) -> int:
        """The batch for one picture in a graph with a fixed batch: 2 for a denoiser with guidance.

        Classifier-free guidance runs the denoiser with and without the prompt in one batch (Ho and
        Salimans, https://arxiv.org/abs/2207.12598). A guidance-distilled one takes the scale as an
        input, and has 1.
        """
        return 2 if self.guidance == "branches" else 1

    def dim(self, name: str) -> Dim:
        """The sizes that a dimension takes; any size if it is not listed in ``dims``."""
        return self.dims.get(name, _ANY)

    def check_dims(self, dims: Mapping[str, int]) -> None:
        """Raise ``InputError`` if the component cannot take one of these sizes."""
        for name, dim in self.dims.items():
            size = dims.get(name)
            if size is None:
                continue
            if size % dim.multiple:
                low = size // dim.multiple * dim.multiple
                raise InputError(
                    f"{self.name} takes {name} in multiples of {dim.multiple}; got {size}. "
                    f"Use {max(low, dim.multiple)} or {low + dim.multiple}."
                )
            if dim.maximum is not None and size > dim.maximum:
                raise InputError(
                    f"{self.name} takes a {name} of at most {dim.maximum}; got {size}."
                )


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """A whole pipeline: its components, schedule, latents, tokenizers and tasks."""

    #: The checkpoint's pipeline class, e.g. ``"StableDiffusionPipeline"``.
    class_name: str
    #: Names of its tasks: ``("text-to-image",)``. The first is the default.
    tasks: tuple[str, ...]
    components: Mapping[str, ComponentSpec]
    #: ``scheduler_config.json``, ``_class_name`` included.
    scheduler: Mapping[str, Any]
    latents: LatentSpec
    #: Tokenizer name to its folder in the checkpoint.
    tokenizers: Mapping[str, str] = field(default_factory=FrozenDict)
    #: Tokenizer name to the text before and after a prompt: its chat template, rendered.
    templates: Mapping[str, tuple[str, str]] = field(default_factory=FrozenDict)
    #: Image processor name to its ``preprocessor_config.json``: how pictures are made ready for the
    #: components that look at them.
    processors: Mapping[str, Mapping[str, Any]] = field(default_factory=FrozenDict)
    #: The configs of further schedulers by name: ``low_res_scheduler`` of an upscaling model.
    schedulers: Mapping[str, Mapping[str, Any]] = field(default_factory=FrozenDict)
    #: Scalars of ``model_index.json``, e.g. ``force_zeros_for_empty_prompt``.
    options: Mapping[str, Any] = field(default_factory=FrozenDict)
    #: Denoiser and autoencoder that the model has and the pipeline was opened without, as for encoding
    #: prompts alone: what they take and give is known, and they do not run.
    left_out: Mapping[str, ComponentSpec] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        if not self.class_name.isidentifier():
            raise InputError(f"The pipeline's class is {self.class_name!r}; a name was expected.")
        names = ("components", "scheduler", "schedulers", "tokenizers", "processors", "options")
        for name in (*names, "templates", "left_out"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    def having(self, role: str) -> tuple[ComponentSpec, ...]:
        """The components of a role, without those that are another entry of one."""
        found = (c for c in self.components.values() if c.role == role and c.entry_of is None)
        return tuple(found)

    def one(self, role: str) -> ComponentSpec:
        """The first component of a role.

        Raises:
            ArtifactError: the pipeline has no component of this role.
        """
        for component in self.having(role):
            return component
        raise ArtifactError(
            f"{self.class_name} needs a {role.replace('_', ' ')} here; it has "
            f"{', '.join(self.components)}. Open a model that has one."
        )

    @property
    def denoiser(self) -> ComponentSpec:
        """The component that the denoising loop runs, also where the pipeline was left without it."""
        if not self.having(Role.DENOISER):
            for component in self.left_out.values():
                if component.role == Role.DENOISER:
                    return component
        return self.one(Role.DENOISER)

    @property
    def default_size(self) -> tuple[int, int]:
        """The height and width, in pixels, that the checkpoint was trained for."""
        height, width = self.denoiser.sample_size or (64, 64)
        return height * self.latents.downscale, width * self.latents.downscale

    @property
    def size_multiple(self) -> int:
        """Heights and widths in pixels must be multiples of this."""
        denoiser, scale = self.denoiser, self.latents.downscale
        sizes = [denoiser.dim(name).multiple * scale for name in self.latents.dims(scale, scale)]
        return math.lcm(self.latents.multiple, *sizes)
