"""A Diffusers checkpoint: a folder or Hub repository, read into a ``PipelineSpec``.

Nothing here loads weights, torch or an engine. Nothing in a checkpoint is executed: no pickle, no
code, and no path that leads out of its folder.
"""

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from perfuse.architectures import describe
from perfuse.backend import PRECISIONS, Component
from perfuse.configs import AutoencoderKLConfig, UNet2DConditionConfig, UNet2DConfig
from perfuse.errors import CheckpointError, InputError
from perfuse.spec import ComponentSpec, LatentSpec, PipelineSpec
from perfuse.weights import Weights, check_inside, choose, variants

if TYPE_CHECKING:
    import os

    from torch import nn

    from perfuse.tokenizer import Tokenizer

__all__ = ["PIPELINES", "Checkpoint", "PipelineClass", "check_types", "is_artifact", "read_json"]

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
MANIFEST = "perfuse.json"
#: Parts of a checkpoint that no task runs.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")

_AGAIN = "Download or save the checkpoint again."
#: What huggingface_hub speaks HTTP with, by version.
_HTTP = ("requests", "httpx", "httpx2")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class PipelineClass:
    """What perfuse knows about a pipeline class that ``model_index.json`` can name."""

    #: The first is the one that a bare call runs.
    tasks: tuple[str, ...]
    #: What such a checkpoint cannot do without.
    needs: tuple[str, ...]
    #: What Diffusers puts in place of an outdated setting of the scheduler, where it has that
    #: setting with another value.
    corrects: Mapping[str, Any] = field(default_factory=dict)
    #: The scheduler class that the pipeline turns any other into.
    scheduler: str | None = None


def _known_pipelines() -> dict[str, PipelineClass]:
    text = ("text-to-image",)
    sd = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    xl = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")  # the refiner has no other
    clipped = {"steps_offset": 1, "clip_sample": False}
    skipped = {"steps_offset": 1, "skip_prk_steps": True}
    return {
        "StableDiffusionPipeline": PipelineClass(tasks=text, needs=sd, corrects=clipped),
        "StableDiffusionImg2ImgPipeline": PipelineClass(tasks=text, needs=sd, corrects=clipped),
        "StableDiffusionInpaintPipeline": PipelineClass(tasks=text, needs=sd, corrects=skipped),
        "StableDiffusionXLPipeline": PipelineClass(tasks=text, needs=xl),
        "StableDiffusionXLImg2ImgPipeline": PipelineClass(tasks=text, needs=xl),
        "StableDiffusionXLInpaintPipeline": PipelineClass(tasks=text, needs=xl),
        "LatentConsistencyModelPipeline": PipelineClass(tasks=text, needs=sd),
        "LatentConsistencyModelImg2ImgPipeline": PipelineClass(tasks=text, needs=sd),
        "DDPMPipeline": PipelineClass(tasks=("unconditional",), needs=("unet", "scheduler")),
        "DDIMPipeline": PipelineClass(
            tasks=("unconditional",), needs=("unet", "scheduler"), scheduler="DDIMScheduler"
        ),
    }


#: Pipeline class to what is known about it.
PIPELINES: Mapping[str, PipelineClass] = MappingProxyType(_known_pipelines())


