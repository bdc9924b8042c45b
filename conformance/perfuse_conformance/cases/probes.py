"""Probes: a few calls of one component, with sizes and inputs that follow from a model's spec."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from perfuse.backend import Component
from perfuse.models import host_inputs
from perfuse.sources import ExportedComponent
from perfuse.spec import ComponentSpec, PipelineSpec, Role, TensorSpec

__all__ = [
    "Arrays",
    "Probe",
    "inputs_of",
    "longest_text",
    "made_for",
    "probes_of",
    "sized",
    "sizes_of",
]

Arrays = dict[str, "np.ndarray[Any, np.dtype[Any]]"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A probe: calls of one component, all with the same sizes."""

    #: ``"unet/late"``.
    id: str
    component: str
    dims: Mapping[str, int]
    #: What each call is about: the timesteps of a denoiser, one an item or one for all; the number
    #: of tokens of a text; the spread of an autoencoder's input.
    calls: tuple[Any, ...]
    #: ``"separate"`` gives every call arrays of its own; ``"reused"`` writes each call's inputs into
    #: the same memory; ``"scribbled"`` spoils a call's arrays once it has returned; ``"same"`` makes
    #: every call with the same inputs; ``"views"`` gives arrays that are not C-contiguous;
    #: ``"held"`` looks at a call's outputs only after another program of the component has run,
    #: ``"kept"`` only after the same program has been called again; the name of a layout gives the
    #: arrays in it.
    manner: str = "separate"
    #: Only for a program that takes any size.
    symbolic_only: bool = False
    #: Also asked in half precision.
    halves: bool = False
    #: Whether every item of the batch has the same sample, as with guidance.
    guided: bool = False
    #: Every size that follows from the picture's, for inputs that are computed of them.
    sizes: Mapping[str, int] = field(default_factory=dict)
    #: What random inputs are multiplied with.
    scale: float = 1.0


def sizes_of(spec: PipelineSpec, component: ComponentSpec) -> dict[str, dict[str, int]]:
    """Named sizes for a component's dimensions, as ``_all_sizes`` has them."""
    return {
        name: {dim: values[dim] for dim in component.signature.dims if dim in values}
        for name, values in _all_sizes(spec, component).items()
    }


