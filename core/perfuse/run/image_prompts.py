"""Loading IP-Adapters into a pipeline: the methods, and what they do to a plan."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.contract.component import Component
from perfuse.contract.spec import PipelineSpec, Role
from perfuse.contract.transform import Plan
from perfuse.errors import InputError, WeightsError
from perfuse.sources.files import user_path
from perfuse.tasks.image_prompt import SCALES

if TYPE_CHECKING:
    from perfuse.models.ip_adapter.description import ImageAdapter

__all__ = ["ImagePrompts", "with_adapters"]

Names = str | os.PathLike[str]
Scale = float | Sequence[Any] | Mapping[str, Any]
_PARTS = ("down", "mid", "up")


def with_adapters(plan: Plan, adapters: "tuple[ImageAdapter, ...]", precision: str | None) -> Plan:
    """The plan with adapters: a projection of images each, and attention to them in the denoiser.

    Raises:
        InputError: an adapter was made for another denoiser.
    """
    if not adapters:
        return plan
    from perfuse.models.ip_adapter.description import projection, prompted
    from perfuse.models.ip_adapter.network import Projection, attached

    denoiser = plan.components[plan.spec.denoiser.name]
    names = denoiser.spec.signature.input_names
    described = prompted(denoiser.spec, adapters)
    mark = f"IP-Adapter {' '.join(_mark(adapter) for adapter in adapters)}"
    rebuilt = denoiser.rebuilt(attached, names, adapters, mark=mark, graph=mark)
    plan = plan.with_component(dataclasses.replace(rebuilt, spec=described))
    for i, adapter in enumerate(adapters):
        spec = projection(adapter, i)
        build = Projection(adapter=adapter)
        one = Component(
            spec=spec,
            precision=precision if precision is not None else "float32",
            build=build,
            fingerprint=_mark(adapter),
        )
        plan = plan.with_component(one)
    return plan


def _mark(adapter: "ImageAdapter") -> str:
    """Identifies an adapter's file as it is now."""
    found = adapter.file.stat()
    return f"{adapter.file} {found.st_size} {found.st_mtime_ns}"


class ImagePrompts:
    """The methods of a pipeline that load IP-Adapters and scale them."""

    _adapters: "tuple[ImageAdapter, ...]" = ()

    def load_ip_adapter(
        self,
        model: Names | Sequence[Names],
        subfolder: str | Sequence[str] = "",
        weight_name: str | Sequence[str] = "",
        image_encoder_folder: str | None = "image_encoder",
        *,
        revision: str | None = None,
        local_files_only: bool | None = None,
    ) -> None:
        """Load IP-Adapters, in place of those that are loaded.

        Args:
            model: A folder or a Hub id, or one for each adapter.
            subfolder: The folder in it that holds the file, or one for each adapter.
            weight_name: The name of the safetensors file, or of each.
            image_encoder_folder: The folder of the image encoder, beside the file or, if it has a
                slash, in ``model``. It is read unless the pipeline has an image encoder. ``None`` to
                read none, where embeddings are given.
            revision: Branch, tag or commit of a Hub repository.
            local_files_only: ``True`` reads only the Hub's cache.

        Raises:
            InputError: the numbers of files differ, or an adapter was made for another denoiser.
            WeightsError: a file is missing, damaged, a pickle, or no IP-Adapter.
        """
        from perfuse.models.ip_adapter.description import ImageAdapter, prompted

        files = _listed(weight_name)
        models, folders = (
            _as_many(one, len(files)) for one in (_listed(model), _listed(subfolder))
        )
        fetch = _Fetch(revision=revision, offline=local_files_only)
        adapters = tuple(
            ImageAdapter.read(fetch.file(str(m), str(f), str(n)))
            for m, f, n in zip(models, folders, files, strict=True)
        )
        pipe: Any = self
        if pipe.source.format is not None:
            raise InputError(
                f"An IP-Adapter was to be loaded; {pipe.source.model} is an export, whose graphs are "
                "fixed. Load it into the checkpoint, and export that."
            )
        prompted(pipe._spec.denoiser, adapters)  # before anything changes
        if image_encoder_folder is not None and pipe.image_encoder is None:
            deep = "/" in image_encoder_folder
            where = image_encoder_folder if deep else f"{folders[0]}/{image_encoder_folder}"
            pipe.image_encoder = _image_encoder(fetch.folder(str(models[0]), where.strip("/")))
        if pipe.feature_extractor is None:
            encoder = pipe._spec.having(Role.IMAGE_ENCODER)
            size = encoder[0].signature.inputs[0].shape[-1] if encoder else 224
            pipe.feature_extractor = {"size": {"shortest_edge": size}, "crop_size": size}
        self._adapted(adapters, (1.0,) * len(adapters))

    def unload_ip_adapter(self) -> None:
        """Take all IP-Adapters out, with the image encoder; the graphs are as before."""
        pipe: Any = self
        self._adapted((), ())
        pipe.image_encoder = None
        if not pipe._spec.having(Role.SAFETY_CHECKER):
            pipe.feature_extractor = None

    def set_ip_adapter_scale(self, scale: Scale) -> None:
        """How much the image prompts count; no graph changes.

        Args:
            scale: A number for all adapters, or a list with one for each adapter: a number; a list
                of numbers, for as many images with masks; or ``{"down": {"block_2": [0.0, 1.0]},
                "up": …, "mid": …}``, where what is not named is 0.

        Raises:
            InputError: there are more or fewer adapters, or a block that is named is not there.
        """
        pipe: Any = self
        spec: PipelineSpec = pipe.spec
        count = len(spec.having(Role.IMAGE_PROJECTION))
        each = list(scale) if isinstance(scale, list | tuple) else [scale]
        if count == 0 or len(each) != count:
            raise InputError(
                f"{len(each)} scales were given; the pipeline has {count} IP-Adapters. "
                + ("Give one for each." if count else "Load one: pipe.load_ip_adapter(…).")
            )
        self._scaled(tuple(_read_scale(one, spec.denoiser.config) for one in each))

    def _adapted(self, adapters: "tuple[ImageAdapter, ...]", scales: tuple[Any, ...]) -> None:
        pipe: Any = self
        changed = [pipe._spec.denoiser.name]
        changed += [f"image_projection_{i}" for i in range(len(self._adapters))]
        for name in changed:
            pipe._programs.release(name)
        self._adapters = adapters
        self._scaled(scales)

    def _scaled(self, scales: tuple[Any, ...]) -> None:
        pipe: Any = self
        options = {name: value for name, value in pipe._spec.options.items() if name != SCALES}
        if scales:
            options[SCALES] = scales
        pipe._spec = dataclasses.replace(pipe._spec, options=options)
        pipe._plan = None


