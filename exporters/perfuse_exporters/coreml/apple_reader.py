"""Reads what Apple's converter wrote, and what the community wrote after it.

Such a folder names neither its pipeline nor its scheduler nor its latents: the first and the last
follow from the inputs and widths of its models, the scheduler comes from a file beside them or from
``--scheduler-from``. Both layouts are read: packages, and models that are compiled already, which
Core ML alone can run.
"""

import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from perfuse import Reader, Source
from perfuse.backend import Component
from perfuse.errors import ArtifactError, InputError
from perfuse.models import ScaledLatents
from perfuse.sources import (
    Artifact,
    ExportedComponent,
    Manifest,
    Tokenizer,
    from_plain,
    scheduler_config,
    with_scheduler,
)
from perfuse.spec import ComponentSpec, PipelineSpec, Role, Signature, TensorSpec
from perfuse_exporters.coreml.apple import CLASSES, LATENTS, SCALING, input_name, output_name
from perfuse_exporters.coreml.mlpackage import Interface, parts_of, read_interface
from perfuse_exporters.plugin import APPLE_PLACES, APPLE_UNETS

__all__ = ["AppleReader"]

#: A component to what its package's name ends with, and to its name as a compiled model.
_NAMES = {
    "text_encoder": ("_text_encoder", "TextEncoder"),
    "text_encoder_2": ("_text_encoder_2", "TextEncoder2"),
    "unet": ("_unet", "Unet"),
    "vae_decoder": ("_vae_decoder", "VAEDecoder"),
    "vae_encoder": ("_vae_encoder", "VAEEncoder"),
}
_SCALING_XL = 0.13025
#: The width of the text states of Stable Diffusion 2.
_WIDTH_2 = 1024
_LATENTS, _PIXELS = ("latent_height", "latent_width"), ("height", "width")


@dataclass(frozen=True, kw_only=True)
class _Folder(Artifact):
    """Such a folder, described as if we had exported it."""

    #: Each tokenizer's folder, and what fills its prompts up where no file says it.
    tokenizers: Mapping[str, tuple[Path, str | None]] = field(default_factory=dict)

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        component = super().component(name, precision=precision, static=static)
        if component.files["coreml"].suffix == ".mlmodelc" and sys.platform != "darwin":
            raise ArtifactError(
                f"{name} was to be run; {component.files['coreml']} is compiled, and only Core ML "
                "on macOS runs that. Name the folder that has the .mlpackage files."
            )
        return component

    def tokenizer(self, name: str) -> Tokenizer:
        if name not in self.tokenizers:
            raise ArtifactError(
                f"The prompt was to be read; {self.path} has no vocab.json and merges.txt. Copy them "
                "there from the tokenizer of the checkpoint, or give prompt_embeds."
            )
        folder, pad = self.tokenizers[name]
        encoder = self.manifest.components[name.replace("tokenizer", "text_encoder")]
        return Tokenizer.from_folder(
            folder, "CLIPTokenizer", pad_token=pad, max_length=encoder.static["sequence"]
        )


class AppleReader(Reader):
    """Reads folders of ``.mlpackage`` and of ``.mlmodelc`` with Apple's names."""

    def read(self, folder: Path, *, scheduler: Mapping[str, Any] | None) -> Source:
        place = _place(folder)
        mains = {name: main for name in _NAMES if (main := _main(place, name)) is not None}
        parts = {name: parts_of(main) for name, main in mains.items()}
        interfaces = {name: _interface(folder, files) for name, files in parts.items()}
        encoder = interfaces.get("vae_encoder")
        if encoder is not None and set(encoder.inputs) != {"x"}:
            # An early converter put the noise and the schedule of one task into it.
            warnings.warn(
                f"{mains['vae_encoder']} takes {', '.join(encoder.inputs)}; it is left out, because "
                "perfuse draws noise on the host.",
                stacklevel=2,
            )
            del interfaces["vae_encoder"]
        described = {name: _component(mains[name], name, one) for name, one in interfaces.items()}
        spec = _pipeline(folder, {name: one[0] for name, one in described.items()}, interfaces)
        exported = {
            name: ExportedComponent(
                format="coreml",
                file=mains[name].relative_to(folder).as_posix(),
                precision=interfaces[name].precision,
                signature=component.signature.resolve(static),
                static=static,
                sizes=sizes,
                options={"dialect": "apple"},
            )
            for name, (component, static, sizes) in described.items()
        }
        manifest = Manifest(
            spec=spec,
            components=exported,
            source={"model": str(folder), "layout": "apple"},
            files=_files(folder, [part for name in exported for part in parts[name]]),
            tools={},
        )
        tokenizers = _tokenizers(folder, place, spec)
        artifact = _Folder(path=folder, manifest=manifest, tokenizers=tokenizers)
        config = scheduler if scheduler is not None else _own_scheduler(folder, place)
        return artifact if config is None else with_scheduler(artifact, config)