def is_artifact(path: "str | os.PathLike[str]") -> bool:
    """Whether a folder is an exported artifact and not a checkpoint."""
    return (Path(path) / MANIFEST).is_file()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on this machine. Open one with ``Checkpoint.open``."""

    #: Its folder; for a Hub repository, the snapshot in the Hub's cache.
    path: Path
    #: What was asked for: a path or a Hub id.
    model: str
    #: The commit of a Hub repository.
    revision: str | None
    #: The variant of weights to read where a component has it: ``"fp16"``.
    variant: str | None
    spec: PipelineSpec
    #: ``model_index.json``, as it is.
    index: Mapping[str, Any]
    #: Parts that it has and that no task runs: ``("safety_checker",)``.
    ignored: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        model: "str | os.PathLike[str]",
        *,
        revision: str | None = None,
        variant: str | None = None,
        offline: bool | None = None,
        pipelines: Mapping[str, PipelineClass] = PIPELINES,
    ) -> Self:
        """Read a local folder, or a repository of the Hub, which is downloaded where needed.

        Args:
            model: A folder, or OWNER/NAME.
            revision: Branch, tag or commit of a Hub repository.
            variant: Weights to prefer where a component has them, for example ``"fp16"``.
            offline: ``True`` reads the Hub's cache alone; ``HF_HUB_OFFLINE`` by default.
            pipelines: The pipeline classes that can be read.

        Raises:
            CheckpointError: there is no such model, or it cannot be read.
        """
        try:
            return cls._open(model, revision, variant, offline, pipelines)
        except OSError as exc:
            raise CheckpointError(
                f"Model {str(model)!r} was asked for; the system said: {exc.strerror or exc}. "
                "Name a folder that this user can read."
            ) from exc

    @classmethod
    def _open(
        cls,
        model: "str | os.PathLike[str]",
        revision: str | None,
        variant: str | None,
        offline: bool | None,
        pipelines: Mapping[str, PipelineClass],
    ) -> Self:
        asked, commit = str(model), None
        path = Path(model).expanduser()
        if not path.exists() and isinstance(model, str) and _HUB_ID.fullmatch(model):
            path, commit = _from_hub(model, revision, variant, offline)
        index = _read_index(path, asked)
        entries = _entries(index, path / INDEX)
        spec = _read_spec(path, index, entries, pipelines)
        folders = {component.folder for component in spec.components.values()}
        _check_variant({f: _names(path / f) for f in folders}, variant, asked)
        return cls(
            path=path,
            model=asked,
            revision=commit,
            variant=variant,
            spec=spec,
            index=MappingProxyType(index),
            ignored=tuple(name for name in entries if name in UNUSED),
        )

    def weights(self, folder: str) -> Weights:
        """The weights in a component's folder: files found, headers checked, no tensor read.

        Raises:
            WeightsError: there are none, or they are damaged.
        """
        return Weights.open(self.path / folder, variant=self.variant, root=self.path)

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        """A component for a backend to prepare.

        Args:
            name: One of ``spec.components``.
            precision: What its weights and arithmetic are to be; float32 by default.
            static: Dimensions to fix; every other one stays symbolic.

        Raises:
            InputError: there is no such component, precision or dimension.
            WeightsError: its weights are missing or damaged.
        """
        spec = self.spec.components.get(name)
        if spec is None:
            raise InputError(
                f"Component {name!r} was asked for; {self.model} has "
                f"{', '.join(self.spec.components)}."
            )
        precision = "float32" if precision is None else precision
        if precision not in PRECISIONS:
            raise InputError(
                f"Precision {precision!r} was asked for {name}; use one of {', '.join(PRECISIONS)}."
            )
        static = dict(static) if static is not None else {}
        unknown = [dim for dim in static if dim not in spec.signature.dims]
        if unknown:
            raise InputError(
                f"{name} has no dimension {', '.join(unknown)} to fix; it has "
                f"{', '.join(spec.signature.dims)}."
            )
        spec.check_dims(static)
        weights = self.weights(spec.folder)
        key = [spec.name, spec.class_name, dict(spec.config), weights.fingerprint]
        return Component(
            spec=spec,
            precision=precision,
            static=static,
            build=_builder(spec, weights, precision),
            fingerprint=hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest(),
        )

    def tokenizer(self, name: str = "tokenizer") -> "Tokenizer":
        """One of the checkpoint's tokenizers.

        Raises:
            InputError: there is none of this name.
            CheckpointError: its files are missing or damaged.
        """
        from perfuse.tokenizer import FILES, Tokenizer

        if name not in self.spec.tokenizers:
            raise InputError(
                f"Tokenizer {name!r} was asked for; {self.model} has "
                f"{', '.join(self.spec.tokenizers) or 'none'}."
            )
        folder = self.path / self.spec.tokenizers[name]
        for file in FILES:
            check_inside(folder / file, self.path)
        return Tokenizer.from_folder(folder, self.index[name][1])

    def files_to_copy(self) -> dict[str, Path]:
        """What an exported artifact takes along: its path there to the file here."""
        from perfuse.tokenizer import FILES

        wanted: list[tuple[str, tuple[str, ...]]]
        wanted = [(folder, FILES) for folder in self.spec.tokenizers.values()]
        wanted.append((_folder(self.path, "scheduler", SCHEDULER), (SCHEDULER,)))
        found = {
            (Path(folder) / name).as_posix(): self.path / folder / name
            for folder, names in wanted
            for name in names
        }
        return {name: check_inside(p, self.path) for name, p in found.items() if p.is_file()}


def _builder(spec: ComponentSpec, weights: Weights, precision: str) -> "Callable[[], nn.Module]":
    def build() -> "nn.Module":
        import torch

        from perfuse.models.components import build_component

        try:
            return build_component(spec, weights, getattr(torch, precision))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            raise CheckpointError(
                f"{spec.name}, a {spec.class_name}, cannot be built from the config.json in "
                f"{weights.folder}: {exc}. {_AGAIN}"
            ) from exc

    return build


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        CheckpointError: the file is missing, cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        held = ", ".join(_names(path.parent)[:8]) or "nothing"
        raise CheckpointError(f"{path} is missing; its folder holds {held}. {_AGAIN}") from exc
    except OSError as exc:
        raise CheckpointError(
            f"{path} cannot be read: {exc.strerror or exc}. Give this user the right to read it."
        ) from exc
    except json.JSONDecodeError as exc:
        raise CheckpointError(
            f"{path}, line {exc.lineno}, column {exc.colno}, is not JSON: {exc.msg}. {_AGAIN}"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not JSON: {exc}. {_AGAIN}") from exc
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(value).__name__}; an object was expected. {_AGAIN}"
        )
    return value


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _read_index(path: Path, asked: str) -> dict[str, Any]:
    """``model_index.json``, or an error that says what the place is instead."""
    if not path.exists():
        raise CheckpointError(
            f"Model {asked!r} was asked for; there is no such folder. Name an existing folder, or "
            "a Hub repository as OWNER/NAME."
        )
    if not path.is_dir():
        raise CheckpointError(
            f"Model {asked!r} is a file; a Diffusers folder with {INDEX} was expected. A single "
            "file can be converted: load it with diffusers' from_single_file and call "
            "save_pretrained(folder)."
        )
    if is_artifact(path):
        raise CheckpointError(
            f"{path} is an exported artifact (it has {MANIFEST}), and a checkpoint was asked for. "
            "Run it as it is, or name the checkpoint that it was exported from."
        )
    if (path / INDEX).exists():
        return read_json(check_inside(path / INDEX, path))
    names = _names(path)
    if CONFIG in names:
        named = read_json(path / CONFIG).get("_class_name", "one component")
        raise CheckpointError(
            f"{path} has no {INDEX}: it is {named} alone. Name the folder of the whole pipeline, "
            "which holds this one."
        )
    raise CheckpointError(
        f"{path} has no {INDEX}; it holds {', '.join(names[:8]) or 'nothing'}. Name the folder "
        "of a Diffusers pipeline."
    )


def _entries(index: Mapping[str, Any], where: Path) -> dict[str, str]:
    """Component name to class name; those that the checkpoint leaves empty are left out."""
    entries = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        if not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{where} has the component {name!r}; a plain folder name was expected, because "
                "nothing outside of the checkpoint's folder is read. Do not use this checkpoint."
            )
        if len(value) != 2 or not all(item is None or isinstance(item, str) for item in value):
            raise CheckpointError(
                f"{where}: {name} is {value!r}; [library, class] was expected. {_AGAIN}"
            )
        if value[1] is not None:
            entries[name] = value[1]
    return entries


def _kind(name: str, class_name: str) -> str:
    if name == "scheduler" or class_name.endswith("Scheduler"):
        return "scheduler"
    return "tokenizer" if "Tokenizer" in class_name else "component"


def _folder(path: Path, name: str, file: str) -> str:
    """The folder of a component; early checkpoints of one component hold it at their root.

    Raises:
        CheckpointError: the component is in neither place.
    """
    if (path / name).is_dir():
        check_inside(path / name, path)
        return name
    if (path / file).is_file():
        return "."
    raise CheckpointError(
        f"{path / INDEX} names {name}; there is no folder {path / name}. The checkpoint is "
        f"incomplete: {_AGAIN[0].lower()}{_AGAIN[1:]}"
    )


def _read_spec(
    path: Path,
    index: Mapping[str, Any],
    entries: Mapping[str, str],
    pipelines: Mapping[str, PipelineClass],
) -> PipelineSpec:
    named = index.get("_class_name")
    class_name = named[-1] if isinstance(named, list) and named else named
    if not isinstance(class_name, str) or class_name not in pipelines:
        raise CheckpointError(
            f"{path / INDEX} says that the pipeline is {class_name!r}, which perfuse does not "
            f"know; it knows {', '.join(pipelines)}. A plugin can add a class: hook "
            "perfuse_pipelines."
        )
    kind = pipelines[class_name]
    missing = [name for name in kind.needs if name not in entries]
    if missing:
        raise CheckpointError(
            f"{path / INDEX} has no {', '.join(missing)}, which a {class_name} needs; it has "
            f"{', '.join(entries) or 'no components'}. {_AGAIN}"
        )
    components: dict[str, ComponentSpec] = {}
    tokenizers: dict[str, str] = {}
    latents = None
    for name, component_class in entries.items():
        if name in UNUSED or _kind(name, component_class) == "scheduler":
            continue
        if _kind(name, component_class) == "tokenizer":
            tokenizers[name] = _folder(path, name, "tokenizer_config.json")
            continue
        specs = _read_component(path, name, component_class)
        components |= {spec.name: spec for spec in specs}
        if name == "vae":
            latents = _read_latents(specs[0], path)
    if class_name.startswith("StableDiffusion"):
        components["unet"] = _with_size(components["unet"])
    return PipelineSpec(
        class_name=class_name,
        tasks=kind.tasks,
        components=components,
        scheduler=_read_scheduler(path, entries["scheduler"], kind),
        latents=latents,
        tokenizers=tokenizers,
        options={
            name: value
            for name, value in index.items()
            if not name.startswith("_") and not isinstance(value, list | dict)
        },
    )


def _read_component(path: Path, name: str, class_name: str) -> tuple[ComponentSpec, ...]:
    folder = _folder(path, name, CONFIG)
    file = check_inside(path / folder / CONFIG, path)
    config = read_json(file)
    named = config.get("_class_name", class_name)
    if named != class_name:
        raise CheckpointError(
            f"{path / INDEX} says that {name} is a {class_name}; {file} says {named}. {_AGAIN}"
        )
    if class_name in _CONFIGS:
        check_types(_CONFIGS[class_name], config, where=file)
    if "CLIP" in class_name and config.get("architectures") != [class_name]:
        config["architectures"] = [class_name]  # model_index.json decides, as in Diffusers
    try:
        return describe(class_name, name, folder, config)
    except CheckpointError as exc:
        raise CheckpointError(f"{file}: {exc}") from exc
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise CheckpointError(
            f"{file} was read as a {class_name}'s, which gave {exc!r}. {_AGAIN}"
        ) from exc


@dataclass(frozen=True, kw_only=True)
class _ClipTextConfig:
    """The fields of Transformers' ``CLIPTextConfig`` that decide shapes."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int | None = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


