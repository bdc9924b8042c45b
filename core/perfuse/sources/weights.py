"""The weight files of one component: found and checked without reading tensors.

Opening a component reads only headers. ``Weights.arrays`` memory-maps all tensors;
``Weights.tensors`` gives them one by one, and needs torch.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.original import View
from perfuse.contract.quantized import Blocks
from perfuse.contract.weights import Reader, StoredTensor
from perfuse.errors import CheckpointError, InputError, WeightsError
from perfuse.sources.files import read_json
from perfuse.sources.header import Header, read_header

if TYPE_CHECKING:
    import torch

    from perfuse.sources.gguf_file import GgufFile

__all__ = [
    "Choice",
    "Hollow",
    "Weights",
    "check_inside",
    "check_variant",
    "choose",
    "header_of",
    "is_pickle",
    "is_single_file",
    "some",
    "variants",
]

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

#: The suffix of files that llama.cpp's tools write.
_GGUF = ".gguf"
#: The suffixes of files that may hold a whole pipeline.
_FILES = (".safetensors", _GGUF)
#: How the names of dtypes begin that count as one precision. Quantised ones have names of their own,
#: and are dequantised to what is asked for.
_STORED = ("float", "bfloat", "q")
#: Those of GGUF.
_QUANTISED = re.compile(r"[it]?q\d|mxfp")
#: Numpy's names of the dtypes that are read without torch; of bfloat16 the bits.
_ARRAYS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
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


def check_variant(variant: str | None) -> None:
    """Raise ``InputError`` unless a variant is ``None``, or a word that a file's name can have."""
    if variant is not None and not re.fullmatch(r"\w[\w-]*", variant):
        raise InputError(
            f"variant={variant!r} was given; it is a word of the weight files' names: fp16."
        )


def variants(names: Iterable[str]) -> tuple[str | None, ...]:
    """The variants that a folder with these files has; ``None`` stands for the plain files."""
    found = {match["variant"] for _, match in _matches(names)}
    return tuple(sorted(found, key=lambda variant: variant or ""))


def is_pickle(name: str) -> bool:
    """Whether a file holds weights in a format that can run code when it is read."""
    return name.endswith(_PICKLES)


