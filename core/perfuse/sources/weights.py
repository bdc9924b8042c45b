"""The safetensors files of one component: found and checked without reading tensors.

Opening a component reads only headers. ``Weights.tensors`` memory-maps the tensors one by one; only
that needs torch.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from perfuse.contract.frozen import FrozenDict
from perfuse.errors import CheckpointError, WeightsError

if TYPE_CHECKING:
    import torch

__all__ = ["Choice", "Weights", "check_inside", "choose", "is_pickle", "variants"]

_STEMS = ("diffusion_pytorch_model", "model")
_SHARD = r"\d{5}-of-\d{5}"
_NAMES = tuple(
    re.compile(rf"(?P<stem>{'|'.join(_STEMS)}){rest}")
    for rest in (
        rf"(\.(?P<variant>.+?))?(?P<shard>-{_SHARD})?\.safetensors",
        # Before diffusers 0.28 and transformers 4.40 the variant came after the shard's number.
        rf"(?P<shard>-{_SHARD})\.(?P<variant>[^.]+)\.safetensors",
        r"\.safetensors(?P<index>\.index)(\.(?P<variant>[^.]+))?\.json",
        r"\.(?P<variant>[^.]+)\.safetensors(?P<index>\.index)\.json",
        r"\.safetensors\.(?P<variant>[^.]+)(?P<index>\.index)\.json",
    )
)
_VARIANT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_PICKLES = (".bin", ".pt", ".ckpt", ".pth", ".pkl", ".msgpack", ".h5")

#: The safetensors format refuses longer headers, too.
_MAX_HEADER = 100_000_000
#: safetensors' names of dtypes to ours, and their sizes in bytes.
_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
}
#: Bytes of tensors to read through one mapping of a file.
_WINDOW = 64 << 20
_AGAIN = "Download or save the file again."


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The files that hold a component's weights, by name."""

    #: One file, or every shard.
    files: tuple[str, ...]
    #: The file that says which tensor is in which shard.
    index: str | None = None
    #: The variant, ``"fp16"``; ``None`` for files without one.
    variant: str | None = None


def variants(names: Iterable[str]) -> tuple[str | None, ...]:
    """The variants that a folder with these files has; ``None`` stands for the plain files."""
    found = {match["variant"] for _, match in _matches(names)}
    return tuple(sorted(found, key=lambda variant: variant or ""))


def is_pickle(name: str) -> bool:
    """Whether a file holds weights in a format that can run code when it is read."""
    return name.endswith(_PICKLES)


def choose(names: Iterable[str], variant: str | None, *, where: str) -> Choice:
    """Choose the weight files to read among the files of a folder.

    If the folder lacks the variant, the files without one are chosen: in most checkpoints some
    component lacks it.

    Raises:
        WeightsError: the folder has no weights, or only pickles, or only other variants.
    """
    names = sorted(names)
    if variant is not None and not _VARIANT.fullmatch(variant):
        raise WeightsError(
            f"Variant {variant!r} was asked for; a variant is a part of a file name, for example "
            "fp16."
        )
    for wanted in dict.fromkeys((variant, None)):
        for stem in _STEMS:
            choice = _choose(names, stem, wanted, where)
            if choice is not None:
                return choice
    raise _no_weights(names, where)


def _matches(names: Iterable[str]) -> Iterator[tuple[str, re.Match[str]]]:
    for name in names:
        match = next((m for m in (p.fullmatch(name) for p in _NAMES) if m is not None), None)
        if match is not None:
            yield name, match


def _choose(names: list[str], stem: str, variant: str | None, where: str) -> Choice | None:
    whole: list[str] = []
    shards: list[str] = []
    indices: list[str] = []
    for name, match in _matches(names):
        if match["stem"] == stem and match["variant"] == variant:
            parts = match.groupdict()
            if parts.get("index") is not None:
                indices.append(name)
            else:
                (shards if parts["shard"] is not None else whole).append(name)
    if whole:
        return Choice(files=(whole[0],), variant=variant)
    if indices:
        return Choice(files=tuple(shards), index=indices[0], variant=variant)
    if shards:
        raise WeightsError(
            f"{where} has {len(shards)} shards ({shards[0]}, …) and no "
            f"{stem}.safetensors.index.json, which says what is in them. {_AGAIN}"
        )
    return None