def _all_sizes(spec: PipelineSpec, component: ComponentSpec) -> dict[str, dict[str, int]]:
    """Named sizes, each one that the model can take, with all that follows from the picture's.

    ``usual`` is what the checkpoint was made for, ``wide`` a batch of two that is not square;
    ``odd``, ``tall`` and ``three`` are for programs that take any size.
    """
    height, width = spec.default_size
    scale = spec.latents.downscale
    pixels = {
        "usual": (1, height, width),
        "wide": (2, height, width + width // 2),
        "tall": (2, height + height // 4, width // 2),
        "odd": (1, height - 3 * scale, width + scale),
        "three": (3, height, width),
    }
    longest = longest_text(spec)
    return {name: sized(spec, component, *size, longest) for name, size in pixels.items()}


def longest_text(spec: PipelineSpec) -> int:
    """The length of a denoiser's text states, which is limited by the text encoders; an image's
    embedding, where there are none, is one state."""
    known = [c.dim("sequence").maximum for c in spec.components.values()]
    lengths = [length for length in known if length is not None]
    told = spec.having(Role.IMAGE_ENCODER) and not spec.having(Role.TEXT_ENCODER)
    return min(lengths, default=1 if told else 77)


def sized(
    spec: PipelineSpec, component: ComponentSpec, batch: int, height: int, width: int, text: int
) -> dict[str, int]:
    """Every dimension's size for pictures of about a size in pixels, and a text of a length."""
    scale = spec.latents.downscale
    height = _multiple(height, _pixels(component, "height", scale))
    width = _multiple(width, _pixels(component, "width", scale))
    dims = spec.latents.dims(height, width)
    others = _others(spec, component, groups=batch)
    return {**others, **dims, "batch": batch, "sequence": text}


def _others(spec: PipelineSpec, component: ComponentSpec, *, groups: int) -> dict[str, int]:
    """The sizes that follow from no picture: those of image prompts, or what the model names.

    Args:
        spec: The model.
        component: The component.
        groups: For each adapter its images with masks of their own.
    """
    found = {
        name: component.dim(name).multiple * (component.dim(name).example or 2)
        for name in component.signature.dims
    }
    states = {
        output.shape[1]
        for encoder in spec.having(Role.IMAGE_ENCODER)
        for output in encoder.signature.outputs
        if len(output.shape) == 3 and isinstance(output.shape[1], int)
    }
    found |= {"states": states.pop()} if states else {}
    for i, projection in enumerate(spec.having(Role.IMAGE_PROJECTION)):
        length = projection.signature.outputs[0].shape[1]
        found[f"ip_groups_{i}"] = groups
        found[f"ip_length_{i}"] = length if isinstance(length, int) else found[length]
    return found


def _pixels(component: ComponentSpec, axis: str, scale: int) -> int:
    """What a size in pixels must be a multiple of for a component to take it."""
    own, latent = component.dim(axis).multiple, component.dim(f"latent_{axis}").multiple
    return math.lcm(scale, own, latent * scale)


def made_for(made: Component | ExportedComponent, dims: Mapping[str, int]) -> bool:
    """Whether a component takes sizes, as far as they are given: all, one, or those in a list."""
    return any(
        all(dims.get(name, size) == size for name, size in {**made.static, **one}.items())
        for one in made.sizes or ({},)
    )


def _multiple(size: int, of: int) -> int:
    return max(size // of, 1) * of


def probes_of(spec: PipelineSpec) -> dict[str, Probe]:
    """Every probe of a model's components, by id."""
    probes: list[Probe] = []
    for component in spec.components.values():
        sizes, full = sizes_of(spec, component), _all_sizes(spec, component)
        in_loop = component.signature.input("timestep") is not None  # a ControlNet, too
        if component.role == Role.DENOISER or in_loop:
            found = _denoiser_probes(component.name, sizes)
        elif component.role == Role.TEXT_ENCODER:
            found = _text_probes(component, sizes)
        else:
            found = _picture_probes(component.name, sizes)
        probes += [replace(probe, sizes=_whole(probe, full)) for probe in found]
    return {probe.id: probe for probe in probes}


def _whole(probe: Probe, full: Mapping[str, Mapping[str, int]]) -> Mapping[str, int]:
    """The named size that a probe has, with all that follows from it."""
    return next(size for size in full.values() if probe.dims.items() <= size.items())


def _probes_in(name: str, sizes: Mapping[str, Mapping[str, int]]) -> Callable[..., Probe]:
    """Makes probes of one component, each with one of its named sizes."""

    def probe(id: str, size: str, *calls: Any, **settings: Any) -> Probe:
        return Probe(id=f"{name}/{id}", component=name, dims=sizes[size], calls=calls, **settings)

    return probe


def _denoiser_probes(name: str, sizes: Mapping[str, Mapping[str, int]]) -> Iterator[Probe]:
    probe = _probes_in(name, sizes)
    # The ends of the schedule and its middle; fractions, as Euler's linspace and Karras' sigmas
    # give them. Near zero a truncated fraction is a large part of the timestep.
    yield probe("early", "usual", 999.0, halves=True)
    yield probe("middle", "usual", 500.0, halves=True)
    yield probe("late", "usual", 1.0, halves=True)
    yield probe("fractional", "usual", 946.421, 12.9, 0.5, halves=True)
    yield probe("wide", "wide", 741.0)
    yield probe("item-timesteps", "wide", (900.0, 100.5))
    yield probe("guided", "wide", 601.0, 221.0, guided=True)
    # As near as steps of a long schedule, where a result kept from the last step is nearly right.
    yield probe("near-steps", "usual", 520.0, 515.0, 510.0, 505.0)
    yield probe("same-twice", "usual", 441.0, 441.0, 441.0, manner="same")
    yield probe("reused-memory", "usual", 441.0, 421.0, 421.0, manner="reused")
    yield probe("spoiled-memory", "usual", 441.0, 421.0, 401.0, manner="scribbled")
    yield probe("views", "usual", 381.0, manner="views")
    yield probe("held-output", "usual", 361.0, 341.0, manner="held")
    yield probe("kept-output", "usual", 351.0, 331.0, 311.0, manner="kept")
    for size in ("tall", "odd"):
        yield probe(size, size, 321.5, symbolic_only=True)
    yield probe("three", "three", 321.5, symbolic_only=True, halves=True)


def _text_probes(
    component: ComponentSpec, sizes: Mapping[str, Mapping[str, int]]
) -> Iterator[Probe]:
    probe = _probes_in(component.name, sizes)
    ids = component.signature.resolve(sizes["usual"]).input("input_ids")
    assert ids is not None  # every text encoder takes them
    longest = int(ids.shape[1])
    yield probe("texts", "usual", 0, 9, longest - 2, halves=True)
    yield probe("wide", "wide", 9)
    yield probe("same-twice", "usual", 9, 9, manner="same")
    yield probe("reused-memory", "usual", 9, 5, manner="reused")
    yield probe("spoiled-memory", "usual", 9, 5, manner="scribbled")
    yield probe("kept-output", "usual", 9, 5, manner="kept")
    yield probe("three", "three", 12, symbolic_only=True, halves=True)


def _picture_probes(name: str, sizes: Mapping[str, Mapping[str, int]]) -> Iterator[Probe]:
    probe = _probes_in(name, sizes)
    # Latents three times as strong decode far out of [-1, 1], where nothing may be cut off.
    yield probe("spread", "usual", 1.0, 3.0, halves=True)
    yield probe("wide", "wide", 1.0)
    yield probe("same-twice", "usual", 1.0, 1.0, manner="same")
    yield probe("reused-memory", "usual", 1.0, 1.0, manner="reused")
    yield probe("spoiled-memory", "usual", 1.0, 1.0, manner="scribbled")
    yield probe("kept-output", "usual", 1.0, 1.0, manner="kept")
    for size in ("tall", "odd"):
        yield probe(size, size, 1.0, symbolic_only=True)
    yield probe("three", "three", 1.0, symbolic_only=True, halves=True)


def inputs_of(component: ComponentSpec, probe: Probe, *, seed: int = 0) -> list[Arrays]:
    """The input arrays of each call, determined by the probe's id and the seed."""
    calls: list[Arrays] = []
    for index, about in enumerate(probe.calls):
        number = 0 if probe.manner == "same" else index
        digest = hashlib.sha256(f"{probe.id}/{number}/{seed}".encode()).digest()
        random = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))
        drawn = {
            tensor.name: _array(component, tensor, probe, about, random)
            for tensor in component.signature.inputs
        }
        # An embedded guidance scale is random as any other condition.
        computed = host_inputs(component, {**probe.sizes, **probe.dims}, None)
        tables = {name: array for name, array in computed.items() if _is_table(component, name)}
        calls.append({**drawn, **tables})
    return calls


def _is_table(component: ComponentSpec, name: str) -> bool:
    """Whether a host input has no batch axis, so that it depends on sizes only."""
    tensor = component.signature.input(name)
    return tensor is not None and "batch" not in tensor.shape


def _array(
    component: ComponentSpec, tensor: TensorSpec, probe: Probe, about: Any, random: Any
) -> Any:
    shape = tuple(int(size) for size in tensor.resolve(probe.dims))
    if tensor.name == "timestep":
        told = np.asarray(about, dtype=np.float32)
        if _takes_levels(component):
            told = (np.log(np.maximum(told, 0.1) / 100) / 4).astype(np.float32)
        return np.broadcast_to(told, shape).copy()
    if tensor.name == "input_ids":
        return _ids(component, shape, int(about), random)
    if tensor.name == "attention_mask" and component.role == Role.TEXT_ENCODER:
        return _text_mask(shape, int(about), random)
    if tensor.name == "time_ids":  # original height and width, crop, target height and width
        sizes = np.asarray([512, 640, 0, 8, 768, 512], dtype=np.float32)
        array = np.broadcast_to(sizes[: shape[-1]], shape) + np.float32(16) * random.integers(
            0, 4, size=(shape[0], 1)
        ).astype(np.float32)
        if shape[-1] == 5:  # a refiner's last is the aesthetic score, which is no whole number
            array[:, -1] = random.choice(np.asarray([2.5, 5.5, 6.0], np.float32), shape[0])
        return array
    if tensor.dtype.startswith("int"):
        known = int(component.config.get("num_class_embeds") or 2)
        return random.integers(0, known, size=shape).astype(tensor.dtype)
    array = random.standard_normal(shape, dtype=np.float32)
    if tensor.name == "sample" and probe.guided:
        array = np.repeat(array[:1], shape[0], axis=0)
    if component.signature.input_names == ("sample",):  # an encoder's pictures are in [-1, 1]
        array = np.tanh(array)
    if len(component.signature.inputs) == 1:
        array = array * np.float32(about)
    return array * np.float32(probe.scale)


def _takes_levels(component: ComponentSpec) -> bool:
    """Whether a denoiser's timesteps are log(sigma) / 4 (Karras et al. 2022, c_noise), near zero.

    A Fourier embedding multiplies them by numbers of some ten; of those by a thousand the sine is noise.
    """
    config = component.config
    return config.get("time_embedding_type") == "fourier" and "cross_attention_dim" in config


def _ids(component: ComponentSpec, shape: tuple[int, ...], tokens: int, random: Any) -> Any:
    """As CLIP's tokenizer has it: begin, the text, end, and the end again up to the length."""
    config = component.config.get("text_config", component.config)  # of a model that also sees
    size = int(config.get("vocab_size", 49408))
    ids = np.full(shape, size - 1, dtype=np.int64)
    ids[:, 0] = size - 2
    learned = component.signature.input("added_embeddings") is not None
    for item, count in zip(ids, _words(shape, tokens), strict=True):
        item[1 : 1 + count] = random.integers(0, size - 2, size=count)
        if learned and count > 2:  # the embedding of an id beyond the vocabulary is an input
            item[2] = size
    return ids


def _text_mask(shape: tuple[int, ...], tokens: int, random: Any) -> Any:
    """What a text encoder sees: some of the text, and nothing of what fills up its length.

    Fillings are alike. An engine that adds up a hundred like numbers one after the other rounds each
    time in the same direction, which says nothing of how it computes texts.
    """
    mask = random.integers(0, 2, size=shape)
    mask[:, 0] = 1
    for item, count in zip(mask, _words(shape, tokens), strict=True):
        item[count + 2 :] = 0
    return mask


def _words(shape: tuple[int, ...], tokens: int) -> list[int]:
    """How many words each text [B, S] has: one fewer than the one before, and two places are kept."""
    return [min(max(tokens - row, 0), shape[1] - 2) for row in range(shape[0])]
