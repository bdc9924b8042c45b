"""Reads folders that optimum-neuron wrote. Nothing of a ``model.neuron`` is loaded here.

Latent consistency models among them ignore the guidance scale: optimum-neuron's wrapper of the
denoiser takes ``timestep_cond`` and does not pass it on.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse import Reader, Source
from perfuse.errors import ArtifactError, CheckpointError, InputError
from perfuse.models import describe, latents_of
from perfuse.plugins import host
from perfuse.sources import (
    INDEX,
    Artifact,
    ExportedComponent,
    Manifest,
    entries_of,
    inside,
    kind_of,
    read_json,
    scheduler_config,
    with_scheduler,
)
from perfuse.spec import ComponentSpec, PipelineSpec, Signature
from perfuse_exporters.neuron.layout import CONFIG, MODEL, static_sizes, treated_as

__all__ = ["OptimumNeuronReader"]

_NAMES = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
_CASTS = {"bf16": "bfloat16", "fp16": "float16"}


class OptimumNeuronReader(Reader):
    """Reads ``{component}/model.neuron`` with its ``config.json``."""

    def read(self, folder: Path, *, scheduler: Mapping[str, Any] | None) -> Source:
        try:
            artifact = _read(folder)
            config: Mapping[str, Any] | None = scheduler
            if config is None and (folder / "scheduler").is_dir():
                config = scheduler_config(inside(folder, "scheduler/scheduler_config.json"))
        except CheckpointError as exc:
            raise ArtifactError(str(exc)) from exc
        return artifact if config is None else with_scheduler(artifact, config)


def _read(folder: Path) -> Artifact:
    index = read_json(folder / INDEX)
    class_name = str(index.get("_class_name")).replace("Neuron", "")
    pipelines = host().pipelines()
    if class_name not in pipelines:
        raise InputError(
            f"{folder} was to be read; it is a {class_name}, and perfuse runs "
            f"{', '.join(pipelines)} of those that are compiled for Neuron."
        )
    read = {name: _component(folder, name) for name in _NAMES if (folder / name / MODEL).is_file()}
    specs = {name: spec for name, (spec, _) in read.items()}
    needed = ["vae_decoder" if name == "vae" else name for name in pipelines[class_name].needs]
    missing = [name for name in needed if name in _NAMES and name not in specs]
    if missing:
        raise ArtifactError(
            f"{folder} was to be read; it has no {MODEL} for {', '.join(missing)}, which a "
            f"{class_name} needs. Copy the whole folder again."
        )
    entries = entries_of(index, folder / INDEX)
    spec = PipelineSpec(
        class_name=class_name,
        tasks=tuple(pipelines[class_name].tasks),
        components=specs,
        scheduler={},
        latents=latents_of(specs),
        tokenizers={
            name: name
            for name, kind in entries.items()
            if kind_of(name, kind) == "tokenizer" and inside(folder, name).is_dir()
        },
        options={
            name: value
            for name, value in index.items()
            if not name.startswith("_") and not isinstance(value, list | dict)
        },
    )
    manifest = Manifest(
        spec=spec,
        components={name: exported for name, (_, exported) in read.items()},
        source={"model": str(folder), "layout": "optimum-neuron"},
        # Their checksums were never recorded; one computed now from the file would prove nothing.
        files={},
        tools={},
    )
    return Artifact(path=folder, manifest=manifest)


def _component(folder: Path, name: str) -> tuple[ComponentSpec, ExportedComponent]:
    file = inside(folder, f"{name}/{MODEL}")
    config = read_json(inside(folder, f"{name}/{CONFIG}"))
    neuron = config.pop("neuron", None)
    if not isinstance(neuron, dict):
        raise ArtifactError(
            f'{file.with_name(CONFIG)} has no "neuron" that says what {MODEL} was compiled for. '
            "Compile it again with a present optimum-neuron, or with perfuse."
        )
    if neuron.get("tensor_parallel_size", 1) != 1:
        raise InputError(
            f"{file} was compiled for {neuron['tensor_parallel_size']} cores at once; perfuse runs "
            "programs of one core. Compile it with --tensor_parallel_size 1."
        )
    spec = _spec(name, config, neuron)
    static = static_sizes(spec, neuron)
    free = [dim for dim in spec.signature.dims if dim not in static]
    if free:
        raise ArtifactError(
            f"{file.with_name(CONFIG)} does not say for which {', '.join(free)} {MODEL} was "
            "compiled. Compile it again."
        )
    exported = ExportedComponent(
        format="neuron",
        file=f"{name}/{MODEL}",
        precision=_precision(neuron),
        signature=spec.signature.resolve(static),
        static=static,
    )
    return spec, exported


def _spec(name: str, config: Mapping[str, Any], neuron: Mapping[str, Any]) -> ComponentSpec:
    """The component as a checkpoint of its class has it, less the outputs that the file lacks."""
    part = "vae" if name.startswith("vae_") else name
    class_name = str(config.get("_class_name") or (config.get("architectures") or ["?"])[0])
    try:
        spec = {spec.name: spec for spec in describe(class_name, part, part, config)}[name]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise ArtifactError(
            f"{name}/{CONFIG} was read as the config of a {class_name}; reading it raised {exc!r}. "
            "Copy it again."
        ) from exc
    if treated_as(class_name) != "text" or neuron.get("output_hidden_states"):
        return spec
    outputs = [one for one in spec.signature.outputs if one.name != "penultimate_hidden_state"]
    signature = Signature(inputs=spec.signature.inputs, outputs=tuple(outputs))
    return dataclasses.replace(spec, signature=signature)


def _precision(neuron: Mapping[str, Any]) -> str:
    """The precision of its matrix products, as one of ``PRECISIONS``."""
    cast = neuron.get("auto_cast") not in (None, "none")
    return _CASTS.get(str(neuron.get("auto_cast_type" if cast else "float_dtype")), "float32")