def _read_scale(scale: Any, config: Mapping[str, Any]) -> Any:
    """A number, numbers for images, or ``{"layers": (…)}``: one for each attention."""
    if isinstance(scale, Mapping):
        return {"layers": _by_layer(scale, config)}
    numbers = scale if isinstance(scale, list | tuple) else [scale]
    if not numbers or not all(isinstance(one, int | float) for one in numbers):
        raise InputError(f"An IP-Adapter's scale is a number, a list or a dict; got {scale!r}.")
    return tuple(float(one) for one in numbers)


def _by_layer(scale: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[float, ...]:
    """A scale for each attention, of one that names parts, blocks and attentions."""
    from perfuse.models.ip_adapter.description import cross_attentions

    layers = cross_attentions(config)
    counts: dict[tuple[str, int], int] = {}
    for one in layers:
        counts[one.part, one.block] = max(counts.get((one.part, one.block), 0), one.attention + 1)
    known = {part: {f"block_{b}" for p, b in counts if p == part} for part in _PARTS}
    for part, inner in scale.items():
        unknown = (
            set(inner) - known[part] if part in known and isinstance(inner, Mapping) else set()
        )
        if part not in known or (part == "mid" and isinstance(inner, Mapping)) or unknown:
            there = "; ".join(f"{p}: {', '.join(sorted(b))}" for p, b in known.items() if b)
            raise InputError(f"The scale names {part}: {inner!r}; the denoiser has {there}.")
    found = []
    for one in layers:
        value = scale.get(one.part, 0.0)
        if isinstance(value, Mapping):
            value = value.get(f"block_{one.block}", 0.0)
        if isinstance(value, list | tuple):
            count = counts[one.part, one.block]
            if len(value) != count:
                raise InputError(
                    f"The scale of {one.part} block_{one.block} has {len(value)} numbers; the block "
                    f"has {count} attentions."
                )
            value = value[one.attention]
        found.append(float(value))
    return tuple(found)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _as_many(values: list[Any], count: int) -> list[Any]:
    if len(values) not in (1, count):
        raise InputError(
            f"{len(values)} folders and {count} weight_name were given. Give one folder, or as many."
        )
    return values * (count if len(values) == 1 else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fetch:
    """Files of a folder, or of a Hub repository."""

    revision: str | None
    offline: bool | None

    def file(self, model: str, folder: str, name: str) -> Path:
        path = user_path(model)
        if not path.is_dir():
            return self._from_hub(model, f"{folder}/{name}".strip("/"))
        found = path / folder / name
        if not name or not found.is_file():
            raise WeightsError(
                f"IP-Adapter {found} was asked for; there is no such file. Name it: subfolder=, "
                "weight_name=."
            )
        return found.resolve()

    def folder(self, model: str, folder: str) -> Path:
        path = user_path(model)
        if path.is_dir():
            return path / folder
        self._from_hub(model, f"{folder}/model.safetensors")
        return self._from_hub(model, f"{folder}/config.json").parent

    def _from_hub(self, model: str, file: str) -> Path:
        from perfuse.sources.hub import file_from_hub

        return file_from_hub(model, file, self.revision, self.offline, {})[0]


def _image_encoder(folder: Path) -> Any:
    """The image encoder in a folder; its weights stay memory-mapped."""
    from perfuse.models.clip_vision.network import load

    return load(folder)