def _no_weights(names: list[str], where: str) -> WeightsError:
    others = [variant for variant in variants(names) if variant is not None]
    if others:
        return WeightsError(
            f"{where} has no plain safetensors weights; it has variants: {', '.join(others)}. "
            f"Ask for one: variant={others[0]!r}."
        )
    pickles = [name for name in names if is_pickle(name)]
    if pickles:
        return WeightsError(
            f"{where} has no safetensors weights, only {', '.join(pickles[:3])}; reading such a "
            "file can run code that is hidden in it, so perfuse never does. Use a repository that "
            "has safetensors, or convert it where you trust it: load it with diffusers and call "
            "save_pretrained(folder, safe_serialization=True)."
        )
    held = ", ".join(names[:5]) or "nothing"
    return WeightsError(
        f"{where} has no weights: diffusion_pytorch_model.safetensors or model.safetensors was "
        f"looked for, and it holds {held}. Download or save the checkpoint again."
    )


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of one component, described. Open them with ``Weights.open``."""

    folder: Path
    files: tuple[Path, ...]
    #: The variant of the files that were chosen; ``None`` for files without one.
    variant: str | None
    #: Tensor name to its dtype, spelled as in a ``TensorSpec``, and shape.
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    #: A digest of the files' names, sizes, times and headers; it does not read all bytes.
    fingerprint: str
    #: Bytes of all tensors, without the headers.
    total_bytes: int

    @classmethod
    def open(
        cls, folder: str | Path, *, variant: str | None = None, root: str | Path | None = None
    ) -> Self:
        """Find the safetensors files of a component's folder, and check their headers.

        Args:
            folder: The component's folder.
            variant: ``"fp16"`` reads ``….fp16.safetensors``, or, if the folder has no such file,
                the file without a variant.
            root: The checkpoint's folder, which files must not lie outside of; by default the
                component's own folder.

        Raises:
            CheckpointError: there is no such folder.
            WeightsError: the folder has no safetensors files, or one of them is damaged.
        """
        folder = Path(folder)
        root = Path(root) if root is not None else folder
        names = _listing(folder)
        choice = choose(names, variant, where=str(folder))
        placed = _read_index(folder / choice.index, root) if choice.index is not None else None
        used = sorted(set(placed.values())) if placed is not None else choice.files
        digest = hashlib.sha256()
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        total = 0
        for name in used:
            path = check_inside(folder / name, root)
            if name not in names:
                raise WeightsError(
                    f"{folder / (choice.index or '')} names the shard {name}, which is not there. "
                    "Download the missing file."
                )
            header, tensors, size = _read_header(path)
            if placed is not None:
                _check_shard(path, tensors, placed)
            stat = path.stat()
            digest.update(json.dumps([name, stat.st_size, stat.st_mtime_ns]).encode() + header)
            shapes.update(tensors)
            total += size
        return cls(
            folder=folder,
            files=tuple(folder / name for name in used),
            variant=choice.variant,
            shapes=FrozenDict(shapes),
            fingerprint=digest.hexdigest(),
            total_bytes=total,
        )

    @property
    def precision(self) -> str | None:
        """The floating-point dtype of all tensors; ``None`` if there are several."""
        found = {dtype for dtype, _ in self.shapes.values() if "float" in dtype}
        return found.pop() if len(found) == 1 else None

    @property
    def parameters(self) -> int:
        """The number of elements in all tensors together."""
        return sum(math.prod(shape) for _, shape in self.shapes.values())

    def tensors(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Every tensor with its name, memory-mapped: its data is read from disk on first use.

        Raises:
            WeightsError: a file was damaged or removed since it was opened.
        """
        from safetensors import SafetensorError, safe_open

        order = {name: i for i, name in enumerate(self.shapes)}
        for path in self.files:
            try:
                with safe_open(path, framework="pt") as file:
                    names = sorted(file.keys(), key=lambda name: order.get(name, -1), reverse=True)
                while names:
                    # Map the file anew, so that pages of unused tensors can be freed.
                    with safe_open(path, framework="pt") as file:
                        seen = 0
                        while names and seen < _WINDOW:
                            name = names.pop()
                            tensor = file.get_tensor(name)
                            seen += tensor.nbytes
                            yield name, tensor
                            del tensor
            except (OSError, SafetensorError) as exc:
                raise WeightsError(f"{path} cannot be read: {exc}. {_AGAIN}") from exc


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except NotADirectoryError as exc:
        raise CheckpointError(
            f"A component's folder was asked for; {folder} is a file. Name the folder it is in."
        ) from exc
    except FileNotFoundError as exc:
        raise CheckpointError(
            f"The component's folder {folder} does not exist. Download or save the checkpoint "
            "again."
        ) from exc
    except OSError as exc:
        raise CheckpointError(
            f"{folder} cannot be listed: {exc.strerror or exc}. Give this user the right to read "
            "it."
        ) from exc


