"""One call of a module, taken apart: tensors on one side, everything else on the other.

The tensors become the inputs of a graph; everything else (flags, ``None``, numbers, the nesting of
lists and dicts) is part of what the graph was captured for.
"""

import enum
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from perfuse.errors import UnsupportedError

__all__ = ["Answer", "Call", "Shapes", "Tree"]

Shapes = tuple[tuple[int, ...], ...]
#: How arguments are nested: lists, dicts, outputs, and where their leaves are.
Tree = pytree.TreeSpec
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, enum.Enum)


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """The arguments of one call."""

    tensors: tuple[Tensor, ...]
    #: A name for each tensor: ``sample``, ``added_cond_kwargs_text_embeds``.
    names: tuple[str, ...]
    #: Every leaf of the arguments' tree; ``None`` where a tensor is. Where it is complex, its dtype: the
    #: tensor is real then, with a last axis of two.
    leaves: tuple[Any, ...]
    where: tuple[int, ...]
    tree: Tree

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        promoted: Mapping[Tree, Collection[int]] = MappingProxyType({}),
    ) -> "Call":
        """Take the arguments of ``function`` apart.

        Args:
            function: What is called, for its parameters' names.
            args: The positional arguments.
            kwargs: The others.
            promoted: For a tree of arguments, the numbers among its leaves, by position, that become
                inputs of the graph.

        Raises:
            UnsupportedError: an argument is neither a tensor nor plain data.
        """
        found, tree = _leaves((tuple(args), dict(kwargs)))
        parameters, numbers = _parameters(function), promoted.get(tree, ())
        tensors: list[Tensor] = []
        names: list[str] = []
        where: list[int] = []
        leaves: list[Any] = []
        for i, (path, leaf) in enumerate(found):
            value = torch.tensor(leaf) if i in numbers else leaf
            if isinstance(value, Tensor):
                pair = value.is_complex()
                tensors.append(torch.view_as_real(value.resolve_conj()) if pair else value)
                names.append(_unique(_name(path, parameters), names))
                where.append(i)
                leaves.append(value.dtype if pair else None)
            elif isinstance(value, torch.Generator):
                leaves.append(None)  # another object each time; nothing that is captured draws
            elif isinstance(value, _PLAIN):
                leaves.append(value)
            else:
                raise UnsupportedError(
                    f"it was given {_name(path, parameters)}, a {type(value).__name__}, which no "
                    "graph can take"
                )
        return cls(
            tensors=tuple(tensors),
            names=tuple(names),
            leaves=tuple(leaves),
            where=tuple(where),
            tree=tree,
        )

    @property
    def structure(self) -> tuple[Any, ...]:
        """What two calls must share for their tensors' sizes to be compared."""
        kinds = tuple((tensor.dtype, tensor.dim(), tensor.device) for tensor in self.tensors)
        return self.tree, self.where, kinds

    @property
    def key(self) -> tuple[Any, ...]:
        """What a graph is captured for, apart from sizes."""
        return *self.structure, tuple((type(leaf), leaf) for leaf in self.leaves)

    @property
    def shapes(self) -> Shapes:
        return tuple(tuple(tensor.shape) for tensor in self.tensors)

    @property
    def named(self) -> Mapping[str, Any]:
        """The arguments that were given by name."""
        return self.arguments(self.tensors)[1]

    @property
    def hollow(self) -> "Call":
        """The call without its tensors' numbers, to be kept."""
        return replace(self, tensors=_hollow(self.tensors))

    def changed_numbers(self, other: "Call") -> frozenset[int]:
        """The leaves that are numbers and differ; empty if anything else differs, too."""
        pairs = enumerate(zip(self.leaves, other.leaves, strict=True))
        differ = [(i, a, b) for i, (a, b) in pairs if a != b]
        if any(not (_is_number(a) and _is_number(b)) for _, a, b in differ):
            return frozenset()
        return frozenset(i for i, _, _ in differ)

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments again, with other tensors in their places."""
        put = {
            i: tensor if self.leaves[i] is None else torch.view_as_complex(tensor)
            for i, tensor in zip(self.where, tensors, strict=True)
        }
        leaves = [put.get(i, leaf) for i, leaf in enumerate(self.leaves)]
        args, kwargs = pytree.tree_unflatten(leaves, self.tree)
        return args, kwargs


def _hollow(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor, device="meta") for tensor in tensors)


def _leaves(value: Any) -> tuple[list[tuple[Sequence[Any], Any]], Tree]:
    """The leaves of a tree with the keys that lead to them, and what holds them together."""
    try:
        found, tree = pytree.tree_flatten_with_path(value)
        return list(found), tree
    except ValueError:  # Diffusers' and transformers' outputs are registered without keys
        leaves, tree = pytree.tree_flatten(value)
        paths: Sequence[Any] = [(i,) for i in range(len(leaves))]
        if isinstance(value, Mapping):
            paths = [path for path, _ in pytree.tree_flatten_with_path(dict(value))[0]]
        return list(zip(paths, leaves, strict=True)), tree


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _name(path: Sequence[Any], parameters: Sequence[str]) -> str:
    """A readable name of a leaf: the parameter, then the keys that lead to it."""
    side, *keys = (_written(entry) for entry in path)
    if not keys:
        return f"input_{side}"
    if side == "0" and keys and keys[0].isdecimal() and int(keys[0]) < len(parameters):
        keys[0] = parameters[int(keys[0])]
    return re.sub(r"\W", "_", "_".join(keys)) or "input"


def _written(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))


def _unique(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True, kw_only=True)
class _Gaussian:
    """Where an answer holds an autoencoder's distribution, which is made of one tensor."""

    kind: type[Any]
    deterministic: bool


