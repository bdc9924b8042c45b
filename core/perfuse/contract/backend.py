"""The contract between the host and a backend: what a plugin implements, what it is given."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from perfuse.contract.spec import Array, ComponentSpec, Signature
from perfuse.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from perfuse.sources.store import ArtifactStore

__all__ = [
    "PRECISIONS",
    "Array",
    "Backend",
    "Component",
    "Device",
    "ExecutionReport",
    "Exporter",
    "Options",
    "Placement",
    "Program",
    "Request",
    "Support",
    "SupportLevel",
    "Target",
    "read_options",
]

#: What a component's weights and arithmetic can be asked to be.
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A backend and one of its devices, written ``BACKEND[:DEVICE]``."""

    backend: str
    #: ``None`` for the backend's default device. It may hold colons itself: ``torch:cuda:1``.
    device: str | None = None
    #: The backend's own switches, e.g. ``{"compile": "true"}``; it refuses those it does not have.
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"openvino:GPU"``.

        Raises:
            InputError: the text is not of the form BACKEND[:DEVICE].
        """
        backend, colon, device = text.strip().partition(":")
        if not backend or (colon and not device):
            raise InputError(
                f"Backend {text!r} was asked for; a target is written BACKEND[:DEVICE], "
                "for example torch:cuda or openvino:GPU."
            )
        return cls(backend=backend, device=device or None)

    def __str__(self) -> str:
        return self.backend if self.device is None else f"{self.backend}:{self.device}"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which target each component runs on: one for everything, or one a component."""

    default: Target
    components: Mapping[str, Target] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, *, default: str | Callable[[], str] = "torch") -> Self:
        """Read ``"openvino:GPU"`` or ``"unet=openvino:GPU,vae_decoder=torch"``.

        Args:
            text: What a person wrote.
            default: The target of the rest where the text names none; called only then.

        Raises:
            InputError: a part of the text is not a target.
        """
        bases: list[Target] = []
        components: dict[str, Target] = {}
        for part in text.split(","):
            name, equals, target = part.partition("=")
            if equals and (not name.strip() or name.strip() in components):
                raise InputError(
                    f"Backend {text!r} was asked for; each COMPONENT=TARGET in it names another "
                    "component, for example unet=openvino:GPU,torch:cpu."
                )
            if equals:
                components[name.strip()] = Target.parse(target)
            else:
                bases.append(Target.parse(part))
        if len(bases) > 1:
            raise InputError(
                f"Backend {text!r} was asked for; {' and '.join(map(str, bases))} cannot both run "
                "the rest. Give one of them a component: unet=TARGET."
            )
        if not bases:
            bases = [Target.parse(default() if callable(default) else default)]
        return cls(default=bases[0], components=components)

    def __getitem__(self, component: str) -> Target:
        return self.components.get(component, self.default)

    def __str__(self) -> str:
        parts = [f"{name}={target}" for name, target in self.components.items()]
        return ",".join([str(self.default), *parts])


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device that a backend can run on."""

    #: What a person types after the colon: ``"cpu"``, ``"cuda:0"``, ``"GPU"``.
    name: str
    #: What the device calls itself.
    description: str = ""
    precisions: tuple[str, ...] = ("float32",)


class SupportLevel(Enum):
    """How far a backend supports a request."""

    FULL = "full"
    #: It works under the conditions that the reason names.
    CONDITIONAL = "conditional"
    #: The engine could; the backend does not yet.
    NOT_IMPLEMENTED = "not implemented"
    #: The engine cannot.
    UNSUPPORTED = "unsupported"
    #: Nobody has tried. It is let try, and earns nothing until somebody has.
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Support:
    """A backend's answer to a request, with the reason where it is not a plain yes."""

    level: SupportLevel
    reason: str = ""

    @property
    def works(self) -> bool:
        """Whether to go ahead."""
        return self.level not in (SupportLevel.NOT_IMPLEMENTED, SupportLevel.UNSUPPORTED)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a backend is asked whether it can do."""

    component: ComponentSpec
    precision: str
    device: str | None = None
    #: Dimensions to fix; every other one stays symbolic.
    static: Mapping[str, int] = field(default_factory=dict)
    #: Where not empty: the only sizes that the symbolic dimensions will have, together.
    sizes: tuple[Mapping[str, int], ...] = ()

    @classmethod
    def of(cls, component: "Component", target: Target) -> Self:
        """What preparing a component for a target asks for."""
        return cls(
            component=component.spec,
            precision=component.precision,
            device=target.device,
            static=component.static,
            sizes=component.sizes,
        )

    @property
    def any_size(self) -> bool:
        """Whether one program is to take sizes that nobody has listed."""
        return not self.sizes and not set(self.component.signature.dims) <= set(self.static)


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component to prepare: its description and where its weights, or its files, come from."""

    spec: ComponentSpec
    precision: str = "float32"
    #: Dimensions to fix; every other one stays symbolic.
    static: Mapping[str, int] = field(default_factory=dict)
    #: Where not empty: the only sizes that the dimensions that are not fixed will have, together:
    #: ``({"latent_height": 64, "latent_width": 96}, …)``.
    sizes: tuple[Mapping[str, int], ...] = ()
    #: The exporter's switches, e.g. ``{"palettize": "6"}``: those to use, or those that an exported
    #: artifact was made with. An exporter refuses those that it does not have.
    options: Mapping[str, str] = field(default_factory=dict)
    #: Builds the torch module with its weights, in the dtype that they are stored in: takes the
    #: signature's inputs in order, returns a tuple of its outputs. It may be the user's own and is
    #: not to be changed. ``None`` for a component of an exported artifact.
    build: "Callable[[], nn.Module] | None" = None
    #: Identifies weights and config; part of the key under which an export is cached. ``None``
    #: where nothing can be reused, as with a module that the user put in.
    fingerprint: str | None = None
    #: Engine format to the file that an exported artifact holds: ``{"onnx": …/model.onnx}``.
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def signature(self) -> Signature:
        """The signature with the fixed dimensions put in."""
        return self.spec.signature.resolve(self.static)

    def with_options(self, options: Mapping[str, str]) -> "Component":
        """The component with more of the exporter's switches.

        Raises:
            InputError: it is exported already.
        """
        if options and self.build is None:
            raise InputError(
                f"The option {', '.join(options)} was given for {self.name}, which is exported "
                "already. Export the checkpoint again with it."
            )
        return replace(self, options={**self.options, **options})

    def check_dims(self, dims: Mapping[str, int]) -> None:
        """Raise ``InputError`` where the sizes of a call are not among those it was made for."""
        self.spec.check_dims(dims)
        wrong = {n: dims[n] for n, size in self.static.items() if dims.get(n, size) != size}
        if wrong:
            raise InputError(
                f"{self.name} was exported for {_written(self.static)}; got {_written(wrong)}. Ask "
                "for that size, or export the checkpoint again for another: perfuse export --model M "
                "--to FORMAT --output DIR --height H --width W --batch B."
            )
        if self.sizes and not any(size.items() <= dims.items() for size in self.sizes):
            asked = {name: dims[name] for name in self.sizes[0] if name in dims}
            raise InputError(
                f"{self.name} was asked for {_written(asked)}; it was exported for "
                f"{'; '.join(_written(size) for size in self.sizes)}. "
                "Export the checkpoint again with the size that you need."
            )


