"""Loading IP-Adapters into a pipeline: the methods, and what they do to a plan."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.contract.component import Component
from perfuse.contract.spec import ComponentSpec, PipelineSpec, Role
from perfuse.contract.transform import Plan
from perfuse.errors import InputError, WeightsError
from perfuse.models.registry import image_prompts
from perfuse.sources.files import user_path
from perfuse.tasks.image_prompt import SCALES, adapters_of

if TYPE_CHECKING:
    from perfuse.models.ip_adapter.description import ImageAdapter
    from perfuse.models.ip_adapter.prompting import Prompting

__all__ = ["ImagePrompts", "with_adapters"]

Names = str | os.PathLike[str]
Scale = float | Sequence[Any] | Mapping[str, Any]
#: The folder of the image encoder, beside an adapter.
_ENCODER = "image_encoder"
_HUB = ("cache_dir", "token", "force_download")
#: Arguments of Diffusers' method that change nothing here.
_WITHOUT_EFFECT = ("low_cpu_mem_usage", "proxies")


def with_adapters(plan: Plan, adapters: "tuple[ImageAdapter, ...]", precision: str | None) -> Plan:
    """The plan with adapters: projections of images, and attention to them in the denoiser.

    Raises:
        InputError: an adapter was made for another denoiser.
    """
    if not adapters:
        return plan
    from perfuse.models.ip_adapter.projections import Projection

    denoiser = plan.components[plan.spec.denoiser.name]
    prompting = _prompting(denoiser.spec)
    names = denoiser.spec.signature.input_names
    described = prompting.described(denoiser.spec, adapters)
    mark = f"IP-Adapter {' '.join(_mark(adapter) for adapter in adapters)}"
    rebuilt = denoiser.rebuilt(prompting.attach, names, adapters, mark=mark, graph=mark)
    plan = plan.with_component(dataclasses.replace(rebuilt, spec=described))
    for spec, adapter in zip(prompting.projections(adapters), adapters, strict=False):
        build = Projection(adapter=adapter)
        one = Component(
            spec=spec,
            precision=precision if precision is not None else "float32",
            build=build,
            fingerprint=_mark(adapter),
        )
        plan = plan.with_component(one)
    return plan


def _prompting(denoiser: ComponentSpec) -> "Prompting":
    """How image prompts are added to a denoiser.

    Raises:
        InputError: no IP-Adapters are made for it.
    """
    found = image_prompts(denoiser)
    if found is None:
        raise InputError(
            f"An IP-Adapter was asked for; {denoiser.name} is a {denoiser.class_name}, for which there "
            "are none. They are made for Stable Diffusion, FLUX.1 and Chroma."
        )
    return found


def _encoder_place(given: Mapping[str, Any], model: Any, folder: Any) -> tuple[Any, str] | None:
    """The model that has the image encoder and the folder in it; ``None`` if none is to be read."""
    beside = given["image_encoder_folder"]
    other = given["image_encoder_pretrained_model_name_or_path"]
    if beside is None or other is None:
        return None
    if other != _ENCODER:
        return other, str(given["image_encoder_subfolder"]).strip("/")
    return model, (beside if "/" in beside else f"{folder}/{beside}").strip("/")


def _mark(adapter: "ImageAdapter") -> str:
    """Identifies an adapter's file as it is now."""
    found = adapter.file.stat()
    return f"{adapter.file} {found.st_size} {found.st_mtime_ns}"


