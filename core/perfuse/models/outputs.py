"""What models return: values by name, which can also be indexed as a tuple, as Diffusers' are."""

import dataclasses
from typing import Any

__all__ = ["ModelOutput"]


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """The base of models' outputs: frozen dataclasses that index by name and by number."""

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values in order."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))
