"""Exporting a pipeline: which sizes, which options, which files beside the components."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from perfuse.contract.component import Component
from perfuse.contract.quantized import KEPT
from perfuse.contract.spec import PipelineSpec
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.run.export import component_options, export_pipeline
from perfuse.run.parts import Parts
from perfuse.run.saving import save_tokenizer
from perfuse.run.sizes import shapes_of

__all__ = ["export"]


def export(
    pipe: Parts,
    folder: Path,
    *,
    to: str,
    height: int | None,
    width: int | None,
    batch: int | None,
    sizes: Sequence[tuple[int, int]],
    options: Mapping[str, str],
) -> Path:
    """Write a pipeline as an artifact; ``DiffusionPipeline.export`` describes the arguments.

    Raises:
        InputError: the source is itself an artifact, the folder holds other files, or a size or an
            option cannot be used.
        ExportError: a component could not be exported, or the folder could not be written.
    """
    source = pipe.source
    if source.format is not None:
        raise InputError(
            f"{source.model} is an export already; export the checkpoint it came from."
        )
    if sizes and (height is not None or width is not None):
        raise InputError(
            f"sizes={list(sizes)!r} was given together with height or width. Give either "
            "sizes, or one height and width."
        )
    exporter = host().exporter(to)
    fixed = exporter.fixed
    if len(sizes) > 1 and not fixed:
        raise InputError(
            f"{len(sizes)} sizes were given for {to}, whose files take any size. Leave sizes "
            "out, or give one to fix it."
        )
    asked: list[tuple[int | None, int | None]] = list(sizes) or [(height, width)]
    if fixed:
        asked = [pipe.spec.default_size if one == (None, None) else one for one in asked]
    each = [pipe.fixed_dims(*one, batch) for one in asked]
    shapes = shapes_of(pipe.spec, each, fixed=fixed)
    switches = component_options(options, tuple(pipe.spec.components))

    def component(name: str) -> Component:
        static, listed = shapes[name]
        one = pipe.component(name, static=static)
        if one.storage == KEPT and KEPT not in exporter.storages:
            one = dataclasses.replace(one, storage="")
        return dataclasses.replace(one, sizes=listed, options=switches[name])

    def copy(partial: Path) -> None:
        for name, path in source.files().items():
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, partial / name)
        for name, place in pipe.spec.tokenizers.items():
            if not (partial / place).exists():
                save_tokenizer(pipe, name, partial / place)
        pipe.scheduler.save_pretrained(partial / "scheduler")

    return export_pipeline(
        _spec_now(pipe),
        component,
        folder,
        to=to,
        source={
            "model": source.model,
            "revision": source.revision,
            **_transforms(pipe),
            **_loras(pipe),
        },
        copy=copy,
        store=pipe.store,
    )


def _transforms(pipe: Parts) -> dict[str, str]:
    """For an export's manifest: the transforms that changed its components."""
    names = pipe.rewriting
    return {"transforms": ";".join(names)} if names else {}


def _loras(pipe: Parts) -> dict[str, str]:
    """For an export's manifest: the adapters that are in its weights, and how much each counts."""
    found = pipe.loras.recorded(pipe.lora_factor)
    texts = [f"{one['file'] or one['name']}:{one['weight']}" for one in found]
    return {"loras": ";".join(texts)} if texts else {}


def _spec_now(pipe: Parts) -> PipelineSpec:
    """The spec with the current scheduler's config."""
    config = dict(pipe.scheduler.config)
    config["_class_name"] = type(pipe.scheduler).__name__
    # What guiders asked for on the way is no part of an export; a transform adds that.
    kept = {name: one for name, one in pipe.spec.components.items() if name not in pipe.perturbed}
    return dataclasses.replace(pipe.spec, scheduler=config, components=kept)
