"""A component to prepare: its description, and where its weights or files come from."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.contract.changes import Changes
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.quantized import SCHEMES, Calibration
from perfuse.contract.spec import ComponentSpec, Signature
from perfuse.contract.weights import Reader, StoredTensor
from perfuse.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Component", "Recipe", "Rewritten"]


class Recipe(ABC):
    """How a component's torch module is made. Subclasses are frozen dataclasses of plain data."""

    @property
    def foreign(self) -> bool:
        """Whether the module is another library's, run as it is. It may then compute in float64."""
        return False

    @property
    def graph(self) -> str | None:
        """Identifies, with the component's description, the graph of the module whatever its weights.

        Components that agree in it, in ``spec``, precision, sizes and options share one graph.
        ``None`` where that is not known: they are then exported with their weights.
        """
        return None

    @property
    def quantized(self) -> str:
        """What few bits its weights come in, ``"q4_0"`` most of them in a GGUF file; empty for none.

        ``"gguf"`` for a module whose weights are such blocks in memory.
        """
        return ""

    @abstractmethod
    def __call__(self) -> "nn.Module":
        """Make it."""

    def tensors(self) -> Mapping[str, StoredTensor]:
        """The parameters and buffers of the module, by their names; no graph is made for it.

        Where a graph of the module is known, this is all that an engine needs besides.
        """
        return StoredTensor.all_of(self())

    def hollow(self) -> "tuple[nn.Module, Reader] | None":
        """The module without content, and what reads the parameters and buffers that it saves.

        ``None`` where these are not floating-point tensors of a file as they are.
        """
        return None

    def cast(self) -> "Recipe":
        """The recipe of the same module for a caller that will cast it to the component's precision.

        It may then do so itself, a tensor at a time, so that weights are never there twice.
        """
        return self

    def in_blocks(self) -> "Recipe":
        """The recipe of the same module whose layers keep the integers that the file has for them."""
        return self

    def with_spec(self, spec: ComponentSpec) -> "Recipe":
        """The recipe of the same module with the inputs and outputs of another description."""
        return self


@dataclass(frozen=True, kw_only=True)
class Exported(Recipe):
    """A placeholder for the torch module of an exported component, which no longer exists."""

    name: str

    def __call__(self) -> "nn.Module":
        raise InputError(
            f"The torch module of {self.name} was asked for; {self.name} comes from an export, "
            "which has no torch module. Open the checkpoint that was exported."
        )


