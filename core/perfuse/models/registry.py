"""The architectures that core and the plugins know, by the class name that a checkpoint gives."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perfuse.contract.architecture import Architecture
from perfuse.contract.latents import LatentSpec, PixelLatents
from perfuse.contract.spec import ComponentSpec, Role
from perfuse.errors import CheckpointError, InputError
from perfuse.models.config import check_types
from perfuse.plugins import host, resolve

__all__ = [
    "describe",
    "find",
    "fitted",
    "host_inputs",
    "is_known",
    "latents_class",
    "latents_of",
    "own",
]


def own() -> Iterator[Architecture]:
    """Those of this package: of each folder in it that has ``ARCHITECTURES``."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.ispkg:
            yield from importlib.import_module(f"perfuse.models.{module.name}").ARCHITECTURES


def is_known(class_name: str) -> bool:
    """Whether an architecture of this class name is there."""
    return class_name in host().architectures()


def find(class_name: str, *, asked: str) -> Architecture:
    """The architecture of a class.

    Raises:
        CheckpointError: neither perfuse nor a plugin knows the class.
    """
    known = host().architectures()
    if class_name not in known:
        raise CheckpointError(
            f"{asked} is a {class_name}, which perfuse does not know; it knows "
            f"{', '.join(sorted(known))}. A plugin can add a class: hook perfuse_architectures."
        )
    return known[class_name]


def describe(
    class_name: str,
    name: str,
    folder: str,
    config: Mapping[str, Any],
    *,
    where: Path | None = None,
) -> tuple[ComponentSpec, ...]:
    """The components that a checkpoint's folder holds.

    Args:
        class_name: The checkpoint's class.
        name: What ``model_index.json`` calls it.
        folder: Where it is in the checkpoint.
        config: Its ``config.json``, parsed.
        where: The file, for errors about the types of its fields.

    Raises:
        CheckpointError: the class is unknown, or its config is not one it can take.
    """
    architecture = find(class_name, asked=name)
    if architecture.config and where is not None:
        fields: Any = resolve(architecture.config)
        check_types(fields, config, where=where)
    specs: tuple[ComponentSpec, ...] = resolve(architecture.describe)(name, folder, config)
    return specs


def fitted(components: Mapping[str, ComponentSpec]) -> dict[str, ComponentSpec]:
    """The components of one pipeline, each with what only the others tell of it."""
    known = {name: _architecture(spec) for name, spec in components.items()}
    return {
        name: resolve(one.fit)(spec, components) if (one := known[name]) and one.fit else spec
        for name, spec in components.items()
    }


def latents_of(components: Mapping[str, ComponentSpec]) -> LatentSpec:
    """The latents of a pipeline of these components; the denoiser has the last word.

    Raises:
        CheckpointError: a config says of latents what cannot be.
    """
    found: LatentSpec | None = None
    for spec in sorted(components.values(), key=lambda spec: spec.role == Role.DENOISER):
        architecture = _architecture(spec)
        if architecture is not None and architecture.latents:
            found = resolve(architecture.latents)(spec.config, found)
    return found if found is not None else PixelLatents()


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None = None
) -> dict[str, Any]:
    """The inputs of a component that its architecture computes on the host, as numpy arrays.

    Args:
        spec: The component.
        sizes: The size of each dimension of the call that is known, ``batch`` among them.
        guidance: The scale for a denoiser with embedded guidance.
    """
    architecture = _architecture(spec)
    if architecture is None or not architecture.host_inputs:
        return {}
    given: dict[str, Any] = resolve(architecture.host_inputs)(spec, sizes, guidance)
    return given


def latents_class(kind: str) -> type[LatentSpec]:
    """The class of latents that a manifest names.

    Raises:
        InputError: no architecture that is here has such latents.
    """
    if kind == PixelLatents.kind:
        return PixelLatents
    architecture = host().architectures().get(kind)
    if architecture is None or not architecture.latent_spec:
        raise InputError(f"the latents are those of {kind!r}, which no architecture here has")
    found: Any = resolve(architecture.latent_spec)
    if not (isinstance(found, type) and issubclass(found, LatentSpec)):
        raise InputError(f"{architecture.latent_spec} is no LatentSpec")
    return found


def _architecture(spec: ComponentSpec) -> Architecture | None:
    return host().architectures().get(spec.class_name)
