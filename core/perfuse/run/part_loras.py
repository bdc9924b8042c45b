"""Loading LoRAs into one model of a pipeline, with the methods of Diffusers' models."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import ref

from perfuse.errors import InputError
from perfuse.run.lora_state import Loras
from perfuse.run.loras import LoraMethods, Weight
from perfuse.sources.adapters import Home

if TYPE_CHECKING:
    from perfuse.run.parts import Parts

__all__ = ["PartLoras"]


class PartLoras(LoraMethods):
    """The adapters of one model, which are its pipeline's: ``pipe.unet.set_adapters``."""

    def __init__(self, pipe: "Parts", part: str) -> None:
        self._of, self._part = ref(pipe), part

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: "str | os.PathLike[str] | Mapping[str, Any]",
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **settings: Any,
    ) -> None:
        """Load an adapter into this model alone.

        Args:
            pretrained_model_name_or_path_or_dict: As of ``load_lora_weights``.
            prefix: What names of its tensors begin with, ``"unet"``; ``None`` for nothing.
            hotswap: As of ``load_lora_weights``.
            **settings: As of ``load_lora_weights``: ``adapter_name`` …

        Raises:
            InputError: no name begins so, or the adapter's is taken.
            WeightsError: the file is damaged or a pickle, or was made for another model.
        """
        one = PartLoras(self._pipe, self._part)
        one._only = "" if prefix is None else prefix
        one.load_lora_weights(pretrained_model_name_or_path_or_dict, hotswap=hotswap, **settings)

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: Weight | Sequence[Weight] = None,
        weights: Weight | Sequence[Weight] = None,
    ) -> None:
        """Have these adapters count in this model; weights are numbers, or dicts of its blocks.

        Raises:
            InputError: an adapter is not loaded, or a weight cannot be used.
        """
        given: Any = adapter_weights if weights is None else weights
        if isinstance(given, list | tuple):
            given = [self._named(one) for one in given]
        super().set_adapters(adapter_names, self._named(given))

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Have these adapters count in this model, each as much as it did when it last counted.

        Raises:
            InputError: one is not loaded.
        """
        names = (adapter_name,) if isinstance(adapter_name, str) else tuple(adapter_name)
        self._loras.check(names)
        self._use(dataclasses.replace(self._loras, active={self._part: names}))

    def _named(self, weight: Any) -> Any:
        return {self._part: weight} if isinstance(weight, Mapping) else weight

    def fuse_lora(  # type: ignore[override]
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: Any = None
    ) -> None:
        """Make adapters part of this model's weights."""
        super().fuse_lora([self._part], lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self) -> None:  # type: ignore[override]
        """Make them no longer part of its weights."""
        super().unfuse_lora([self._part])

    def _use(self, loras: Loras) -> None:
        self._pipe._use(self._pipe._loras.with_part(self._part, loras))

    @property
    def _loras(self) -> Loras:  # type: ignore[override]
        loras: Loras = self._pipe.loras
        return loras.of(self._part)

    @property
    def _pipe(self) -> Any:
        pipe = self._of()
        if pipe is None:
            raise InputError(
                f"An adapter of the {self._part} was asked for; the pipeline that it was read from is "
                "gone. Keep the pipeline, or put the model into another: pipe.unet = unet."
            )
        return pipe

    def _homes(self) -> dict[str, Home]:
        homes = self._pipe._homes()
        if self._part not in homes:
            raise InputError(f"An adapter was given for the {self._part}, which takes none.")
        return {self._part: homes[self._part]}