_CONFIGS: Mapping[str, type[Any]] = {
    **{c.class_name: c for c in (UNet2DConfig, UNet2DConditionConfig, AutoencoderKLConfig)},
    "CLIPTextModel": _ClipTextConfig,
    "CLIPTextModelWithProjection": _ClipTextConfig,
}


def check_types(config_class: type[Any], config: Mapping[str, Any], *, where: Path) -> None:
    """Compare the values of a parsed ``config.json`` with the fields of a dataclass.

    Raises:
        CheckpointError: a value is of another type than its field.
    """
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        if item.name in config and not _accepts(hints[item.name], config[item.name]):
            wanted = item.type.__name__ if isinstance(item.type, type) else str(item.type)
            raise CheckpointError(
                f"{where}: {item.name} is {config[item.name]!r}; {wanted} was expected"
                f"{', no int below 0' if 'int' in wanted else ''}. {_AGAIN}"
            )


def _accepts(hint: Any, value: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(choice, value) for choice in args)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_accepts(args[0], item) for item in value)
        return len(args) == len(value) and all(map(_accepts, args, value))
    if isinstance(value, bool):
        return hint is bool
    if hint is int:
        return isinstance(value, int) and value >= 0
    return isinstance(value, int | float if hint is float else hint)


def _read_latents(vae: ComponentSpec, path: Path) -> LatentSpec:
    config = AutoencoderKLConfig.from_dict(vae.config)
    for name, values in (("mean", config.latents_mean), ("std", config.latents_std)):
        if values is not None and len(values) != config.latent_channels:
            raise CheckpointError(
                f"{path / vae.folder / CONFIG}: latents_{name} has {len(values)} entries; one a "
                f"latent channel, {config.latent_channels}, was expected. {_AGAIN}"
            )
    return LatentSpec(
        channels=config.latent_channels,
        downscale=config.downscale,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor if config.shift_factor is not None else 0.0,
        mean=config.latents_mean,
        std=config.latents_std,
    )


