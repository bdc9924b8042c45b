"""A recipe: how a small random pipeline of one class is made, and how it is called."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["FAMILIES", "Made", "Recipe", "recipe", "recipes"]

#: The files that hold recipes, in the order of the table.
FAMILIES = (
    "stable_diffusion",
    "stable_diffusion_xl",
    "flux",
    "image_transformers",
    "priors",
    "unconditional",
    "video",
    "sound",
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A pipeline's components, and the arguments of the call that is measured."""

    components: Mapping[str, Any]
    call: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row of the table."""

    #: The class in Diffusers.
    pipeline: str
    #: ``"text to image"``.
    kind: str
    make: Callable[[], Made]
    #: What distinguishes a second row of the same class: ``"IP-Adapter"``.
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.pipeline} ({self.variant})" if self.variant else self.pipeline


_KNOWN: dict[str, Recipe] = {}


def recipe(
    pipeline: str, kind: str, *, variant: str = ""
) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    """Enter a function that makes components and a call into the table."""

    def enter(make: Callable[[], Made]) -> Callable[[], Made]:
        made = Recipe(pipeline=pipeline, kind=kind, make=make, variant=variant)
        if made.name in _KNOWN:
            raise ValueError(f"{made.name} has two recipes. Give one of them a variant.")
        _KNOWN[made.name] = made
        return make

    return enter


def recipes() -> Iterator[Recipe]:
    """Every recipe, family by family."""
    for family in FAMILIES:
        import_module(f"perfuse_conformance.bridged.{family}")
    yield from _KNOWN.values()
