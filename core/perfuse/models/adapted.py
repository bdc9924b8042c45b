"""Adapters of a model that is a pipeline's, with the methods of Diffusers' models."""

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import nn

from perfuse.errors import InputError

__all__ = ["Adapted", "Adapters"]


class Adapters(Protocol):
    """What loads adapters into a model: a pipeline does, for all engines."""

    def load_lora_adapter(self, *given: Any, **named: Any) -> None: ...
    def set_adapters(self, *given: Any, **named: Any) -> None: ...
    def set_adapter(self, adapter_name: Any) -> None: ...
    def get_active_adapters(self) -> list[str]: ...
    def delete_adapters(self, adapter_names: Any) -> None: ...
    def disable_lora(self) -> None: ...
    def enable_lora(self) -> None: ...
    def fuse_lora(self, *given: Any, **named: Any) -> None: ...
    def unfuse_lora(self) -> None: ...
    def unload_lora_weights(self) -> None: ...


#: By model, the adapters of the pipeline that it was last read from, or put into.
_known: "WeakKeyDictionary[nn.Module, Adapters]" = WeakKeyDictionary()


class Adapted:
    """The methods of a model that load adapters; its pipeline does what they say.

    Each raises ``InputError`` for a model that is no pipeline's, or what the pipeline refuses.
    """

    def adapted_by(self: Any, adapters: Adapters) -> None:
        """Say which pipeline's adapters this model has."""
        _known[self] = adapters

    def _adapters(self: Any) -> Adapters:
        found = _known.get(self)
        if found is None:
            raise InputError(
                f"An adapter of this {type(self).__name__} was asked for; pipelines load adapters, for "
                "every backend. Put the model into one, pipe.unet = unet, and ask again."
            )
        return found

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **settings: Any,
    ) -> None:
        """Load an adapter into this model: a file, its folder, a Hub id, or tensors by name.

        Args:
            pretrained_model_name_or_path_or_dict: The adapter.
            prefix: What names of its tensors begin with; ``None`` for nothing.
            hotswap: Whether to put it in the place of the one of its name.
            **settings: ``adapter_name``, ``weight_name``, ``subfolder`` …
        """
        given = pretrained_model_name_or_path_or_dict
        self._adapters().load_lora_adapter(given, prefix, hotswap, **settings)

    def set_adapters(self, adapter_names: str | Sequence[str], weights: Any = None) -> None:
        """Have these adapters count, by so much each, and no others."""
        self._adapters().set_adapters(adapter_names, weights)

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Have these adapters count, as much as each last did, and no others."""
        self._adapters().set_adapter(adapter_name)

    def active_adapters(self) -> list[str]:
        """The adapters that count."""
        return self._adapters().get_active_adapters()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters out; what of them is fused stays."""
        self._adapters().delete_adapters(adapter_names)

    def disable_lora(self) -> None:
        """Draw without adapters in this model, until ``enable_lora``."""
        self._adapters().disable_lora()

    def enable_lora(self) -> None:
        """Draw with them again."""
        self._adapters().enable_lora()

    disable_adapters, enable_adapters = disable_lora, enable_lora

    def fuse_lora(
        self,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Make adapters part of the weights: they stay when they are unloaded, and are saved."""
        self._adapters().fuse_lora(lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self) -> None:
        """Make adapters that are loaded no longer part of the weights."""
        self._adapters().unfuse_lora()

    def unload_lora(self) -> None:
        """Take every adapter out; what is fused stays."""
        self._adapters().unload_lora_weights()
