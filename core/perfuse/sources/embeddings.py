"""Files of textual inversion: learned embeddings, read without torch.

Layouts: Diffusers' (one tensor, named by its token), AUTOMATIC1111's (``emb_params``; in memory also
``string_to_param``), and SD XL's (``clip_l`` and ``clip_g``, one for each text encoder).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays import to_numpy
from perfuse.errors import CheckpointError, InputError, WeightsError
from perfuse.sources.files import user_path
from perfuse.sources.tensors import read_tensors
from perfuse.sources.weights import is_pickle

__all__ = ["Embedding", "read_embedding"]

_USUAL = "learned_embeds.safetensors"
_UNNAMED = ("emb_params", "clip_l", "clip_g")


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The learned vectors of one token."""

    token: str
    #: By the name in the file: vectors, float32 [n, D].
    vectors: Mapping[str, NDArray[np.float32]]


def read_embedding(given: Any, *, token: str | None = None, **where: Any) -> Embedding:
    """Read a textual inversion.

    Args:
        given: A file, a folder, a Hub id, a dict of arrays, or an array.
        token: Its word in prompts; by default the one that it names, or the file's name.
        **where: ``weight_name``, ``subfolder``, ``revision``, ``local_files_only``.

    Raises:
        InputError: it cannot be found or read, or names no token and none was given.
    """
    name: str | None = None
    if isinstance(given, str | Path):
        path = _file(given, **where)
        name, tensors = path.stem, _read(path)
    elif isinstance(given, Mapping):
        tensors = dict(given)
        if isinstance(parameters := tensors.get("string_to_param"), Mapping):
            name, tensors = tensors.get("name"), {"emb_params": parameters["*"]}
    else:
        tensors = {"emb_params": given}
    known = [key for key in tensors if key in _UNNAMED]
    if not known and len(tensors) == 1:
        (name,) = known = list(tensors)
    word = token if token is not None else name
    if not known or not word:
        raise InputError(
            f"A textual inversion was given with the tensors {', '.join(map(str, tensors))}"
            f"{'' if known else ', which is no known layout'}. Give "
            + ("its word: token=." if known else "one with a single tensor, or clip_l and clip_g.")
        )
    return Embedding(token=word, vectors={key: _vectors(tensors[key], word) for key in known})


def _vectors(array: Any, token: str) -> NDArray[np.float32]:
    try:
        found = np.asarray(to_numpy(array), dtype=np.float32)
    except (TypeError, ValueError):
        found = np.empty(0, dtype=np.float32)
    if found.ndim not in (1, 2) or not found.size or not np.isfinite(found).all():
        raise InputError(
            f"The textual inversion {token!r} was to be an array [D] or [n, D] of numbers; got "
            f"{type(array).__name__} of shape {getattr(array, 'shape', None)}."
        )
    return found.reshape(-1, found.shape[-1])


def _file(
    given: str | Path,
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    path = user_path(given)
    name = weight_name if weight_name is not None else _USUAL
    if path.is_dir():
        path = path / (subfolder or "") / name
    elif not path.is_file() and str(given).count("/") == 1 and not path.suffix:
        path = _from_hub(str(given), name, subfolder, revision, local_files_only)
    if is_pickle(path.name):
        raise InputError(
            f"{path} was given as a textual inversion; reading such a file can run code that is "
            "hidden in it, so perfuse never does. Use one in .safetensors, or convert it where you "
            "trust it."
        )
    if not path.is_file():
        raise InputError(f"A textual inversion was to be read from {path}, which is no file.")
    return path


def _from_hub(
    model: str, name: str, subfolder: str | None, revision: str | None, offline: bool
) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                model, name, subfolder=subfolder, revision=revision, local_files_only=offline
            )
        )
    except Exception as exc:  # requests, httpx, the system's own: the library has no one root
        raise CheckpointError(
            f"The textual inversion {model} was asked for; there is no such file, and {name} cannot "
            f"be had from the Hub ({type(exc).__name__}). Name a file, or weight_name=."
        ) from exc


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return read_tensors(path)[0]
    except WeightsError as exc:
        raise InputError(
            f"{path} was to be read as a textual inversion in safetensors; {exc}"
        ) from exc
