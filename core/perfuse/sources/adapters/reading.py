"""Reading an adapter: each tensor finds its layer, each layer's tensors become a ``Delta``."""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays import to_numpy
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.original import Stacked
from perfuse.errors import InputError, WeightsError
from perfuse.sources.adapters.bases import looks_like
from perfuse.sources.adapters.delta import Delta
from perfuse.sources.adapters.dora import DoRA
from perfuse.sources.adapters.files import Place, find_file
from perfuse.sources.adapters.layout import DENOISER, T5, Key, read_key
from perfuse.sources.adapters.loha import LoHa
from perfuse.sources.adapters.lokr import LoKr
from perfuse.sources.adapters.lora import LoRA
from perfuse.sources.adapters.settings import Settings
from perfuse.sources.tensors import read_tensors
from perfuse.sources.weights import some

__all__ = ["Adapter", "Home", "read_adapter"]

Tensor = NDArray[Any]
Factors = Mapping[str, Tensor]
#: The factors that are no matrices.
_OF_ANY_RANK = ("alpha", "dora_scale", "magnitude")
#: What is added to a bias or a norm as it is: nothing, in many files.
_ADDED = (".diff", ".diff_b")


@dataclass(frozen=True, kw_only=True)
class Home:
    """A part of a pipeline whose weights adapters may change."""

    #: ``"unet"``, ``"text_encoder_2"``.
    part: str
    #: Whether it is the pipeline's denoiser.
    denoiser: bool
    #: The weights by their names in the model's state dict.
    shapes: Mapping[str, tuple[int, ...]]
    #: Other files' names of layers, and the model's own.
    aliases: Mapping[str, str | Stacked] = field(default_factory=FrozenDict)
    #: Whether a layer of the checkpoint is one whose results nothing reads, by its name there: of a
    #: language model those above the states that a denoiser takes. What a file has for it is left out.
    unread: Callable[[str], bool] = field(default=lambda _: False, compare=False)

    @property
    def layers(self) -> dict[str, Stacked]:
        """Each name of a layer, with ``_`` for every ``.``, and the layers that it means."""
        own = [name.removesuffix(".weight") for name in self.shapes if name.endswith(".weight")]
        known = {other: _stacked(one) for other, one in self.aliases.items()}
        there = frozenset(own)
        found = {other: one for other, one in known.items() if there.issuperset(one.layers)}
        found |= {layer: _stacked(layer) for layer in own}
        return {layer.replace(".", "_"): one for layer, one in found.items()}

    def rows(self, target: Stacked) -> dict[str, NDArray[np.intp]]:
        """The weights that a layer of a file means, and which of its rows each has."""
        counts = {f"{layer}.weight": self.shapes[f"{layer}.weight"][0] for layer in target.layers}
        every = np.arange(sum(counts.values()))
        if target.swapped:
            every = np.roll(every, len(every) // 2)
        ends = itertools.accumulate(counts.values())
        return {
            name: every[end - count : end]
            for (name, count), end in zip(counts.items(), ends, strict=True)
        }


def _stacked(layer: str | Stacked) -> Stacked:
    return layer if isinstance(layer, Stacked) else Stacked(layers=(layer,))


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter that was read: what it makes of which weight of which part."""

    #: What the user calls it.
    name: str
    #: The file that it was read from; ``None`` for tensors in memory.
    file: str | None
    #: A digest of its tensors.
    fingerprint: str
    #: By part, by the weight's name in the model's state dict.
    deltas: Mapping[str, Mapping[str, Delta]] = field(compare=False, repr=False)


def read_adapter(
    given: "str | os.PathLike[str] | Mapping[str, Any]",
    homes: Mapping[str, Home],
    *,
    name: str,
    of: str,
    place: Place | None = None,
    only: str | None = None,
) -> Adapter:
    """Read a LoRA, LoHa, LoKr or DoRA.

    Args:
        given: A safetensors file, its folder or OWNER/NAME on the Hub; or its tensors by name.
        homes: The parts that it may change, by name.
        name: What the user calls it.
        of: The pipeline's class, for messages.
        place: Where in a folder or a repository the file is.
        only: What the names of the tensors to read begin with, of those of one part: ``"unet"``; ``""``
            for names that begin with nothing. ``None`` for all of them, of all parts.

    Raises:
        CheckpointError: the Hub does not give the file.
        InputError: it is neither a path nor tensors by name, or has none that begin so.
        WeightsError: the file is missing, damaged or a pickle; or it is not for this pipeline.
    """
    file, metadata, beside = None, dict[str, str](), Settings()
    denoiser = next((one.part for one in homes.values() if one.denoiser), next(iter(homes), ""))
    if isinstance(given, Mapping):
        tensors = {str(key): _in_memory(key, one) for key, one in given.items()}
    elif isinstance(given, str | os.PathLike):
        path = find_file(given, place if place is not None else Place())
        tensors, noted = read_tensors(path)
        file, metadata = str(path), dict(noted)
        beside = Settings.beside(path, denoiser)
    else:
        raise InputError(
            f"A LoRA was given as a {type(given).__name__}; give a file, its folder, OWNER/NAME on "
            "the Hub, or a dict of tensors."
        )
    where = file if file is not None else f"The LoRA {name!r}"
    if only is not None:
        tensors = _of_one(tensors, only, *homes, where=where)
    settings = Settings.of(metadata, where=where)
    settings = settings if settings.values else beside
    return Adapter(
        name=name,
        file=file,
        fingerprint=_digest(tensors, settings),
        deltas=_Reader(where=where, of=of, homes=homes, settings=settings).deltas(tensors),
    )


def _of_one(tensors: Mapping[str, Any], prefix: str, part: str, *, where: str) -> dict[str, Any]:
    """The tensors whose names begin with a word, with the part's name in its place."""
    before = f"{prefix}." if prefix else ""
    found = {f"{part}.{n[len(before) :]}": t for n, t in tensors.items() if n.startswith(before)}
    if not found:
        raise InputError(
            f"{where} was to be loaded with prefix={prefix!r}; none of its names begin so, {next(iter(tensors), '')!r} "
            "for one. Give the prefix that they have, or None."
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Reads the tensors of one file."""

    where: str
    of: str
    homes: Mapping[str, Home]
    settings: Settings

    def deltas(self, tensors: Factors) -> dict[str, dict[str, Delta]]:
        """What the tensors are, by part and by weight."""
        if not tensors:
            raise WeightsError(f"{self.where} holds no tensors. Save or download it again.")
        found: dict[str, dict[str, Delta]] = {}
        for (part, target), factors in self._sorted(tensors).items():
            delta = self._delta(part, target, factors)
            weights = found.setdefault(part, {})
            for weight, piece in self._pieces(tensors, part, target, delta):
                if weight in weights:
                    raise WeightsError(
                        f"{self.where} has {part}.{weight} twice, by itself and as a part of a "
                        "larger layer. Save it again in one layout."
                    )
                weights[weight] = piece
        return found

    def _pieces(
        self, tensors: Factors, part: str, target: Stacked, delta: Delta
    ) -> Iterator[tuple[str, Delta]]:
        """The weights that a change is for, and the part of it that is each one's."""
        home, label = self.homes[part], f"{part}.{' + '.join(target.layers)}.weight"
        placed = home.rows(target)
        shape = home.shapes[next(iter(placed))]
        whole = (sum(map(len, placed.values())), *shape[1:])
        if not delta.fits(whole):
            raise self._misfit(tensors, delta, label, whole)
        if delta.rank > max(delta.size):
            raise WeightsError(
                f"{self.where} has a change of rank {delta.rank} for {label}, which is "
                f"{delta.size[0]} by {delta.size[1]}: the rank is larger than the layer."
            )
        plain = len(placed) == 1 and not target.swapped
        for weight, rows in placed.items():
            try:
                yield weight, delta if plain else delta.taking(rows)
            except ValueError as exc:
                raise WeightsError(f"{self.where} has a change of {label} apart: {exc}.") from exc

    def _sorted(self, tensors: Factors) -> dict[tuple[str, Stacked], dict[str, Tensor]]:
        """The tensors by the layers that they are for, and there by factor."""
        layers = {part: home.layers for part, home in self.homes.items()}
        encoders = sorted(one.part for one in self.homes.values() if not one.denoiser)
        denoiser = next((one.part for one in self.homes.values() if one.denoiser), "")
        means = {DENOISER: denoiser, T5: encoders[-1] if encoders else ""}
        homeless, groups = [], dict[tuple[str, Stacked], dict[str, Tensor]]()
        for name, tensor in tensors.items():
            key = read_key(name)
            part = means.get(key.part, key.part) if key is not None else ""
            target = layers.get(part, {}).get(key.layer) if key is not None else None
            if key is None or target is None:
                unread = key is not None and part in layers and self.homes[part].unread(key.name)
                if not unread and (not name.endswith(_ADDED) or tensor.any()):
                    homeless.append(name)
                continue
            factors = groups.setdefault((part, target), {})
            if key.factor in factors:
                raise WeightsError(
                    f"{self.where} has the {key.factor} of {part}.{' + '.join(target.layers)} "
                    f"twice, as {name} and under another name. Save it again in one layout."
                )
            factors[key.factor] = self._checked(name, tensor, key)
        if homeless:
            raise WeightsError(
                f"{self.where} has {len(homeless)} of {len(tensors)} tensors that {self.of} has no "
                f"place for: {some(homeless)}.{self._guess(tensors)}"
            )
        return groups

    def _checked(self, name: str, tensor: Tensor, key: Key) -> Tensor:
        if not tensor.size:
            raise WeightsError(f"{self.where} has {name} of rank 0: its shape is {tensor.shape}.")
        if not np.isfinite(tensor).all():
            raise WeightsError(f"{self.where} has {name}, which holds NaN or infinity.")
        if key.factor == "alpha" and tensor.size != 1:
            raise WeightsError(
                f"{self.where} has {name} of shape {tensor.shape}; it is one number."
            )
        if key.factor not in _OF_ANY_RANK and tensor.ndim not in (2, 4):
            raise WeightsError(
                f"{self.where} has {name} of shape {tensor.shape}, which is no factor of a weight."
            )
        return tensor

    def _delta(self, part: str, target: Stacked, factors: Factors) -> Delta:
        """What the factors of one layer make of it."""
        rest = dict(factors)
        alpha, magnitude = rest.pop("alpha", None), rest.pop("dora_scale", None)
        if (own := rest.pop("magnitude", None)) is not None:  # a convolution's as [1, out, 1, 1]
            magnitude = own.reshape(-1)
        try:
            delta = _kind(rest)
        except KeyError as exc:
            raise WeightsError(
                f"{self.where} has no {exc.args[0]} for {part}.{target.layers[0]}; it has "
                f"{', '.join(rest) or 'nothing'}. Save or download it again."
            ) from exc
        if alpha is not None:
            delta = replace(delta, scale=_scale(delta, float(alpha.reshape(()))))
        else:
            scale = self.settings.scale(part, target.layers[0], delta.rank)
            delta = replace(delta, scale=scale)
        return delta if magnitude is None else DoRA(inner=delta, magnitude=magnitude)

    def _misfit(
        self, tensors: Factors, delta: Delta, where: str, shape: tuple[int, ...]
    ) -> WeightsError:
        rows, columns = delta.size
        return WeightsError(
            f"{self.where} has a change of {rows} by {columns}, rank {delta.rank}, for {where}, "
            f"which is {shape[0]} by {math.prod(shape[1:])}.{self._guess(tensors)}"
        )

    def _guess(self, tensors: Factors) -> str:
        base = looks_like({name: one.shape for name, one in tensors.items()})
        if base is None:
            return " Use one that was made for this model."
        return f" It looks to be made for {base}: load it there."


def _kind(factors: Mapping[str, Tensor]) -> Delta:
    """The change that factors of these names make; ``KeyError`` names one that is missing."""
    if any(name.startswith("hada_") for name in factors):
        first, second = (_pair(factors, f"hada_w{i}") for i in (1, 2))
        cores = None
        if "hada_t1" in factors or "hada_t2" in factors:
            cores = factors["hada_t1"], factors["hada_t2"]
        return LoHa(first=first, second=second, cores=cores)
    if any(name.startswith("lokr_") for name in factors):
        core = (factors["lokr_t2"],) if "lokr_t2" in factors else ()
        return LoKr(
            first=_whole_or_pair(factors, "lokr_w1"),
            second=(*_whole_or_pair(factors, "lokr_w2"), *core),
        )
    return LoRA(down=factors["down"], up=factors["up"], mid=factors.get("mid"))


def _pair(factors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return factors[f"{name}_a"], factors[f"{name}_b"]


def _whole_or_pair(factors: Mapping[str, Tensor], name: str) -> tuple[Tensor, ...]:
    return (factors[name],) if name in factors else _pair(factors, name)


def _scale(delta: Delta, alpha: float) -> float:
    """What a file with ``alpha`` multiplies a change by."""
    whole = isinstance(delta, LoKr) and len(delta.first) == len(delta.second) == 1
    return 1.0 if whole else alpha / delta.rank  # LyCORIS has no rank where both factors are whole


def _in_memory(name: object, given: Any) -> Tensor:
    """A tensor or an array, as an array; bfloat16 as float32."""
    try:
        array: Tensor = np.asarray(to_numpy(given))
        if array.dtype.kind not in "fiu":
            raise TypeError(f"it holds {array.dtype}")
        return array
    except (TypeError, ValueError, RuntimeError) as exc:
        raise InputError(f"The LoRA's {name} was given as {type(given).__name__}: {exc}.") from exc


def _digest(tensors: Factors, settings: Settings) -> str:
    digest = hashlib.sha256(repr(sorted(settings.values.items())).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