def _with_size(unet: ComponentSpec) -> ComponentSpec:
    """Before diffusers 0.9 configs gave a size of 32 for models of 64; Diffusers corrects them."""
    version = re.match(r"0\.(\d+)", str(unet.config.get("_diffusers_version", "")))
    size = unet.config.get("sample_size")
    if version is None or int(version[1]) >= 9 or not isinstance(size, int) or size >= 64:
        return unet
    return dataclasses.replace(unet, config={**unet.config, "sample_size": 64})


def _read_scheduler(path: Path, class_name: str, kind: PipelineClass) -> dict[str, Any]:
    """``scheduler_config.json`` with its class, corrected as Diffusers' pipeline would."""
    from perfuse.architectures import resolve
    from perfuse.plugins import host

    folder = _folder(path, "scheduler", SCHEDULER)
    file = check_inside(path / folder / SCHEDULER, path)
    config = {**read_json(file), "_class_name": class_name}
    known = host().schedulers()
    if class_name not in known:
        raise CheckpointError(
            f"{path / INDEX} says that the scheduler is a {class_name}, which perfuse does not "
            f"know; it knows {', '.join(known)}. Name one of these there and in {file}, or add "
            "one by a plugin: hook perfuse_schedulers."
        )
    try:
        # The class knows the settings that the file leaves out.
        settings = resolve(known[class_name]).from_config(config).config  # type: ignore[attr-defined]
    except (InputError, ArithmeticError, AttributeError, LookupError, TypeError) as exc:
        raise CheckpointError(f"{file} was read as a {class_name}'s: {exc} {_AGAIN}") from exc
    if kind.scheduler is not None:
        config["_class_name"] = kind.scheduler
    return config | {
        name: value for name, value in kind.corrects.items() if settings.get(name, value) != value
    }