_TENSOR = object()


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a call returned: its tensors, and how they are put together again."""

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    #: For every leaf: that it is a tensor, the distribution made of one, or the value itself.
    leaves: tuple[Any, ...]
    tree: Tree
    #: Where each tensor lay.
    devices: tuple[torch.device, ...]

    @classmethod
    def of(cls, value: Any) -> "Answer":
        """Take what a call returned apart.

        Raises:
            UnsupportedError: it holds something that is neither a tensor nor plain data.
        """
        found, tree = _leaves(value)
        tensors: list[Tensor] = []
        names: list[str] = []
        leaves: list[Any] = []
        for path, leaf in found:
            if isinstance(leaf, Tensor):
                tensors.append(leaf)
                leaves.append(_TENSOR)
            elif _is_gaussian(leaf):
                tensors.append(leaf.parameters)
                leaves.append(_Gaussian(kind=type(leaf), deterministic=leaf.deterministic))
            elif isinstance(leaf, _PLAIN):
                leaves.append(leaf)
                continue
            elif _is_cache(leaf):  # what a language model keeps for a next token: not asked for
                leaves.append(None)
                continue
            else:
                raise UnsupportedError(
                    f"it returns a {type(leaf).__name__}, which no graph can return"
                )
            words = [_written(entry) for entry in path] or ["output"]
            names.append(_unique("out_" + re.sub(r"\W", "_", "_".join(words)), names))
        return cls(
            tensors=tuple(tensors),
            names=tuple(names),
            leaves=tuple(leaves),
            tree=tree,
            devices=tuple(tensor.device for tensor in tensors),
        )

    @property
    def hollow(self) -> "Answer":
        """The answer without its tensors' numbers, to be kept."""
        return replace(self, tensors=_hollow(self.tensors))

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """What the call would have returned with these tensors."""
        rest = iter(tensors)
        leaves = []
        for leaf in self.leaves:
            if leaf is _TENSOR:
                leaves.append(next(rest))
            elif isinstance(leaf, _Gaussian):
                leaves.append(leaf.kind(next(rest), leaf.deterministic))
            else:
                leaves.append(leaf)
        return pytree.tree_unflatten(leaves, self.tree)


def _is_gaussian(value: Any) -> bool:
    return isinstance(getattr(value, "parameters", None), Tensor) and hasattr(
        value, "deterministic"
    )


def _is_cache(value: Any) -> bool:
    return any(kind.__module__ == "transformers.cache_utils" for kind in type(value).__mro__)
