"""The contract between the host and a backend: what a plugin implements, what it is given."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Self

from perfuse.contract.component import Component
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.options import Options, read_options
from perfuse.contract.spec import Array, ComponentSpec, Signature
from perfuse.contract.target import Device, Target
from perfuse.errors import UnsupportedError

if TYPE_CHECKING:
    from perfuse.sources.store import ArtifactStore

__all__ = [
    "Backend",
    "ExecutionReport",
    "Program",
    "Request",
    "Support",
    "SupportLevel",
]


class SupportLevel(Enum):
    """How far a backend supports a request."""

    FULL = "full"
    #: It works under the conditions that ``reason`` names.
    CONDITIONAL = "conditional"
    #: The engine can do it; this backend does not implement it yet.
    NOT_IMPLEMENTED = "not implemented"
    #: The engine cannot do it.
    UNSUPPORTED = "unsupported"
    #: Untested: ``prepare`` is attempted, and conformance grants no level.
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Support:
    """A backend's answer to a request, with a reason unless the answer is a plain yes."""

    level: SupportLevel
    reason: str = ""

    @property
    def works(self) -> bool:
        """Whether to go ahead."""
        return self.level not in (SupportLevel.NOT_IMPLEMENTED, SupportLevel.UNSUPPORTED)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The component, precision, device and sizes that ``Backend.supports`` is asked about."""

    component: ComponentSpec
    precision: str
    device: str | None = None
    #: Dimensions to fix; every other one stays symbolic.
    static: Mapping[str, int] = field(default_factory=FrozenDict)
    #: If not empty, the only combinations of sizes that the symbolic dimensions will take.
    sizes: tuple[Mapping[str, int], ...] = ()

    @classmethod
    def of(cls, component: "Component", target: Target) -> Self:
        """The request that preparing ``component`` for ``target`` makes."""
        return cls(
            component=component.spec,
            precision=component.precision,
            device=target.device,
            static=component.static,
            sizes=component.sizes,
        )

    @property
    def any_size(self) -> bool:
        """Whether one program must take sizes that are not listed beforehand."""
        return not self.sizes and not set(self.component.signature.dims) <= set(self.static)


@dataclass(frozen=True, kw_only=True)
class ExecutionReport:
    """What really ran, as the engine reports it; not what was requested."""

    device: str
    precision: str
    engine: str
    #: Nodes or components that ran on another device than requested, each with that device.
    fallbacks: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Program(ABC):
    """A component that is ready to run: named arrays in, named arrays out.

    Floating-point inputs and outputs are float32 whatever the precision inside. A program never
    writes to its inputs, nor again to an array that it has returned: the caller owns the outputs.
    """

    signature: Signature
    #: A torch device on which arrays may stay as tensors between programs; ``None`` for numpy.
    torch_device: str | None = None
    #: The largest batch that one run of the engine takes; a larger one is split. ``None`` for any.
    max_batch: int | None = None
    #: Whether it may be called from several threads at once, and beside other programs that may.
    concurrent: bool = False

    @abstractmethod
    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once: arrays by the signature's input names in, arrays by its output names out.

        Raises:
            InputError: the arrays do not fit the signature.
            ExecutionError: the engine failed.
        """

    @abstractmethod
    def report(self) -> ExecutionReport:
        """The device and the precision that ran, and what fell back to another device."""

    def rebind(self, component: Component) -> bool:
        """Take the weights of the same component with other adapters, or with none.

        Returns:
            ``False`` where the engine cannot; the program is then prepared anew.
        """
        return False

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release the engine's memory. Calling the program afterwards is an error."""


class Backend(ABC):
    """A plugin that turns components into programs on a device."""

    #: The name that a user types before the colon: ``"openvino"`` in ``openvino:GPU``.
    name: ClassVar[str]
    #: Weight formats it can store, apart from the precision it computes in: ``("int8",)``.
    storages: ClassVar[tuple[str, ...]] = ()
    #: Its options, ``--option NAME=VALUE``. The host refuses unknown ones.
    options: ClassVar[Options] = FrozenDict()

    @abstractmethod
    def devices(self) -> Sequence[Device]:
        """The devices that are present; the first is the default. May import the engine."""

    @abstractmethod
    def supports(self, request: Request) -> Support:
        """Whether the backend can run a component at a precision on a device."""

    def check(self, component: Component, target: Target) -> None:
        """Refuse a component that ``supports`` says no to; call it first in ``prepare``.

        Raises:
            UnsupportedError: ``supports`` says no; the message holds its reason.
            DeviceNotFoundError: raised by ``supports``: the engine does not list the device.
        """
        support = self.supports(Request.of(component, target))
        if not support.works:
            raise UnsupportedError(
                f"{component.name} was to run in {component.precision} on {target}; "
                f"{support.reason}"
            )
        self.check_storage(component, target)

    def check_storage(self, component: Component, target: Target) -> None:
        """Refuse a scheme of storing weights that ``storages`` does not name.

        Raises:
            UnsupportedError: with those that it has.
        """
        if component.storage and component.storage not in self.storages:
            raise UnsupportedError(
                f"{component.name} was to store its weights as {component.storage} on {target}; "
                f"{self.name} stores them as {', '.join(self.storages) or 'the precision alone'}."
            )

    def switches(self, target: Target) -> dict[str, str]:
        """The options of a target, checked against ``options``; for use in ``prepare``.

        Raises:
            InputError: an option or its value is unknown.
        """
        return read_options(target.options, self.options, of=f"The {self.name} backend")

    def weights(self, component: Component) -> Mapping[str, tuple[int, ...]] | None:
        """The weights of an exported component that it can load with adapters in them.

        Returns:
            Their shapes by their names in the model's state dict; ``None`` where it loads a file
            as it is. ``prepare`` is then never given one with ``changes``.

        Raises:
            ArtifactError: the file, or what is beside it, is damaged.
        """
        return None

    def footprint(
        self, component: Component, target: Target, *, in_pieces: bool = False
    ) -> float | None:
        """The most memory that loading a component takes, over the size of its weights.

        Args:
            component: What to load.
            target: Where.
            in_pieces: Of a piece of it, which ``prepare_in_pieces`` loads.

        Returns:
            ``None`` where it cannot be loaded in pieces.
        """
        return None if in_pieces else 1.0

    def prepare_in_pieces(
        self, component: Component, target: Target, store: "ArtifactStore", room: int
    ) -> Program:
        """Make the component ready to run with some of its weights in memory at a time.

        Called where ``footprint`` says that it can be. See ``perfuse.contract.pieces``.

        Args:
            component: What to run.
            target: Where.
            store: Where graphs are.
            room: The bytes of weights that may be loaded together. A single operation may have more.

        Raises:
            BackendError: it cannot, or as ``prepare``.
            ExportError: the component could not be lowered.
        """
        raise UnsupportedError(
            f"{component.name} was to run in pieces on {target}; {self.name} loads components as a "
            "whole. Give --memory enough for that, or leave it out."
        )

    @abstractmethod
    def prepare(self, component: Component, target: Target, store: "ArtifactStore") -> Program:
        """Make the component ready to run.

        Raises:
            DeviceNotFoundError: the engine does not list the device.
            UnsupportedError: ``supports`` says no.
            InputError: an option is unknown.
            ExportError: the component could not be lowered.
        """