def _check_variant(folders: Mapping[str, Iterable[str]], variant: str | None, asked: str) -> None:
    """Some component must have the variant; the others may do without."""
    found = sorted({v for names in folders.values() for v in variants(names) if v is not None})
    if variant is not None and variant not in found:
        raise CheckpointError(
            f"Variant {variant!r} of {asked} was asked for; no component has it. Found: "
            f"{', '.join(found) or 'only plain weights'}. Ask for one of these, or for none."
        )


def _wanted(files: Iterable[str], entries: Mapping[str, str], variant: str | None) -> list[str]:
    """The files of a repository that are needed to run it, without other formats and variants."""
    from perfuse.tokenizer import FILES

    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        folders.setdefault(folder, []).append(name)
    wanted = []
    for name, class_name in entries.items():
        if name in UNUSED:
            continue
        folder = name if name in folders else ""
        names, kind = folders.get(folder, []), _kind(name, class_name)
        if kind == "component":
            choice = choose(names, variant, where=name)
            index = (choice.index,) if choice.index is not None else ()
            keep = {CONFIG, *choice.files, *index}
        else:
            keep = {SCHEDULER} if kind == "scheduler" else set(FILES)
        wanted += [f"{folder}/{file}".lstrip("/") for file in names if file in keep]
    return wanted


