"""The base class of perfuse's own models: building from a config, loading and saving."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from perfuse.errors import InputError
from perfuse.models.adapted import Adapted
from perfuse.models.config import ModelConfig
from perfuse.models.names import current

#: Diffusers' attention processors that compute the same as its default one, in another way.
_PLAIN_ATTENTION = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
)


class Model(Adapted, nn.Module):
    """One of perfuse's own models. Subclasses set ``config_class`` and create layers in ``build``.

    ``Model(**fields)`` initialises the weights at random; with the same seed, as Diffusers does.
    """

    config_class: ClassVar[type[ModelConfig]]
    #: The file that ``save_pretrained`` writes the weights to.
    weights_name: ClassVar[str] = "diffusion_pytorch_model.safetensors"
    config: ModelConfig

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config = self.config_class.from_dict(fields)
        self.build()

    def build(self) -> None:
        """Create the layers, in Diffusers' order, so that a seed gives the same weights."""
        raise NotImplementedError(f"{type(self).__name__} has no layers")

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | ModelConfig) -> Self:
        """A model of this configuration, its weights drawn at random."""
        fields = config.to_dict() if isinstance(config, ModelConfig) else dict(config)
        return cls(**fields)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **settings: Any,
    ) -> Self:
        """Load ``config.json`` and the safetensors weights of a component.

        Args:
            pretrained_model_name_or_path: A component's folder, or with ``subfolder`` a
                checkpoint's; or a Hub id.
            subfolder: The component's folder in it.
            variant: Weight files to take: ``"fp16"``.
            torch_dtype: Of the weights; by default float32, as in Diffusers.
            **settings: Diffusers' others: ``revision``, ``local_files_only``, ``cache_dir``,
                ``token``, ``device_map`` …

        Raises:
            CheckpointError: the folder or its config cannot be read.
            WeightsError: tensors are missing, unexpected, misshapen or damaged.
            InputError: a setting is unknown.
        """
        from perfuse.models.loading import component_folder, load_model

        where = pretrained_model_name_or_path
        path = component_folder(where, subfolder, settings)
        device = settings.pop("device_map", None)
        dtype = settings.pop("dtype", None) if torch_dtype is None else torch_dtype
        if settings:
            raise InputError(
                f"{cls.__name__}.from_pretrained was given {', '.join(settings)}, which it does not "
                "take. For another config: from_config({**config, field: value})."
            )
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        model = load_model(cls, path, variant=variant, dtype=dtype)
        return model if device is None else model.to(device)

    @classmethod
    def from_single_file(
        cls,
        file: str | os.PathLike[str],
        *,
        config: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        extract_ema: bool = False,
        revision: str | None = None,
        offline: bool | None = None,
        **fields: Any,
    ) -> Self:
        """Load this model from a checkpoint in its original layout, a file or a part of one.

        Args:
            file: Safetensors or GGUF: a file, its URL on the Hub, or OWNER/NAME/FILE.
            config: The folder or Hub id with the model's ``config.json``; by default the tensors
                tell it, with what is usual where they do not: an autoencoder's ``scaling_factor``
                of 0.18215.
            subfolder: The folder in ``config``: ``"unet"``.
            torch_dtype: float32 by default, however the tensors are stored.
            extract_ema: Take the averages that training kept, where the file has them.
            revision: Branch, tag or commit of a Hub repository.
            offline: Use only what the Hub's cache holds.
            **fields: Fields of the config that override it: ``scaling_factor=0.13025``. And
                Diffusers' ``local_files_only``, ``cache_dir``, ``token`` and, of a GGUF file,
                ``quantization_config``: linear layers then keep the blocks of the file, and compute in
                ``torch_dtype`` or else in the ``compute_dtype`` of that. Without it the blocks are
                dequantised when they are read.

        Raises:
            CheckpointError: the file does not hold this model, or its config cannot be read.
            WeightsError: the file is a pickle or damaged, or tensors are missing.
            InputError: a ``quantization_config`` of another kind than GGUF's was given.
        """
        from perfuse.models.loading import config_file, load_single_file

        settings = fields.pop("quantization_config", None)
        if settings is not None:
            computed = compute_dtype(settings)
            torch_dtype = computed if torch_dtype is None else torch_dtype
        if offline is None:
            offline = fields.pop("local_files_only", None)
        hub: dict[str, Any] = {n: fields.pop(n) for n in ("cache_dir", "token") if n in fields}
        place = None if config is None else config_file(config, subfolder, offline, hub)
        return load_single_file(
            cls,
            file,
            place,
            fields,
            dtype=torch_dtype,
            kept=settings is not None,
            ema=extract_ema,
            revision=revision,
            offline=offline,
            hub=hub,
        )

    def enable_layerwise_casting(self, *_: Any, **__: Any) -> None:
        """Refused: a pipeline stores weights in another type than it computes in.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{type(self).__name__}.enable_layerwise_casting was called. Call the pipeline's, "
            "pipe.enable_layerwise_casting(storage_dtype=…), which every backend can follow."
        )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Write ``config.json`` and the weights, named as Diffusers and Transformers name them.

        Args:
            save_directory: The folder.
            safe_serialization: ``True``: weights are written as safetensors alone.
            variant: Part of the weight file's name: ``"fp16"``.
            max_shard_size: Of no effect: the weights are one file.

        Raises:
            CheckpointError: the folder cannot be written.
            InputError: ``safe_serialization=False`` was given, or a variant that is no word.
        """
        from perfuse.models.loading import save_model

        if not safe_serialization:
            raise InputError(
                "safe_serialization=False was given; weights are written as safetensors."
            )
        save_model(self, Path(save_directory), variant=variant)

    def save_config(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` alone.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        from perfuse.models.loading import save_config

        save_config(self, Path(save_directory))

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """The content of a component's ``config.json``, for ``from_config``.

        Args:
            pretrained_model_name_or_path: As for ``from_pretrained``.
            subfolder: The component's folder in it.
            **settings: ``revision``, ``local_files_only``, ``cache_dir``, ``token``.

        Raises:
            CheckpointError: there is no such config, or it cannot be read.
        """
        from perfuse.models.loading import component_folder, read_config

        return read_config(component_folder(pretrained_model_name_or_path, subfolder, settings))

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the weights are; of those that gradients are computed for, if asked."""
        weights = self.parameters()
        return sum(one.numel() for one in weights if one.requires_grad or not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """How many bytes the weights take, and the buffers unless these are left out."""
        held = (*self.parameters(), *(self.buffers() if return_buffers else ()))
        return sum(one.nbytes for one in held)

    def set_attn_processor(self, processor: Any) -> None:
        """Change nothing for a processor that computes plain attention, as every backend does.

        Args:
            processor: One of Diffusers' processors, or a dict of them by layer.

        Raises:
            InputError: one of them computes something else.
        """
        several = processor.values() if isinstance(processor, Mapping) else [processor]
        for name in (type(one).__name__ for one in several):
            if name not in _PLAIN_ATTENTION:
                raise InputError(
                    f"A {name} was given to compute attention, which perfuse's {type(self).__name__} "
                    "does itself on every backend. Use Diffusers' model for it: "
                    "from_pretrained(…, bridged=True), and set the processor there."
                )

    def set_default_attn_processor(self) -> None:
        """Change nothing: attention is computed plainly."""

    @staticmethod
    def rename(name: str) -> str | None:
        """The current name of a tensor that older checkpoints call ``name``; ``None`` drops it."""
        return current(name)


def compute_dtype(settings: Any) -> torch.dtype:
    """What Diffusers' settings of a GGUF file say to compute in.

    Raises:
        InputError: they are of another kind.
    """
    if getattr(settings, "quant_method", None) != "gguf":
        raise InputError(
            f"quantization_config was given as a {type(settings).__name__}; of a single file it can be "
            "Diffusers' GGUFQuantizationConfig. For fewer bits give the pipeline a precision: "
            "precision='transformer=int8'."
        )
    dtype: torch.dtype = settings.compute_dtype
    return dtype


def check_attention(settings: Mapping[str, Any] | None, **others: Any) -> None:
    """Refuse what Diffusers' UNets and ControlNets take for their attentions, and perfuse's do not.

    Args:
        settings: ``cross_attention_kwargs``. A ``scale`` is that of adapters, of no effect on a model
            by itself.
        **others: Further arguments, by name, that are to be ``None``.

    Raises:
        InputError: something of it was given.
    """
    unknown = [name for name in settings or () if name != "scale"]
    given = [name for name, value in others.items() if value is not None] + unknown
    if given:
        raise InputError(
            f"{', '.join(given)} was given, which perfuse's network does not take. Use Diffusers' "
            "model for it: from_pretrained(…, bridged=True)."
        )


def as_batch(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """A timestep, given as a number or as [B], as a tensor [B] on the sample's device."""
    if not isinstance(timestep, Tensor):
        timestep = torch.tensor(
            timestep,
            dtype=torch.int64 if isinstance(timestep, int) else torch.float32,
            device=sample.device,
        )
    if timestep.ndim == 0:
        timestep = timestep[None]
    return timestep.to(sample.device).expand(sample.shape[0])