def _place(folder: Path) -> Path:
    """The folder of the one pipeline in it; packages before what is compiled.

    Raises:
        InputError: there are several.
    """
    patterns = [f"{place}/{unet}" for place in APPLE_PLACES for unet in APPLE_UNETS]
    found = list(dict.fromkeys(unet.parent for p in patterns for unet in sorted(folder.glob(p))))
    if folder in found:
        return folder
    packages = [place for place in found if next(place.glob("*.mlpackage"), None) is not None]
    places = packages or found
    if len(places) > 1:
        raise InputError(
            f"{folder} was to be read; it holds several pipelines. Name one of "
            f"{', '.join(str(place) for place in places)}."
        )
    return places[0]


def _main(place: Path, name: str) -> Path | None:
    """The main file of a component: the whole model where there are its chunks, too."""
    package, compiled = _NAMES[name]
    patterns = (
        f"*{package}.mlpackage",
        f"*{package}_chunk1.mlpackage",
        f"{compiled}.mlmodelc",
        f"{compiled}Chunk1.mlmodelc",
    )
    for pattern in patterns:
        found = sorted(place.glob(pattern))
        if len(found) > 1:
            raise InputError(
                f"{place} was to be read; it holds {', '.join(path.name for path in found)}. Put "
                "each pipeline into a folder of its own."
            )
        if found:
            return found[0]
    return None


def _interface(folder: Path, parts: Sequence[Path]) -> Interface:
    """The interface of the parts together: what one gives another is no business of the host's.

    Raises:
        ArtifactError: a part is incomplete or damaged, or lies outside of the folder.
    """
    for part in parts:
        if not part.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(
                f"{part} leads out of {folder}. Copy the model itself there, not a link to it."
            )
    first, *others = [read_interface(part) for part in parts]
    if not others:
        return first
    inputs, between = dict(first.inputs), dict(first.outputs)
    for other in others:
        inputs |= {name: one for name, one in other.inputs.items() if name not in between}
        between |= other.outputs
    precisions = {one.precision for one in (first, *others)}
    return Interface(
        inputs=inputs,
        outputs=others[-1].outputs,
        precision="float16" if "float16" in precisions else "float32",
    )


_ROLES = {
    "unet": Role.DENOISER,
    "vae_decoder": Role.LATENT_DECODER,
    "vae_encoder": Role.LATENT_ENCODER,
}


def _component(
    main: Path, name: str, interface: Interface
) -> tuple[ComponentSpec, dict[str, int], tuple[dict[str, int], ...]]:
    """A component with its files' signature, the sizes that they fix, and those that they list."""
    ports = _Ports(main, name, interface)
    describe = {"unet": _unet, "vae_decoder": _vae, "vae_encoder": _vae}.get(name, _text_encoder)
    signature, static = describe(ports)
    if ports.left:
        raise ArtifactError(
            f"{main} was to be read as {name}; it takes {', '.join(ports.left)}, too, as a model for "
            "ControlNet does, which perfuse cannot give it. Use the model without."
        )
    size = [static[dim] for dim in _LATENTS if dim in static]
    class_name, part = CLASSES[name]
    spec = ComponentSpec(
        name=name,
        role=_ROLES.get(name, Role.TEXT_ENCODER),
        class_name=class_name,
        folder=part,
        config={"sample_size": size} if name == "unet" else {},
        signature=signature,
        sample_size=(size[0], size[1]) if name == "unet" and len(size) == 2 else None,
        guidance="branches" if name == "unet" else "",
    )
    first = signature.inputs[0]  # whose sizes the others follow
    listed = [
        {dim: size for dim, size in zip(first.shape, shape, strict=True) if isinstance(dim, str)}
        for shape in interface.listed.get(input_name(name, first.name), ())
    ]
    varying = [dim for dim in static if len({one.get(dim) for one in listed}) > 1]
    sizes = tuple({dim: one[dim] for dim in varying} for one in listed) if varying else ()
    return spec, {dim: n for dim, n in static.items() if dim not in varying}, sizes