def check_inside(path: Path, root: Path) -> Path:
    """Return the path if it lies in ``root``, with links followed.

    The Hub's cache consists of links, which may lead to its own folder of blobs.

    Raises:
        CheckpointError: the path leads out of ``root``.
    """
    real, home = path.resolve(), root.resolve()
    allowed = [home]
    for ancestor in (home, *home.parents):
        if ancestor.name == "snapshots":  # CACHE/models--OWNER--NAME/snapshots/COMMIT
            allowed += [ancestor.parent / "blobs", ancestor.parent.parent / "blobs"]
            break
    if not any(real.is_relative_to(place) for place in allowed):
        raise CheckpointError(
            f"{path} leads to {real}, outside of the checkpoint's folder {root}. Put the file "
            "itself there instead of a link."
        )
    return path


def _read_index(path: Path, root: Path) -> dict[str, str]:
    """Tensor name to the file that holds it."""
    try:
        text = check_inside(path, root).read_text(encoding="utf-8")
        placed = json.loads(text)["weight_map"]
        pairs = dict(placed.items())
    except OSError as exc:
        raise WeightsError(f"{path} cannot be read: {exc.strerror or exc}. {_AGAIN}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise WeightsError(
            f"{path} is not an index of shards: a JSON object with weight_map was expected, and "
            f"reading it gave {exc!r}. {_AGAIN}"
        ) from exc
    for name in pairs.values():
        plain = isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name
        if not plain or "\\" in name or not name.endswith(".safetensors"):
            raise WeightsError(
                f"{path} names the shard {name!r}; a safetensors file beside it was expected. "
                "Do not use this checkpoint, or correct its index."
            )
    return pairs


def _check_shard(path: Path, tensors: Mapping[str, Any], placed: Mapping[str, str]) -> None:
    missing = [name for name, file in placed.items() if file == path.name and name not in tensors]
    if missing:
        raise WeightsError(
            f"The index says that {path} holds {_some(missing)}; the file does not. Index and "
            "shards belong to different downloads: take both again."
        )
    extra = [name for name in tensors if placed.get(name) != path.name]
    if extra:
        raise WeightsError(
            f"{path} holds {_some(extra)}, which the index does not place there. Index and shards "
            "belong to different downloads: take both again."
        )


def _some(names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _read_header(path: Path) -> tuple[bytes, dict[str, tuple[str, tuple[int, ...]]], int]:
    """The header's bytes, every tensor's dtype and shape, and the bytes of all tensors."""

    def damaged(found: str) -> WeightsError:
        return WeightsError(f"{path} is damaged: {found}. {_AGAIN}")

    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise damaged(f"at least 8 bytes were expected, it has {size}")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(_MAX_HEADER, size - 8):
                raise damaged(f"its header should have {length} bytes, the whole file has {size}")
            header = file.read(length)
    except OSError as exc:
        raise WeightsError(f"{path} cannot be read: {exc.strerror or exc}. {_AGAIN}") from exc
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        spans = {name: tuple(entry["data_offsets"]) for name, entry in entries.items()}
        tensors, end = {}, 0
        for name in sorted(entries, key=spans.__getitem__):
            tensors[name], end = _read_entry(name, entries[name], end, damaged)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise damaged(f"its header is not what safetensors writes ({exc!r})") from exc
    if 8 + length + end != size:
        raise damaged(f"its header describes {8 + length + end} bytes, the file has {size}")
    return header, tensors, end


def _read_entry(
    name: str, entry: Mapping[str, Any], begin: int, damaged: Callable[[str], WeightsError]
) -> tuple[tuple[str, tuple[int, ...]], int]:
    """Dtype and shape of a tensor that should begin at ``begin``, and where it ends."""
    code, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, start, end)):
        raise ValueError(f"{name}: {shape}, {start}, {end}")
    if code not in _DTYPES:
        raise damaged(f"{name} has the dtype {code}; known are {', '.join(_DTYPES)}")
    dtype, width = _DTYPES[code]
    expected = math.prod(shape) * width
    if start != begin or end - start != expected:
        raise damaged(
            f"{name}, {dtype} {shape}, should be the {expected} bytes from {begin}; the header "
            f"places it from {start} to {end}"
        )
    return (dtype, shape), end
