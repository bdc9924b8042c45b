"""What ``step`` returns: a dictionary that is also a tuple and has attributes, as Diffusers' are."""

from __future__ import annotations

from typing import Any

__all__ = ["StepOutput"]


class StepOutput(dict[str, Any]):
    """The arrays of a step by name; the first is ``prev_sample``.

    >>> out = StepOutput(prev_sample=1.0, pred_original_sample=2.0)
    >>> out.prev_sample, out["prev_sample"], out[0], out[:]
    (1.0, 1.0, 1.0, (1.0, 2.0))
    >>> out.to_tuple()
    (1.0, 2.0)
    """

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(
                f"This output has no {name!r}. It has: {', '.join(self)}."
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __reduce__(self) -> tuple[type[StepOutput], tuple[dict[str, Any]]]:
        return StepOutput, (dict(self),)

    def to_tuple(self) -> tuple[Any, ...]:
        """The arrays in order."""
        return tuple(self.values())

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Nothing can be taken out of what a step returned. Make a dict(...) of it.")

    __delitem__ = pop = popitem = update = setdefault = clear = _refuse
