"""A single-file checkpoint as a source: CompVis' and Stability AI's safetensors, and GGUF.

Its tensors are read where they lie, under Diffusers' names. What a file does not hold, tokenizers
first of all, comes from ``config``, the folder of a checkpoint, or is known by its layout.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from perfuse.contract.component import Component
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.source import Source
from perfuse.contract.spec import ComponentSpec, PipelineSpec
from perfuse.errors import CheckpointError, InputError
from perfuse.models.registry import describe, fitted, latents_of
from perfuse.plugins import host
from perfuse.sources.checkpoint import Checkpoint, corrected, stored_component
from perfuse.sources.files import user_path
from perfuse.sources.hub import from_hub, is_hub_id
from perfuse.sources.layouts import Layout, layout_of, nearest
from perfuse.sources.original import NONE, OriginalFile, Part, locate, values
from perfuse.sources.tokenizer_folder import clip_folder
from perfuse.sources.weights import Weights

if TYPE_CHECKING:
    from perfuse.sources.tokenizer import Tokenizer

__all__ = ["SingleFile"]

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
#: Empty tensors by which trainers and ComfyUI mark velocity, and noise without a signal at the end.
_VELOCITY, _ZERO_SIGNAL = "v_pred", "ztsnr"
#: What the writer of a file may have noted (Stability AI's ModelSpec), and Diffusers' word for it.
_NOTED = "modelspec.prediction_type"
_WORDS = {"v": "v_prediction", "epsilon": "epsilon"}
#: Playground's statistics of latents, stored beside the model.
_STATISTICS = {"latents_mean": "edm_mean", "latents_std": "edm_std"}
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, kw_only=True)
class SingleFile(Source):
    """A single-file checkpoint. Open one with ``SingleFile.open``."""

    #: The file; for one of the Hub, in the Hub's cache.
    path: Path
    #: The path, URL or Hub id that the user named.
    model: str
    #: The commit of a file of the Hub; ``None`` for a local one.
    revision: str | None
    spec: PipelineSpec
    #: What it was recognised as: ``"Stable Diffusion XL"``.
    layout: str
    #: The weights of each model that the file holds, by its folder in Diffusers' layout.
    held: Mapping[str, Weights]
    #: Where the rest comes from; ``None`` where the file has all models.
    rest: Checkpoint | None = None
    #: Tokenizer to the token that fills a prompt up.
    padding: Mapping[str, str] = field(default_factory=FrozenDict)
    #: Where tokenizers come from: a folder or a Hub id; by default CLIP's from the Hub.
    tokenizer_from: str | None = None
    #: Whether only the Hub's cache is read.
    offline: bool | None = None
    #: Other arguments of ``huggingface_hub``: ``cache_dir``, ``token``.
    hub: Mapping[str, Any] = field(default_factory=FrozenDict)

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        offline: bool | None = None,
        config: str | os.PathLike[str] | None = None,
        tokenizer_from: str | os.PathLike[str] | None = None,
        prediction_type: str | None = None,
        extract_ema: bool = False,
        given: Mapping[str, Any] | None = None,
        hub: Mapping[str, Any] = NONE,
    ) -> Self:
        """Recognise a file by its tensors, and describe the pipeline in it. Reads no weights.

        Args:
            model: A file, its URL on the Hub, or OWNER/NAME/FILE.
            revision: Branch, tag or commit of a Hub repository.
            offline: ``True`` reads only the Hub's cache.
            config: A checkpoint in Diffusers' layout, a folder or a Hub id: its configs, scheduler
                and tokenizers are used, and its weights of models that the file has not. By
                default, for a transformer, the repository of its authors.
            tokenizer_from: A folder with CLIP's tokenizer, or with one folder for each tokenizer.
            prediction_type: What the UNet predicts: ``"epsilon"`` or ``"v_prediction"``. No tensor
                tells; by default as Diffusers assumes, velocity for Stable Diffusion 2 alone,
                unless the file says otherwise.
            extract_ema: Take the UNet's averages that training kept, where the file has them.
            given: Models that the caller puts into the pipeline, by attribute: the file need not
                have them.
            hub: Other arguments of ``huggingface_hub``: ``cache_dir``, ``token``, ``force_download``.

        Raises:
            CheckpointError: there is no such file, its architecture is unknown, or it lacks a model.
            WeightsError: it is a pickle, or damaged, or tensors of a model are missing.
            InputError: an argument cannot be used, or the package ``gguf`` is not installed.
        """
        if prediction_type is not None and prediction_type not in _PREDICTIONS:
            raise InputError(
                f"prediction_type={prediction_type!r} was given; use one of "
                f"{', '.join(_PREDICTIONS)}."
            )
        path, commit = locate(model, revision=revision, offline=offline, hub=hub)
        file = OriginalFile.open(path)
        found = file.denoiser(ema=extract_ema)
        if found is None:
            raise file.refusal()
        denoiser, drawn = found
        layout = _recognised(file, drawn, told=config is not None)
        parts = {denoiser: drawn}
        for name, prefixes in layout.parts.items():
            if name != denoiser and (part := file.part(name, prefixes)) is not None:
                parts[name] = part
        if layout.config:
            _check_settings(path, layout, tokenizer_from, prediction_type)
        rest = _rest(path, layout, config, offline, parts, hub)
        spec = rest.spec if rest is not None else _described(file, layout, parts, given or {})
        said = _prediction(file, prediction_type) if denoiser == "unet" else {}
        return cls(
            path=path,
            model=str(model),
            revision=commit,
            spec=dataclasses.replace(spec, scheduler={**spec.scheduler, **said}),
            layout=layout.name,
            held=FrozenDict({name: part.weights for name, part in parts.items()}),
            rest=rest,
            padding=layout.padding,
            tokenizer_from=str(tokenizer_from) if tokenizer_from is not None else None,
            offline=offline,
            hub=FrozenDict(hub),
        )

    def weights(self, folder: str) -> Weights:
        """The weights of a model, by its folder in Diffusers' layout.

        Raises:
            CheckpointError: neither the file nor ``config`` has them.
        """
        if folder in self.held:
            return self.held[folder]
        if self.rest is not None:
            return self.rest.weights(folder)
        raise CheckpointError(
            f"{self.path} has no {folder}, which was given when it was opened. Put a model there: "
            f"pipe.{folder} = …"
        )

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        return stored_component(self, name, self.weights, precision, static)

    def tokenizer(self, name: str) -> "Tokenizer":
        """One of its tokenizers.

        Raises:
            InputError: the pipeline has no tokenizer of this name.
            CheckpointError: no tokenizer was found; single files hold none.
        """
        from perfuse.sources.tokenizer import Tokenizer

        if name not in self.spec.tokenizers:
            raise InputError(
                f"Tokenizer {name!r} was asked for; {self.model} has "
                f"{', '.join(self.spec.tokenizers) or 'none'}."
            )
        if self._taken is not None:
            return self._taken.tokenizer(name)
        return Tokenizer.from_folder(self._tokenizer_folder(name), "CLIPTokenizer")

    def files(self) -> Mapping[str, Path]:
        """Tokenizers."""
        if self._taken is not None:
            return self._taken.files()
        folders = {name: self._tokenizer_folder(name) for name in self.spec.tokenizers}
        return {
            f"{name}/{file}": folder / file
            for name, folder in folders.items()
            for file in _TOKENIZER_FILES
        }

    def weight_bytes(self) -> Mapping[str, int]:
        """Bytes of weights by folder, from the header."""
        folders = dict.fromkeys(spec.folder for spec in self.spec.components.values())
        with_weights = [f for f in folders if f in self.held or self.rest is not None]
        return {folder: self.weights(folder).total_bytes for folder in with_weights}

    def with_spec(self, spec: PipelineSpec) -> "SingleFile":
        return dataclasses.replace(self, spec=spec)

    @property
    def _taken(self) -> Checkpoint | None:
        """The checkpoint whose tokenizers are used as they are."""
        return self.rest if self.tokenizer_from is None else None

    def _tokenizer_folder(self, name: str) -> Path:
        padding = self.padding.get(name, next(iter(self.padding.values())))
        return clip_folder(
            name, padding, self.tokenizer_from, model=self.model, offline=self.offline, hub=self.hub
        )


def _opened(
    config: str | os.PathLike[str],
    offline: bool | None,
    held: Collection[str],
    hub: Mapping[str, Any],
) -> Checkpoint:
    """The checkpoint that gives what the file has not."""
    if not user_path(config).exists() and is_hub_id(config):
        config, _ = from_hub(str(config), None, None, offline, hub, held=held)
    return Checkpoint.open(config, offline=offline)


def _rest(
    path: Path,
    layout: Layout,
    config: str | os.PathLike[str] | None,
    offline: bool | None,
    held: Collection[str],
    hub: Mapping[str, Any],
) -> Checkpoint | None:
    """The checkpoint that has what a file has not: the one named, or that of the layout."""
    if config is not None:
        return _opened(config, offline, held, hub)
    if not layout.config:
        return None
    try:
        return _opened(layout.config, offline, held, hub)
    except CheckpointError as exc:
        raise CheckpointError(
            f"{path}, {layout.name}, has {', '.join(held)}; the rest was to be taken from "
            f"{layout.config}. {exc} Or give a checkpoint that has it: config=FOLDER, or --config."
        ) from exc


def _check_settings(path: Path, layout: Layout, *given: Any) -> None:
    """Raise ``InputError`` for what only files of UNets are told."""
    if any(one is not None for one in given):
        raise InputError(
            f"tokenizer_from or prediction_type was given for {path}, {layout.name}, which takes "
            "tokenizers and scheduler from a checkpoint. Name one: config=FOLDER, or --config."
        )


def _recognised(file: OriginalFile, denoiser: Part, *, told: bool) -> Layout:
    """The layout of a file; of a transformer of another size, the nearest, if its config is told."""
    names = file.header.shapes.keys()
    layout = layout_of(denoiser.config, names)
    if layout is None:
        near = nearest(denoiser.config, names)
        if told and near.config:
            return near
        wrong = ", ".join(
            f"{name} is {denoiser.config.get(name)!r}, not {value!r}"
            for name, value in near.differs(denoiser.config).items()
        )
        raise CheckpointError(
            f"{file.path} has a denoiser of no pipeline that perfuse knows; the nearest is "
            f"{near.name}, but its {wrong or 'other tensors are others'}. Name another file, or load "
            f"the denoiser alone: {denoiser.class_name}.from_single_file."
        )
    return layout


def _described(
    file: OriginalFile, layout: Layout, parts: Mapping[str, Part], given: Mapping[str, Any]
) -> PipelineSpec:
    """The pipeline of a layout, each model as its tensors and the layout describe it."""
    kind = host().pipelines().get(layout.class_name)
    if kind is None:
        raise CheckpointError(
            f"{file.path} is {layout.name}, a {layout.class_name}, which perfuse does not know; it "
            f"knows {', '.join(host().pipelines())}. Load its models alone: from_single_file."
        )
    missing = [n for n in layout.parts if n not in parts and given.get(n) is None]
    if missing:
        places = ", ".join(f"{n} ({layout.parts[n][0]}…)" for n in missing)
        raise CheckpointError(
            f"{file.path}, {layout.name}, has no {places}; it has {', '.join(parts)}. Give a "
            "checkpoint in Diffusers' layout that has the rest: config=FOLDER, or --config."
        )
    components: dict[str, ComponentSpec] = {}
    for name in layout.parts:
        if name in parts:
            config = {**parts[name].config, **layout.fields.get(name, {})}
            if name == "vae":
                config |= _statistics(file)
            specs = describe(parts[name].class_name, name, name, config, pipeline=layout.class_name)
        else:
            model = given[name]
            specs = describe(type(model).__name__, name, name, _config_of(model))
        components |= {spec.name: spec for spec in specs}
    try:
        components = fitted(components)
        latents = latents_of(components)
    except CheckpointError as exc:
        raise CheckpointError(f"{file.path}: {exc} Download the file again.") from exc
    return PipelineSpec(
        class_name=layout.class_name,
        tasks=tuple(kind.tasks),
        components=components,
        scheduler=corrected(layout.scheduler, kind),
        latents=latents,
        tokenizers={name: name for name in layout.padding},
        options=layout.options,
    )


def _config_of(model: Any) -> dict[str, Any]:
    config = getattr(model, "config", {})
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def _statistics(file: OriginalFile) -> dict[str, Any]:
    """The means and deviations of latents, where the file has them."""
    if not set(_STATISTICS.values()) <= file.header.shapes.keys():
        return {}
    return {name: list(values(file, stored)) for name, stored in _STATISTICS.items()}


def _prediction(file: OriginalFile, asked: str | None) -> dict[str, Any]:
    """The scheduler's settings that the caller asks for, or that the file itself states."""
    names = file.header.shapes.keys()
    noted = _WORDS.get(str(file.header.metadata.get(_NOTED)))
    found = asked or ("v_prediction" if _VELOCITY in names else noted)
    settings: dict[str, Any] = {} if found is None else {"prediction_type": found}
    if _ZERO_SIGNAL in names:
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return settings
