"""Precisions as they are written: of all components, of some, and the bits that weights are kept in.

``bfloat16`` is what all components compute in; ``unet=int8,vae_decoder=bfloat16`` is for components;
``int8+bfloat16`` keeps weights in eight bits and computes in bfloat16.
"""

from collections.abc import Mapping
from functools import lru_cache

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.quantized import SCHEMES
from perfuse.contract.spec import ComponentSpec, PipelineSpec
from perfuse.contract.target import PRECISIONS
from perfuse.errors import InputError

__all__ = ["check_precision", "general", "precision_of", "read_precision", "schemes_of"]

#: The name of what holds for all components that are not named.
_ALL = ""


def read_precision(text: str | None) -> tuple[str | None, tuple[str, ...]]:
    """What to compute in, and the transforms that keep weights in fewer bits.

    >>> read_precision("unet=int8+bfloat16,vae=float32")
    ('unet=bfloat16,vae=float32', ('storage:scheme=int8,component=unet',))

    Raises:
        InputError: a part of it is no precision, or a component is named twice.
    """
    if text is None:
        return None, ()
    floats, schemes = [], []
    parts = _parts(text)
    for name in sorted(parts, key=lambda name: name != _ALL):  # what is for all comes first
        precision = parts[name]
        scheme, _, computed = precision.rpartition("+")
        if precision in SCHEMES:
            scheme, computed = precision, ""
        if (scheme and scheme not in SCHEMES) or (computed and computed not in PRECISIONS):
            raise InputError(
                f"Precision {precision!r} was asked for; use one of {', '.join(PRECISIONS)}; for "
                f"weights in fewer bits one of {', '.join(SCHEMES)}; or both: int8+bfloat16."
            )
        if computed:
            floats.append(computed if name == _ALL else f"{name}={computed}")
        if scheme:
            where = "" if name == _ALL else f",component={name}"
            schemes.append(f"storage:scheme={scheme}{where}")
    return ",".join(floats) or None, tuple(schemes)


def schemes_of(text: str) -> dict[str, str]:
    """Component to its scheme of fewer bits, for ``unet=w8a8,text_encoder=int8``.

    Raises:
        InputError: a part of it names no component, or no such scheme.
    """
    parts = _parts(text)
    known = [name for name, scheme in SCHEMES.items() if not scheme.kept]
    if any(name == _ALL or scheme not in known for name, scheme in parts.items()):
        raise InputError(
            f"--precision {text} was given; components with schemes of fewer bits were expected, "
            f"unet=w8a8; schemes: {', '.join(known)}."
        )
    return dict(parts)


@lru_cache(maxsize=64)
def _parts(text: str) -> Mapping[str, str]:
    """Component to its precision, as it is written.

    Raises:
        InputError: a component stands there twice, or a part has no precision.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, precision = part.strip().rpartition("=")
        if name in found or not precision or (equals and not name):
            raise InputError(
                f"Precision {text!r} was asked for; it is written PRECISION, or COMPONENT=PRECISION "
                "with each component once: unet=int8,vae_decoder=bfloat16."
            )
        found[name] = precision
    return FrozenDict(found)


def check_precision(text: str | None, spec: PipelineSpec) -> str | None:
    """The text, seen to be of precisions to compute in and of a pipeline's components.

    Raises:
        InputError: it is not.
    """
    for name, precision in _parts(text).items() if text is not None else ():
        if precision not in PRECISIONS:
            raise InputError(
                f"Precision {precision!r} was asked for; use one of {', '.join(PRECISIONS)}."
            )
        known = {one for each in spec.components.values() for one in (each.name, each.part)}
        if name != _ALL and name not in known:
            raise InputError(
                f"Precision {text!r} was asked for; this pipeline has no {name}, it has "
                f"{', '.join(spec.components)}."
            )
    return text


def precision_of(spec: ComponentSpec, asked: str | None) -> str | None:
    """The precision of a component, where ``asked`` is that of the pipeline."""
    parts = _parts(asked) if asked is not None else {}
    names = (spec.name, spec.entry_of, spec.part, _ALL)
    found = next((parts[name] for name in names if name is not None and name in parts), None)
    # Some autoencoders overflow in half precision, and their config says so (SD XL's does).
    return "float32" if found == "float16" and spec.upcast else found


def general(asked: str | None) -> str:
    """The precision of what is not named; float32 where only components are."""
    return "float32" if asked is None else _parts(asked).get(_ALL, "float32")
