"""The base class of perfuse's own models: building from a config, loading and saving."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from perfuse.models.config import ModelConfig

_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(rf"(attentions\.\d+\.)({'|'.join(_ATTENTION)})(?=\.(?:weight|bias)$)")


class Model(nn.Module):
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
        folder: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> Self:
        """Load ``config.json`` and the safetensors weights of a component's folder.

        Raises:
            CheckpointError: the folder or its config cannot be read.
            WeightsError: tensors are missing, unexpected, misshapen or damaged.
        """
        from perfuse.models.loading import load_model

        path = Path(folder) / subfolder if subfolder is not None else Path(folder)
        return load_model(cls, path, variant=variant, dtype=torch_dtype)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and the weights, named as Diffusers and Transformers name them."""
        from perfuse.models.loading import save_model

        save_model(self, Path(folder))

    @staticmethod
    def rename(name: str) -> str | None:
        """The current name of a tensor that older checkpoints call ``name``; ``None`` drops it.

        Before Diffusers 0.12, attention over pixels had other parameter names.
        """
        return _OLD_ATTENTION.sub(lambda old: old[1] + _ATTENTION[old[2]], name)


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