class _Ports:
    """The inputs and outputs of a component's files, by the names that the signature has."""

    def __init__(self, main: Path, name: str, interface: Interface) -> None:
        self.name = name
        #: Inputs that nobody has asked for yet.
        self.left = dict(interface.inputs)
        self._main = main
        self._outputs = interface.outputs

    def input(self, ours: str, rank: int) -> tuple[int, ...]:
        """The shape of an input, which must have this rank."""
        sizes, _ = self.left.pop(input_name(self.name, ours), ((), ""))
        if len(sizes) != rank:
            raise ArtifactError(
                f"{self._main} was to be read as {self.name}; its input "
                f"{input_name(self.name, ours)} has the shape {sizes or 'of none'}, not {rank} "
                "dimensions. It was made for another runtime."
            )
        return sizes

    def output(self, ours: str) -> tuple[int, ...] | None:
        """The shape of an output; empty where the file does not tell, ``None`` without it."""
        theirs = output_name(self.name, ours)
        return self._outputs[theirs][0] if theirs in self._outputs else None

    def time_ids(self, batch: int) -> int:
        """How many there are for a picture; older files have all of them in one row."""
        sizes, _ = self.left.pop("time_ids")
        count = math.prod(sizes) // batch
        if count != 6:
            raise InputError(
                f"{self._main} was to be read; it takes {count} numbers of time_ids, as the refiner "
                "of Stable Diffusion XL does. Name the folder of the base model."
            )
        return count


_Described = tuple[Signature, dict[str, int]]


def _unet(ports: _Ports) -> _Described:
    batch, channels, height, width = ports.input("sample", 4)
    ports.input("timestep", 1)
    _, text, _, sequence = ports.input("encoder_hidden_states", 4)
    inputs = [
        _float("sample", "batch", channels, *_LATENTS),
        TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
        _float("encoder_hidden_states", "batch", "sequence", text),
    ]
    if "time_ids" in ports.left:
        inputs.append(_float("text_embeds", "batch", ports.input("text_embeds", 2)[1]))
        inputs.append(_float("time_ids", "batch", ports.time_ids(batch)))
    predicted = ports.output("out_sample")
    outputs = _float("out_sample", "batch", predicted[1] if predicted else channels, *_LATENTS)
    static = {"batch": batch, _LATENTS[0]: height, _LATENTS[1]: width, "sequence": sequence}
    return Signature(inputs=tuple(inputs), outputs=(outputs,)), static


def _text_encoder(ports: _Ports) -> _Described:
    """Its outputs are those that the file gives: it may be the states of one layer alone."""
    batch, sequence = ports.input("input_ids", 2)
    ids = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"))
    pooled = "text_embeds" if ports.name == "text_encoder_2" else "pooler_output"
    outputs = []
    for ours in ("last_hidden_state", "penultimate_hidden_state", pooled):
        sizes = ports.output(ours)
        if sizes is not None:
            width = sizes[-1] if sizes else "width"  # compiled models do not tell
            outputs.append(_float(ours, "batch", *(["sequence"] * (ours != pooled)), width))
    static = {"batch": batch, "sequence": sequence}
    return Signature(inputs=(ids,), outputs=tuple(outputs)), static


def _vae(ports: _Ports) -> _Described:
    """One half of an autoencoder: latents to 3 colours, or those to means and variances."""
    source, target, taken, given = (_LATENTS, _PIXELS, "latent_sample", "sample")
    if ports.name == "vae_encoder":
        source, target, taken, given = (_PIXELS, _LATENTS, "sample", "latent_parameters")
    batch, channels, height, width = ports.input(taken, 4)
    sizes = ports.output(given)
    number = sizes[1] if sizes else (3 if ports.name == "vae_decoder" else 8)
    signature = Signature(
        inputs=(_float(taken, "batch", channels, *source),),
        outputs=(_float(given, "batch", number, *target),),
    )
    return signature, {"batch": batch, source[0]: height, source[1]: width}


