"""The base class of model configurations: reads and checks ``config.json``, without torch.

Field names and defaults are those of Diffusers, whose checkpoints these classes read.
"""

import dataclasses
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from perfuse.errors import CheckpointError

__all__ = [
    "ModelConfig",
    "TransformersConfig",
    "check_types",
    "held_by_attention",
    "held_by_residual",
    "held_by_skips",
]


#: Above this a number in a config is none that a network computes with.
_HUGE = 1e30


def held_by_attention(tokens: int, width: int, keys: int | None = None) -> int:
    """How many numbers a transformer holds at once: the tokens, their queries, keys and values.

    Args:
        tokens: How many.
        width: Channels of a token, and of its queries.
        keys: Channels of its keys, and of its values; as many where heads do not share them.
    """
    return 2 * tokens * (width + (width if keys is None else keys))


def held_by_skips(sizes: Mapping[str, int], widths: Sequence[int], layers: Sequence[int]) -> int:
    """How many numbers a UNet holds at once: what its first half leaves for the second.

    Args:
        sizes: ``latent_height`` and ``latent_width``.
        widths: Channels of each block.
        layers: Of each block.
    """
    height, width = sizes["latent_height"], sizes["latent_width"]
    areas = [(height >> level) * (width >> level) for level in range(len(widths))]
    left = areas[0] * widths[0]
    for level, (channels, count) in enumerate(zip(widths, layers, strict=True)):
        # Its layers, and what is halved; the last block halves nothing.
        left += channels * (count * areas[level] + sum(areas[level + 1 : level + 2]))
    return left


def held_by_residual(sizes: Mapping[str, int], width: int) -> int:
    """How many numbers an autoencoder holds at once in a residual block at a picture's full size.

    Args:
        sizes: ``height`` and ``width`` of the picture, in pixels.
        width: Channels of the block.
    """
    return 2 * sizes["height"] * sizes["width"] * width


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _normal(value: Any, default: Any) -> Any:
    """One spelling of a value: of 1 and 1.0, ``None`` and ``False``, 8 and [8, 8] for two blocks."""
    if isinstance(default, bool) and value is None:
        return False
    if isinstance(value, list | tuple):
        listed = [_normal(one, None) for one in value]
        same = not isinstance(default, tuple) and all(one == listed[0] for one in listed)
        return listed[0] if same and listed else listed
    plain_int = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if plain_int else value


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base class of model configurations."""

    class_name: ClassVar[str] = ""
    #: Whether an unknown field is refused: for families of which newer variants appear, whose new
    #: fields change what a network computes.
    strict: ClassVar[bool] = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed ``config.json``; unknown fields are ignored with a warning, or refused.

        Raises:
            CheckpointError: the model cannot take a value, or it is strict and a field is unknown.
        """
        known = _names(cls)
        unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
        if unknown and cls.strict:
            said = ", ".join(f"{name}={config[name]!r}" for name in unknown)
            raise CheckpointError(
                f"{cls.class_name}: config.json has {said}, which perfuse does not know: it is of a "
                "newer variant, which may compute something else. Use a newer perfuse, or Diffusers "
                "through the bridge."
            )
        if unknown:
            warnings.warn(
                f"{cls.class_name}: config.json has {', '.join(unknown)}, which this class does "
                "not have; they are ignored, as Diffusers does.",
                stacklevel=2,
            )
        return cls(**{key: _frozen(value) for key, value in config.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, with the class name under ``_class_name``."""
        fields = {f.name: _thawed(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"_class_name": self.class_name, **fields}

    def normal(self) -> dict[str, Any]:
        """Plain data that is the same for two configurations that mean the same."""
        return {f.name: _normal(getattr(self, f.name), f.default) for f in dataclasses.fields(self)}

    # A config reads as a dictionary too, as Diffusers' do.

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field, or ``default`` if there is no such field."""
        return getattr(self, name) if name in self.keys() else default

    def keys(self) -> list[str]:
        """The names of the fields."""
        return [field.name for field in dataclasses.fields(self)]

    def values(self) -> list[Any]:
        """The fields' values."""
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """The fields' names and values."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def per_block(self, name: str) -> tuple[Any, ...]:
        """A field as one value per block, whether it is given so or as one value for all.

        Raises:
            CheckpointError: the field has another number of values than there are blocks.
        """
        value = getattr(self, name)
        count = len(self.block_out_channels)  # type: ignore[attr-defined]
        if not isinstance(value, tuple):
            return (value,) * count
        if len(value) != count:
            raise self.error(f"{name} has {len(value)} entries", f"one a block, {count}")
        return value

    def held(self, sizes: Mapping[str, int]) -> int:
        """How many numbers a model holds at once for one picture: a lower bound, 0 if unknown.

        Args:
            sizes: ``LatentSpec.dims`` of the picture; of an autoencoder ``height`` and ``width``.
        """
        return 0

    def error(self, found: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.class_name}: {found}; this model takes {wanted}.")

    def check_choice(self, name: str, choices: tuple[Any, ...]) -> None:
        if (value := getattr(self, name)) not in choices:
            known = ", ".join(str(choice) for choice in choices)
            raise self.error(f"{name} is {value!r}", known)

    def check_blocks(self, down: tuple[str, ...], up: tuple[str, ...]) -> None:
        count = len(self.block_out_channels)  # type: ignore[attr-defined]
        for name, known in (("down_block_types", down), ("up_block_types", up)):
            blocks = getattr(self, name)
            if len(blocks) != count:
                raise self.error(f"{name} has {len(blocks)} entries", f"one a block, {count}")
            for block in blocks:
                if block not in known:
                    raise self.error(f"{name} has {block!r}", ", ".join(known))


@dataclass(frozen=True, kw_only=True)
class TransformersConfig(ModelConfig):
    """The base class of configurations that Transformers writes, without values at their default."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed ``config.json``, of which a class here needs a few fields alone.

        Raises:
            CheckpointError: the model cannot take a value.
        """
        return cls(**{name: one for name, one in config.items() if name in _names(cls)})


def _names(config_class: type[ModelConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def check_types(config_class: type[Any], config: Mapping[str, Any], *, where: Path) -> None:
    """Check the types of a parsed ``config.json`` against the fields of a dataclass.

    Raises:
        CheckpointError: a value's type is not its field's.
    """
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        if item.name in config and not _accepts(
            hints[item.name], config[item.name], _most(item.name)
        ):
            wanted = item.type.__name__ if isinstance(item.type, type) else str(item.type)
            limits = f", no int below 0 or above {_most(item.name)}" if "int" in wanted else ""
            raise CheckpointError(
                f"{where}: {item.name} is {_short(config[item.name])}; {wanted} was expected{limits}"
                f"{', no NaN' if 'float' in wanted else ''}. Download or save the checkpoint again."
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:60]}…"


def _most(name: str) -> int:
    """The largest number that a field of a config may hold: far more than any model has."""
    return 500 if "layers" in name or "res_blocks" in name else 2**24


def _accepts(hint: Any, value: Any, most: int) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(choice, value, most) for choice in args)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_accepts(args[0], item, most) for item in value)
        return len(args) == len(value) and all(map(_accepts, args, value, [most] * len(args)))
    if isinstance(value, bool):
        return hint is bool
    if hint is int:
        return isinstance(value, int) and 0 <= value <= most
    if hint is float:
        return isinstance(value, int | float) and abs(value) < _HUGE
    return isinstance(value, hint)