class ImagePrompts:
    """The methods of a pipeline that load IP-Adapters and scale them."""

    _adapters: "tuple[ImageAdapter, ...]" = ()

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Names | Sequence[Names],
        *names: Any,
        subfolder: str | Sequence[str] | None = None,
        weight_name: str | Sequence[str] | None = None,
        image_encoder_folder: str | None = _ENCODER,
        image_encoder_pretrained_model_name_or_path: Names | None = _ENCODER,
        image_encoder_subfolder: str = "",
        image_encoder_dtype: Any = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        **settings: Any,
    ) -> None:
        """Load IP-Adapters, in place of those that are loaded.

        Args:
            pretrained_model_name_or_path_or_dict: A folder or a Hub id, or one for each adapter.
            *names: ``subfolder``, ``weight_name``, ``image_encoder_folder`` by position; of transformers
                ``weight_name`` comes first, and for FLUX.1 the encoder is named as below: as in Diffusers.
            subfolder: The folder in it that holds the file, or one for each adapter.
            weight_name: The name of the safetensors file, or of each.
            image_encoder_folder: The folder of the image encoder, beside the file or, if it has a
                slash, in the model. It is read unless the pipeline has an image encoder. ``None`` to
                read none, where embeddings are given.
            image_encoder_pretrained_model_name_or_path: A folder or a Hub id of the image encoder that is
                read in place of that one, as Diffusers' class takes it for FLUX.1; ``None`` for none.
            image_encoder_subfolder: The folder in that.
            image_encoder_dtype: Of no effect: the encoder computes in the pipeline's precision, or in its
                own, ``precision="image_encoder=float16"``.
            revision: Branch, tag or commit of a Hub repository.
            local_files_only: ``True`` reads only the Hub's cache.
            **settings: ``cache_dir``, ``token``, ``force_download``; others of Diffusers' have no
                effect.

        Raises:
            InputError: the numbers of files differ, an adapter was made for another denoiser, or an
                argument is unknown.
            WeightsError: a file is missing, damaged, a pickle, or no IP-Adapter.
        """
        from perfuse.models.ip_adapter.description import ImageAdapter

        pipe: Any = self
        prompting = _prompting(pipe._spec.denoiser)
        given: dict[str, Any] = {
            "subfolder": subfolder,
            "weight_name": weight_name,
            "image_encoder_folder": image_encoder_folder,
            "image_encoder_pretrained_model_name_or_path": image_encoder_pretrained_model_name_or_path,
            "image_encoder_subfolder": image_encoder_subfolder,
        }
        if len(names) > len(prompting.order):
            raise InputError(
                f"{len(names)} names were given by position after the model; load_ip_adapter takes "
                f"{', '.join(prompting.order)} here."
            )
        given |= dict(zip(prompting.order, names, strict=False))
        files = _listed(given["weight_name"] or prompting.weight_name)
        models, folders = (
            _as_many(_listed(one), len(files))
            for one in (pretrained_model_name_or_path_or_dict, given["subfolder"] or "")
        )
        hub = {key: settings.pop(key) for key in _HUB if settings.get(key) is not None}
        if unknown := [key for key in settings if key not in (*_HUB, *_WITHOUT_EFFECT)]:
            raise InputError(f"load_ip_adapter was given {', '.join(unknown)}, which it lacks.")
        fetch = _Fetch(revision=revision, offline=local_files_only, hub=hub)
        adapters = tuple(
            ImageAdapter.read(fetch.file(m, str(f), str(n)))
            for m, f, n in zip(models, folders, files, strict=True)
        )
        if pipe.source.format is not None:
            raise InputError(
                f"An IP-Adapter was to be loaded; {pipe.source.model} is an export, whose graphs are "
                "fixed. Load it into the checkpoint, and export that."
            )
        if len(adapters) > prompting.most:
            raise InputError(
                f"{len(adapters)} IP-Adapters were to be loaded; this family takes {prompting.most}."
            )
        prompting.described(pipe._spec.denoiser, adapters)  # before anything changes
        folder = None
        if pipe.image_encoder is None and (where := _encoder_place(given, models[0], folders[0])):
            folder = fetch.folder(*where, prompting.encoder_files)
        self._look(prompting, folder)
        self._adapted(adapters, ((prompting.scale,),) * len(adapters))

    def _look(self, prompting: "Prompting", folder: Path | None) -> None:
        """Take the image encoder in a folder, and what makes pictures ready for the pipeline's."""
        pipe: Any = self
        if folder is not None:
            pipe.image_encoder = prompting.image_encoder(folder)
        if pipe.feature_extractor is None:
            encoder = pipe._spec.having(Role.IMAGE_ENCODER)
            size = encoder[0].signature.inputs[0].shape[-1] if encoder else 224
            pipe.feature_extractor = prompting.processor(size, folder)

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
                "up": …, "mid": …}``, where what is not named is 0. For FLUX.1 and Chroma a number, a list
                with one for each block of two streams, or of several adapters a list of these; for
                Stable Diffusion 3 a number.

        Raises:
            InputError: there are more or fewer adapters, or a block that is named is not there.
        """
        pipe: Any = self
        spec: PipelineSpec = pipe.spec
        count = adapters_of(spec.denoiser)
        if count == 0:
            raise InputError(
                f"The scale {scale!r} was set; the pipeline has no IP-Adapter. Load one: "
                "pipe.load_ip_adapter(…)."
            )
        self._scaled(_prompting(spec.denoiser).scales(scale, spec.denoiser, count))

    @property
    def is_ip_adapter_active(self) -> bool:
        """Whether an IP-Adapter is loaded that counts."""
        pipe: Any = self
        scales = pipe._spec.options.get(SCALES, ())
        each = (one["layers"] if isinstance(one, Mapping) else one for one in scales)
        return any(number > 0 for one in each for number in one)

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
    #: ``cache_dir``, ``token``, ``force_download``.
    hub: Mapping[str, Any]

    def file(self, model: Any, folder: str, name: str) -> Path:
        path = self._place(model)
        if not path.is_dir():
            return self._from_hub(str(model), f"{folder}/{name}".strip("/"))
        found = path / folder / name
        if not name or not found.is_file():
            raise WeightsError(
                f"IP-Adapter {found} was asked for; there is no such file. Name it: subfolder=, "
                "weight_name=."
            )
        return found.resolve()

    def folder(self, model: Any, folder: str, files: Sequence[str]) -> Path:
        path = self._place(model)
        if path.is_dir():
            return path / folder
        found = [self._from_hub(str(model), f"{folder}/{name}".strip("/")) for name in files]
        return found[0].parent

    def _place(self, model: Any) -> Path:
        """The folder that is meant, if it is one.

        Raises:
            InputError: it is no name.
        """
        if not isinstance(model, str | os.PathLike):
            raise InputError(
                f"An IP-Adapter was to be loaded from a {type(model).__name__}. Name its folder or Hub id, "
                "and the safetensors file in it."
            )
        return user_path(os.fspath(model))

    def _from_hub(self, model: str, file: str) -> Path:
        from perfuse.sources.hub import file_from_hub

        return file_from_hub(model, file, self.revision, self.offline, self.hub)[0]
