"""An immutable dict, so that the dataclasses that hold one can be hashed and pickled."""

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

__all__ = ["FrozenDict", "freeze"]

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(dict[K, V]):
    """An immutable, hashable, picklable dict. Lists in it become tuples, dicts ``FrozenDict``s.

    >>> config = FrozenDict({"channels": [32, 64]})
    >>> config["channels"]
    (32, 64)
    >>> hash(config) == hash(FrozenDict(channels=(32, 64)))
    True
    """

    __slots__ = ()

    def __init__(self, *args: Any, **entries: Any) -> None:
        given = dict(*args, **entries)
        super().__init__({key: freeze(value) for key, value in given.items()})

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def __or__(self, other: Mapping[Any, Any]) -> "FrozenDict[Any, Any]":
        return FrozenDict({**self, **other})

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("A FrozenDict cannot change; make another: old | {name: value}.")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse


def freeze(value: Any) -> Any:
    """The value with every list in it made a tuple and every dict a ``FrozenDict``."""
    if isinstance(value, FrozenDict):
        return value
    if isinstance(value, Mapping):
        return FrozenDict(value)
    if type(value) in (list, tuple):
        return tuple(freeze(item) for item in value)
    return value