def _from_hub(
    model: str, revision: str | None, variant: str | None, offline: bool | None
) -> tuple[Path, str]:
    """The snapshot of a repository in the Hub's cache, completed where needed, and its commit."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    asked = f"{model} at {revision}" if revision is not None else model
    reason = "it is not in the Hub's cache and this is offline"
    if not (constants.HF_HUB_OFFLINE if offline is None else offline):
        try:
            # First, because it does not try for half a minute where there is no connection.
            info = HfApi().model_info(model, revision=revision)
            index = Path(hf_hub_download(model, INDEX, revision=revision))
            commit = index.parent.name  # every other file is of the same one
            if info.sha != commit:
                info = HfApi().model_info(model, revision=commit)
            entries = _entries(read_json(index), index)
            files = [file.rfilename for file in info.siblings or ()]
            _check_variant(_by_component(files, entries), variant, asked)
            for file in _wanted(files, entries, variant):
                hf_hub_download(model, file, revision=commit)
            return index.parent, commit
        except CheckpointError:
            raise
        except Exception as exc:  # requests, httpx, the system's own: the library has no one root
            if (error := _hub_error(exc, asked)) is not None:
                raise error from exc
            reason = f"the Hub cannot be reached ({type(exc).__name__}) and its cache lacks it"
    try:
        index = Path(hf_hub_download(model, INDEX, revision=revision, local_files_only=True))
    except Exception as exc:  # as above
        raise CheckpointError(
            f"Model {asked} was asked for; there is no such folder, and {reason}. Name a folder, "
            "or run once with a connection to huggingface.co and without HF_HUB_OFFLINE."
        ) from exc
    return index.parent, index.parent.name


def _by_component(files: Iterable[str], entries: Mapping[str, str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder in entries or not folder:
            folders.setdefault(folder, []).append(name)
    return folders


def _hub_error(exc: Exception, asked: str) -> CheckpointError | None:
    """What the Hub's refusal means; ``None`` where it did not answer and the cache may do."""
    from huggingface_hub import errors

    if isinstance(exc, errors.GatedRepoError):
        return CheckpointError(
            f"Model {asked} was asked for; its owner gives access on request only. Ask for it on "
            "its page, then log in: hf auth login, or set HF_TOKEN."
        )
    if isinstance(exc, errors.RevisionNotFoundError):
        return CheckpointError(
            f"Model {asked} was asked for; the repository has no such revision. Name one of its "
            "branches, tags or commits."
        )
    if isinstance(exc, errors.RepositoryNotFoundError | errors.HFValidationError):
        return CheckpointError(
            f"Model {asked} was asked for; there is neither a folder nor a Hub repository of this "
            "name, or it is private. Check the name; for a private one log in: hf auth login, or "
            "set HF_TOKEN."
        )
    if isinstance(exc, errors.EntryNotFoundError) and not isinstance(exc, FileNotFoundError):
        return CheckpointError(
            f"Model {asked} was asked for; the repository has no {INDEX}, so it is not a Diffusers "
            "pipeline. Name another repository."
        )
    if _unreachable(exc):
        return None
    return CheckpointError(
        f"Model {asked} was asked for; downloading it failed: {type(exc).__name__}: "
        f"{' '.join(str(exc).split())}. Try again, or name a folder that has it."
    )


def _unreachable(exc: Exception) -> bool:
    """Whether nobody, or only a failing server, answered."""
    from huggingface_hub import errors

    if isinstance(exc, errors.HfHubHTTPError):
        return exc.response is None or exc.response.status_code >= 500
    return (
        isinstance(exc, errors.LocalEntryNotFoundError | ConnectionError | TimeoutError)
        or type(exc).__module__.partition(".")[0] in _HTTP
    )
