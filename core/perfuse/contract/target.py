"""Where a component runs: targets, placements, devices, precisions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from perfuse.contract.frozen import FrozenDict
from perfuse.errors import InputError

__all__ = ["PRECISIONS", "Device", "Placement", "Target"]

#: What a component's weights and arithmetic can be asked to be.
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A backend and one of its devices, written ``BACKEND[:DEVICE]``."""

    backend: str
    #: ``None`` for the backend's default device. It may hold colons itself: ``torch:cuda:1``.
    device: str | None = None
    #: The backend's own switches, e.g. ``{"compile": "true"}``; it refuses those it does not have.
    options: Mapping[str, str] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", FrozenDict(self.options))

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
    components: Mapping[str, Target] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", FrozenDict(self.components))

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