@dataclass(frozen=True, kw_only=True)
class Rewritten(Recipe):
    """A recipe that builds another recipe's module and then rewrites it."""

    before: Recipe
    rewrite: "Callable[..., nn.Module]"
    arguments: tuple[Any, ...] = ()
    #: Identifies what the rewriting makes of the graph; ``""`` for nothing, ``None`` if that may
    #: depend on the weights.
    to_graph: str | None = None

    @property
    def foreign(self) -> bool:
        return isinstance(self.before, Recipe) and self.before.foreign

    @property
    def quantized(self) -> str:
        return self.before.quantized if isinstance(self.before, Recipe) else ""

    @property
    def graph(self) -> str | None:
        before = self.before.graph if isinstance(self.before, Recipe) else None
        if before is None or self.to_graph is None:
            return None
        return f"{before} {self.to_graph}".rstrip()

    def in_blocks(self) -> "Recipe":
        return replace(self, before=self.before.in_blocks())

    def with_spec(self, spec: ComponentSpec) -> "Recipe":
        return replace(self, before=self.before.with_spec(spec))

    def __call__(self) -> "nn.Module":
        # The module may be the user's own: share its tensors, copy its structure.
        module = self.before()
        tensors = (*module.parameters(), *module.buffers())
        own = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
        return self.rewrite(own, *self.arguments)


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component to prepare: its description, and where its weights or files come from."""

    spec: ComponentSpec
    precision: str = "float32"
    #: Dimensions to fix; every other one stays symbolic.
    static: Mapping[str, int] = field(default_factory=FrozenDict)
    #: If not empty, the only combinations of sizes that the symbolic dimensions will take:
    #: ``({"latent_height": 64, "latent_width": 96}, …)``.
    sizes: tuple[Mapping[str, int], ...] = ()
    #: The exporter's options, e.g. ``{"palettize": "6"}``: those to export with, or those that an
    #: artifact was exported with. An exporter refuses unknown ones.
    options: Mapping[str, str] = field(default_factory=FrozenDict)
    #: The weight format, where it differs from the precision: ``"int8"``. Empty otherwise. Backends
    #: and exporters refuse a format that they do not know.
    storage: str = ""
    #: What was measured of it to store it so; ``None`` where nothing was.
    calibration: Calibration | None = None
    #: Builds the torch module with its weights in their stored dtype. The module takes the
    #: signature's inputs in order and returns a tuple of its outputs. It may be the user's own: do
    #: not modify it. ``None`` for a component of an exported artifact.
    build: "Recipe | None" = None
    #: Identifies weights and config; part of an export's cache key. ``None`` where it is not known
    #: beforehand, as for a module that the user set.
    fingerprint: str | None = None
    #: Engine format to the file in an exported artifact: ``{"onnx": …/model.onnx}``.
    files: Mapping[str, Path] = field(default_factory=FrozenDict)
    #: What active adapters make of its weights. ``build`` has them in; who loads ``files`` puts them
    #: there. ``None`` where there are none.
    changes: Changes | None = None
    #: The component without them; ``None`` where there are none.
    plain: "Component | None" = None

    def __post_init__(self) -> None:
        for name in ("static", "options", "files"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))
        object.__setattr__(self, "sizes", tuple(FrozenDict(size) for size in self.sizes))

    @property
    def unchanged(self) -> "Component":
        """The component without adapters."""
        if self.plain is None:
            return self
        build, fingerprint = self.plain.build, self.plain.fingerprint
        return replace(self, build=build, fingerprint=fingerprint, changes=None, plain=None)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def recipe(self) -> "Recipe | None":
        """What builds its module: with weights in the blocks of a file, where its storage keeps them."""
        scheme = SCHEMES.get(self.storage)
        kept = scheme is not None and scheme.kept
        return self.build.in_blocks() if kept and isinstance(self.build, Recipe) else self.build

    @property
    def foreign(self) -> bool:
        """Whether its module is another library's, run as it is."""
        return isinstance(self.build, Recipe) and self.build.foreign

    @property
    def signature(self) -> Signature:
        """The signature with the fixed dimensions filled in."""
        return self.spec.signature.resolve(self.static)

    def with_spec(self, spec: ComponentSpec) -> "Component":
        """The component as another description has it: with inputs more or less, for one."""
        build = self.build.with_spec(spec) if self.build is not None else None
        return replace(self, spec=spec, build=build)

    def with_options(self, options: Mapping[str, str]) -> "Component":
        """The component with these exporter options added.

        Raises:
            InputError: the component is exported already.
        """
        if options and self.build is None:
            raise InputError(
                f"The option {', '.join(options)} was given for {self.name}, which is exported "
                "already. Export the checkpoint again with it."
            )
        return replace(self, options={**self.options, **options})

    def rebuilt(
        self,
        rewrite: "Callable[..., nn.Module]",
        *arguments: Any,
        mark: str = "",
        graph: str | None = None,
    ) -> "Component":
        """The component with its torch module rewritten when it is built.

        Args:
            rewrite: ``(module, *arguments) -> module``, a top-level function, so that it can be
                pickled. It may modify the module it is given.
            arguments: The function's other arguments; plain data.
            mark: Identifies the rewriting in the cache key: its name, and whatever its result
                depends on. The function's import path by default.
            graph: Identifies what the rewriting makes of the graph, where that follows from no
                value of a weight: its name and options. ``""`` where it changes weights alone.
                Without it the graph is taken to depend on the weights, and is shared with none.
        """
        fingerprint = self.fingerprint
        done = f"{rewrite.__module__}.{rewrite.__qualname__}"
        if fingerprint is not None:
            text = f"{fingerprint} {mark or done} {arguments}"
            fingerprint = hashlib.sha256(text.encode()).hexdigest()
        before = self.build if self.build is not None else Exported(name=self.name)
        build = Rewritten(
            before=before,
            rewrite=rewrite,
            arguments=arguments,
            to_graph=f"{done} {graph}" if graph else graph,
        )
        return replace(self, build=build, fingerprint=fingerprint)

    def check_dims(self, dims: Mapping[str, int]) -> None:
        """Raise ``InputError`` if the component was not exported for the sizes of a call."""
        self.spec.check_dims(dims)
        wrong = {n: dims[n] for n, size in self.static.items() if dims.get(n, size) != size}
        if wrong:
            raise InputError(
                f"{self.name} was exported for {_written(self.static)}; got {_written(wrong)}. Ask "
                "for that size, or export the checkpoint again for another: perfuse export --model "
                "M --to FORMAT --output DIR --height H --width W --batch B."
            )
        if self.sizes and not any(size.items() <= dims.items() for size in self.sizes):
            asked = {name: dims[name] for name in self.sizes[0] if name in dims}
            raise InputError(
                f"{self.name} was asked for {_written(asked)}; it was exported for "
                f"{'; '.join(_written(size) for size in self.sizes)}. "
                "Export the checkpoint again with the size that you need."
            )


def _written(dims: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in dims.items())