@dataclass(frozen=True, kw_only=True)
class ExecutionReport:
    """What really ran: never what was asked for."""

    device: str
    precision: str
    engine: str
    #: Nodes or components that ran elsewhere than asked, and where.
    fallbacks: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Program(ABC):
    """A component that is ready to run: named arrays in, named arrays out.

    Floating-point inputs and outputs are float32 whatever the precision inside. A program never
    writes to its inputs. What it returns is the caller's to keep; a program never writes there again.
    """

    signature: Signature
    #: A torch device on which arrays may stay as tensors between programs; ``None`` for numpy.
    torch_device: str | None = None

    @abstractmethod
    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once.

        Raises:
            InputError: the arrays do not fit the signature.
            ExecutionError: the engine failed.
        """

    @abstractmethod
    def report(self) -> ExecutionReport:
        """The precision executed, the device, and what fell back to where."""

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release the engine's memory. Calling the program afterwards is an error."""


#: Each switch with the values that it takes: words, a range of whole numbers, or ``None`` for any text.
Options: TypeAlias = Mapping[str, Sequence[str] | range | None]


def read_options(given: Mapping[str, object], known: Options, *, of: str) -> dict[str, str]:
    """Check switches against those that there are.

    Args:
        given: What a person wrote; from Python, numbers and truth values are taken, too.
        known: The switches that there are.
        of: Whose they are, for the message: ``"The Core ML exporter"``.

    Returns:
        The switches as text; truth values as ``"true"`` and ``"false"``.

    Raises:
        InputError: a switch or a value is unknown.
    """
    options = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(
                f"{of} was given the option {name}; it has {', '.join(known) or 'none'}."
            )
        options[name] = text = str(value).lower() if isinstance(value, bool) else str(value)
        if not _takes(known[name], text):
            raise InputError(
                f"{of} was given the option {name}={text}; it takes {_values(known[name])}."
            )
    return options


