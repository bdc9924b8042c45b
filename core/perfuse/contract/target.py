"""Where a component runs: targets, placements, devices, precisions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from perfuse.contract.frozen import FrozenDict
from perfuse.errors import InputError

__all__ = ["PRECISIONS", "Device", "Placement", "Target"]

#: The precisions that can be requested for a component's weights and arithmetic.
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A backend and one of its devices, written ``BACKEND[:DEVICE]``."""

    backend: str
    #: ``None`` for the backend's default device. It may hold colons itself: ``torch:cuda:1``.
    device: str | None = None
    #: The backend's options, e.g. ``{"compile": "true"}``; it refuses unknown ones.
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
    """Which target each component runs on: a default, and others by component."""

    default: Target
    components: Mapping[str, Target] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", FrozenDict(self.components))

    @classmethod
    def parse(cls, text: str, *, default: str | Callable[[], str] = "torch") -> Self:
        """Read ``"openvino:GPU"`` or ``"unet=openvino:GPU,vae_decoder=torch"``.

        Args:
            text: Targets, separated by commas; ``COMPONENT=TARGET`` is for one component.
            default: The target of all other components, where the text names none. A function is
                called only if it is needed.

        Raises:
            InputError: a part of the text is not a target.
        """
        bases: list[Target] = []
        components: dict[str, Target] = {}
        for part in text.split(","):
            name, equals, target = part.partition("=")
            if equals and (not name.strip() or name.strip() in components):
                raise InputError(
                    f"Backend {text!r} was asked for; {part.strip()!r} in it names no component, "
                    "or one that was named before. Give each component once, for example "
                    "unet=openvino:GPU,torch:cpu."
                )
            if equals:
                components[name.strip()] = Target.parse(target)
            else:
                bases.append(Target.parse(part))
        if len(bases) > 1:
            raise InputError(
                f"Backend {text!r} was asked for; {' and '.join(map(str, bases))} cannot both be "
                "the default. Give one of them a component: unet=TARGET."
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

    #: The name that a user types after the colon: ``"cpu"``, ``"cuda:0"``, ``"GPU"``.
    name: str
    #: The hardware's own name, as its driver reports it.
    description: str = ""
    precisions: tuple[str, ...] = ("float32",)