def is_single_file(model: str | os.PathLike[str]) -> bool:
    """Whether a model is named as a file of weights: by its path, its URL or OWNER/NAME/FILE."""
    name = str(model).partition("?")[0].lower()
    return (name.endswith(_FILES) or is_pickle(name)) and not Path(model).is_dir()


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
    #: For a part of a single-file checkpoint: each tensor as a part of a stored one.
    views: Mapping[str, View] = field(default_factory=FrozenDict)
    #: Whether tensors that the file has in blocks of integers are given so.
    kept: bool = False

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
            header = read_header(path)
            if placed is not None:
                _check_shard(path, header.shapes, placed)
            stat = path.stat()
            said = json.dumps([name, stat.st_size, stat.st_mtime_ns]).encode()
            digest.update(said + header.text)
            shapes.update(header.shapes)
            total += header.total
        return cls(
            folder=folder,
            files=tuple(folder / name for name in used),
            variant=choice.variant,
            shapes=FrozenDict(shapes),
            fingerprint=digest.hexdigest(),
            total_bytes=total,
        )

    @classmethod
    def of(cls, file: Path, header: Header, views: Mapping[str, View]) -> Self:
        """A part of a file, whose header was read before, under other names."""
        stat = file.stat()
        read = [(name, repr(view)) for name, view in views.items()]
        key = [file.name, stat.st_size, stat.st_mtime_ns, header.digest, read]
        stored = {view.stored: header.sizes[view.stored] for view in views.values()}
        return cls(
            folder=file,
            files=(file,),
            variant=None,
            shapes=FrozenDict(
                {name: (header.shapes[one.stored][0], one.shape) for name, one in views.items()}
            ),
            fingerprint=hashlib.sha256(json.dumps(key).encode()).hexdigest(),
            total_bytes=sum(stored.values()),
            views=FrozenDict(views),
        )

    @property
    def precision(self) -> str | None:
        """The floating-point dtype of all tensors; ``None`` if there are several."""
        found = {dtype for dtype, _ in self.shapes.values() if dtype.startswith(_STORED)}
        return found.pop() if len(found) == 1 else None

    @property
    def quantized(self) -> str:
        """The quantised dtype of a tensor, the most frequent one; empty if there is none."""
        found = Counter(dtype for dtype, _ in self.shapes.values() if _QUANTISED.match(dtype))
        return found.most_common(1)[0][0] if found else ""

    @property
    def parameters(self) -> int:
        """The number of elements in all tensors together."""
        return sum(math.prod(shape) for _, shape in self.shapes.values())

    def floating(self, names: Collection[str]) -> bool:
        """Whether tensors are all floating-point."""
        return all(self.shapes[name][0].startswith(_STORED) for name in names)

    def plain(self, names: Collection[str]) -> bool:
        """Whether tensors can be read without torch."""
        return self._gguf or all(self.shapes[name][0] in _ARRAYS for name in names)

    @property
    def _gguf(self) -> bool:
        return any(_is_gguf(path) for path in self.files)

    def arrays(self, names: Collection[str]) -> dict[str, StoredTensor] | None:
        """Tensors by their names, without torch; memory-mapped, unless they are blocks of a GGUF file.

        Returns:
            ``None`` where one of them is of a dtype that only torch reads.

        Raises:
            WeightsError: a file was damaged, changed or removed since it was opened.
        """
        if not self.plain(names):
            return None
        return self._arrays(names, {path: _contents(path) for path in self.files})

    def _arrays(
        self, names: Collection[str], contents: "Mapping[Path, Header | GgufFile]"
    ) -> dict[str, StoredTensor]:
        headers: dict[Path, Header] = {}
        for path, one in contents.items():
            if not isinstance(one, Header):
                read = one.tensor if self.kept else one.numbers
                return {name: read(self.views[name]) for name in names}
            headers[path] = one
        views = {name: self.views[name] for name in names} if self.views else {}
        wanted = {view.stored for view in views.values()} if views else set(names)
        mapped: dict[str, StoredTensor] = {}
        for path, header in headers.items():
            mapped |= _mapped(path, header, wanted)
        try:
            found = {
                name: replace(mapped[view.stored], array=view.of_array(mapped[view.stored].array))
                for name, view in views.items()
            } or {name: mapped[name] for name in names}
        except KeyError as exc:
            raise _changed(self.folder) from exc
        if any((found[n].dtype, found[n].array.shape) != self.shapes[n] for n in names):
            raise _changed(self.folder)
        return found

    def reader(self, stored: Mapping[str, str]) -> Reader | None:
        """What reads tensors under other names, which ``stored`` maps to those of the files.

        It refuses to go on with a file that was replaced after it was read from first.

        Returns:
            ``None`` where only torch reads them.
        """
        if not self.plain(stored.values()):
            return None
        return Reader(names=frozenset(stored), read=partial(self._read, stored, {}))

    def _read(
        self,
        stored: Mapping[str, str],
        seen: "dict[Path, tuple[tuple[int, int, int], Header | GgufFile]]",
        names: Collection[str],
    ) -> Mapping[str, StoredTensor]:
        """Tensors of the same files as those that were read before, which are in ``seen``."""
        for path in self.files:
            try:
                stat = path.stat()
            except OSError as exc:
                raise WeightsError(f"{path} cannot be read: {exc}. {_AGAIN}") from exc
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if path not in seen:
                seen[path] = (stamp, _contents(path))
            elif seen[path][0] != stamp:
                raise _changed(self.folder)
        contents = {path: one for path, (_, one) in seen.items()}
        arrays = self._arrays({stored[name] for name in names}, contents)
        return {name: arrays[stored[name]] for name in names}

    def tensors(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Every tensor with its name, memory-mapped: its data is read from disk on first use.

        Raises:
            WeightsError: a file was damaged or removed since it was opened.
        """
        if self._gguf:
            yield from self._from_gguf()
            return
        from safetensors import SafetensorError, safe_open

        opened = partial(safe_open, framework="pt")
        order = {name: i for i, name in enumerate(self.shapes)}
        for path in self.files:
            try:
                with opened(path) as file:
                    held = file.keys() if not self.views else self.views
                    names = sorted(held, key=lambda name: order.get(name, -1), reverse=True)
                while names:
                    # Map the file anew, so that pages of unused tensors can be freed.
                    with opened(path) as file:
                        seen = 0
                        while names and seen < _WINDOW:
                            name = names.pop()
                            view = self.views.get(name)
                            tensor = file.get_tensor(name if view is None else view.stored)
                            seen += tensor.nbytes
                            yield name, tensor if view is None else view.of(tensor)
                            del tensor
            except (OSError, SafetensorError) as exc:
                raise WeightsError(f"{path} cannot be read: {exc}. {_AGAIN}") from exc

    def _from_gguf(self) -> "Iterator[tuple[str, torch.Tensor]]":
        import torch

        from perfuse.sources.block_tensor import BlockTensor
        from perfuse.sources.gguf_file import GgufFile

        (path,) = self.files
        file = GgufFile(path)
        for name, view in self.views.items():
            found = file.tensor(view) if self.kept else file.numbers(view)
            if isinstance(found, Blocks):
                yield name, BlockTensor.of(found)
            elif found.dtype == "bfloat16":
                yield name, torch.from_numpy(found.array.view("<i2")).view(torch.bfloat16)
            else:
                yield name, torch.from_numpy(found.array)


def _changed(folder: Path) -> WeightsError:
    return WeightsError(f"{folder} was changed since it was opened. Open it again.")


def _mapped(path: Path, header: Header, names: Collection[str]) -> dict[str, StoredTensor]:
    """Tensors of a safetensors file, mapped privately: what is written to them stays in memory."""
    import numpy as np

    wanted = header.shapes.keys() & names
    if not wanted:
        return {}
    # No more of the file than lies around them: a limit on addresses counts what is mapped.
    first = min(header.starts[name] for name in wanted)
    last = max(header.starts[name] + header.sizes[name] for name in wanted)
    try:
        mapped = np.memmap(path, mode="c", offset=first, shape=last - first)
    except (OSError, ValueError) as exc:
        raise WeightsError(f"{path} cannot be read: {exc}. {_AGAIN}") from exc
    found = {}
    for name in wanted:
        dtype, shape = header.shapes[name]
        start = header.starts[name] - first
        piece = mapped[start : start + header.sizes[name]].view(np.ndarray)
        array = piece.view(_ARRAYS[dtype]).reshape(shape)
        # An old writer may have put them where no processor likes to read.
        found[name] = StoredTensor(dtype=dtype, array=np.require(array, requirements="A"))
    return found


@dataclass(frozen=True, kw_only=True)
class Hollow(Weights):
    """Weights without their values, to see which tensors of a module they become."""

    #: Where each tensor is in memory, to its name; filled as they are given.
    addresses: dict[int, str] = field(default_factory=dict, compare=False)
    #: The tensors, so that no two are in one place.
    given: "list[torch.Tensor]" = field(default_factory=list, compare=False)

    @classmethod
    def like(cls, weights: Weights) -> "Hollow":
        """Tensors of the same names and shapes, of memory that is never touched."""
        return cls(**{one.name: getattr(weights, one.name) for one in fields(Weights)})

    def tensors(self) -> "Iterator[tuple[str, torch.Tensor]]":
        import torch

        for name, (dtype, shape) in self.shapes.items():
            whole = getattr(torch, dtype) if "int" in dtype else None
            # An integer may determine the graph's structure: it has a value.
            tensor = torch.empty(shape) if whole is None else torch.zeros(shape, dtype=whole)
            self.given.append(tensor)
            self.addresses[tensor.data_ptr()] = name
            yield name, tensor


def header_of(path: Path) -> Header:
    """The header of a safetensors or GGUF file.

    Raises:
        WeightsError: the file is damaged, or cannot be read.
        InputError: it is a GGUF file, and the package ``gguf`` is not installed.
    """
    return _gguf(path).header() if _is_gguf(path) else read_header(path)


def _contents(path: Path) -> "Header | GgufFile":
    """What says where the tensors of a file are."""
    return _gguf(path) if _is_gguf(path) else read_header(path)


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == _GGUF


def _gguf(path: Path) -> "GgufFile":
    from perfuse.sources.gguf_file import GgufFile

    return GgufFile(path)


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
        index = read_json(check_inside(path, root), error=WeightsError, remedy=_AGAIN)
        pairs = dict(index["weight_map"].items())
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
            f"The index says that {path} holds {some(missing)}; the file does not. Index and "
            "shards belong to different downloads: take both again."
        )
    extra = [name for name in tensors if placed.get(name) != path.name]
    if extra:
        raise WeightsError(
            f"{path} holds {some(extra)}, which the index does not place there. Index and shards "
            "belong to different downloads: take both again."
        )


def some(names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