def _takes(values: Sequence[str] | range | None, text: str) -> bool:
    if isinstance(values, range):
        return text.isdecimal() and int(text) in values
    return values is None or text in values


def _values(values: Sequence[str] | range | None) -> str:
    if isinstance(values, range):
        return f"a whole number from {values.start} to {values.stop - 1}"
    return ", ".join(values or ())


class Backend(ABC):
    """A plugin that turns components into programs on a device."""

    #: The name a person types before the colon.
    name: ClassVar[str]
    #: Its switches, ``--option NAME=VALUE``. The host refuses others.
    options: ClassVar[Options] = MappingProxyType({})

    @abstractmethod
    def devices(self) -> Sequence[Device]:
        """The devices present; the first is the default. May import the engine."""

    @abstractmethod
    def supports(self, request: Request) -> Support:
        """Whether it can run a component, at a precision, on a device."""

    def check(self, component: Component, target: Target) -> None:
        """What ``prepare`` begins with: refuse what ``supports`` says no to.

        Raises:
            UnsupportedError: with the reason.
            DeviceNotFoundError: as ``supports`` raises it.
        """
        support = self.supports(Request.of(component, target))
        if not support.works:
            raise UnsupportedError(
                f"{component.name} was to run in {component.precision} on {target}; "
                f"{support.reason}"
            )

    def switches(self, target: Target) -> dict[str, str]:
        """The switches of a target, checked against ``options``; for ``prepare``.

        Raises:
            InputError: a switch or a value is unknown.
        """
        return read_options(target.options, self.options, of=f"The {self.name} backend")

    @abstractmethod
    def prepare(self, component: Component, target: Target, store: "ArtifactStore") -> Program:
        """Make the component ready to run.

        Raises:
            DeviceNotFoundError: the engine does not list the device.
            UnsupportedError: what ``supports`` says no to.
            InputError: an option is unknown.
            ExportError: the component could not be lowered.
        """


def _written(dims: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in dims.items())


class Exporter(ABC):
    """A plugin that lowers components to one engine's file format. It needs no hardware."""

    #: The format's name: ``"onnx"``.
    format: ClassVar[str]
    #: Whether a file takes one size, or a list of sizes. The host then fixes every dimension.
    fixed: ClassVar[bool] = False
    #: Its switches. The host refuses others.
    options: ClassVar[Options] = MappingProxyType({})
    #: Whether the format's users look for a ``model_index.json`` in the folder, as a checkpoint has.
    indexed: ClassVar[bool] = False

    @abstractmethod
    def export(self, component: Component, folder: Path) -> Path:
        """Write the component into ``folder``, which exists and is empty; return its main file.

        The main file may be a folder, as a ``.mlpackage`` is.

        Raises:
            ExportError: the component could not be captured or lowered.
            InputError: an option cannot be used, with another or with this component.
        """

    def arrange(
        self,
        folder: Path,
        components: Mapping[str, Component],
        files: Mapping[str, Path],
        *,
        model: str,
    ) -> Mapping[str, Path]:
        """Put a whole pipeline's files where this format's users look for them.

        Called once, when every component has been exported, before the manifest is written.

        Args:
            folder: The pipeline's folder, with tokenizers and scheduler already in it.
            components: What was exported, by name; without modules.
            files: The main file of each, inside the folder.
            model: What the person called the model.

        Returns:
            The main file of each, where it is now.
        """
        return files

    def unsupported(self, program: "ExportedProgram", component: Component) -> Mapping[str, str]:
        """What of a captured graph this format cannot hold: ``{"aten.fft": "why"}``.

        For ``perfuse inspect --for``; an exporter that cannot say so beforehand says nothing.
        """
        return {}