def _float(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float", shape=shape)


def _pipeline(
    folder: Path, components: Mapping[str, ComponentSpec], interfaces: Mapping[str, Interface]
) -> PipelineSpec:
    xl = "time_ids" in interfaces["unet"].inputs
    needed = ["text_encoder", *(["text_encoder_2"] if xl else []), "vae_decoder"]
    if missing := [name for name in needed if name not in components]:
        raise ArtifactError(
            f"{folder} was to be read as Stable Diffusion{' XL' if xl else ''} for Core ML; it has "
            f"no {', '.join(missing)}. Put the missing models beside the others."
        )
    states = "penultimate_hidden_state" if xl else "last_hidden_state"
    for name in needed[:-1]:
        if states not in components[name].signature.output_names:
            raise ArtifactError(
                f"{folder} was to be read; its {name} gives {', '.join(interfaces[name].outputs)}, "
                f"and {output_name(name, states)} is needed. It was made for another pipeline."
            )
    return PipelineSpec(
        class_name="StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        tasks=("text-to-image",),
        components=components,
        scheduler={},
        latents=_latents(folder, interfaces, xl=xl),
        tokenizers={name: name for name in ("tokenizer", *(["tokenizer_2"] if xl else []))},
    )


def _latents(folder: Path, interfaces: Mapping[str, Interface], *, xl: bool) -> ScaledLatents:
    """As the decoder notes it, if we wrote it; Apple's runtimes know one factor for all."""
    noted = interfaces["vae_decoder"].notes.get(f"perfuse.{LATENTS}")
    if noted is None:
        return ScaledLatents(
            channels=interfaces["vae_decoder"].inputs["z"][0][1],
            downscale=_downscale(interfaces),
            scaling_factor=_SCALING_XL if xl else SCALING,
        )
    try:
        fields = json.loads(noted)
        latents = from_plain(ScaledLatents, {n: v for n, v in fields.items() if n != "kind"})
        latents.decode(np.zeros((1, latents.channels, 1, 1), dtype=np.float32))
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as exc:
        raise ArtifactError(
            f"{folder} was to be read; its vae_decoder says of its latents {noted!r}, which is not "
            f"what perfuse writes: {type(exc).__name__}. Export the model again."
        ) from exc
    return latents


def _downscale(interfaces: Mapping[str, Interface]) -> int:
    """Pixels that a latent spans; 8 where no file tells, as in every Stable Diffusion."""
    decoder = interfaces["vae_decoder"]
    latents, _ = decoder.inputs["z"]
    pictures, _ = next(iter(decoder.outputs.values()))
    if not pictures and "vae_encoder" in interfaces:
        pictures, _ = interfaces["vae_encoder"].inputs["x"]
    return max(pictures[-1] // latents[-1], 1) if pictures else 8


def _tokenizers(
    folder: Path, place: Path, spec: PipelineSpec
) -> dict[str, tuple[Path, str | None]]:
    """Where each tokenizer is: in a folder of its name, or the one for all beside the models."""
    beside = [place, place / "Resources", place.parent / "compiled", place.parent / "Resources"]
    width = spec.denoiser.signature.inputs[2].shape[-1]
    found = {}
    for name in spec.tokenizers:
        own = [base / name for base in (place, folder)]
        for candidate in (*own, *beside):
            files = [candidate / file for file in ("vocab.json", "merges.txt")]
            if all(file.is_file() and _within(folder, file) for file in files):
                second = name == "tokenizer_2" or width == _WIDTH_2
                found[name] = (candidate, "!" if second else None)
                break
    return found


def _within(folder: Path, file: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def _own_scheduler(folder: Path, place: Path) -> dict[str, Any] | None:
    for base in dict.fromkeys((place, folder)):
        for name in ("scheduler/scheduler_config.json", "scheduler_config.json"):
            if (base / name).is_file() and _within(folder, base / name):
                return scheduler_config(base / name)
    return None


def _files(folder: Path, parts: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The files of the models with their sizes; nobody wrote down their hashes."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": ""}
        for part in parts
        for path in sorted(part.rglob("*"))
        if path.is_file()
    }
