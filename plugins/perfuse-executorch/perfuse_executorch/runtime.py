"""ExecuTorch's runtime: started quietly, with one pool of threads; programs checked and loaded."""

import hashlib
import json
import logging
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from perfuse.errors import ArtifactError, ExecutionError, InputError

from perfuse_executorch.exporter import DESCRIPTION
from perfuse_executorch.weights import DATA

__all__ = ["delegates", "describe", "load", "said", "threads", "weights_beside"]

#: The runtime's codes (``executorch/runtime/core/error.h``), which its messages give as numbers.
_CODES = {
    0x01: "Internal",
    0x02: "InvalidState",
    0x10: "NotSupported",
    0x11: "NotImplemented",
    0x12: "InvalidArgument",
    0x13: "InvalidType",
    0x14: "OperatorMissing",
    0x20: "NotFound",
    0x21: "MemoryAllocationFailed",
    0x22: "AccessFailed",
    0x23: "InvalidProgram",
    0x24: "InvalidExternalData",
    0x25: "OutOfResources",
    0x30: "DelegateInvalidCompatibility",
    0x31: "DelegateMemoryAllocationFailed",
    0x32: "DelegateInvalidHandle",
}
#: A ``.pte`` begins so: offset, identifier, identifier and size of the header, then sizes in bytes
#: of the program, of what lies before its segments, and of its segments.
_HEADER = struct.Struct("<I4s4sIQQQ")
_METHOD = "forward"


@lru_cache(maxsize=1)
def _library() -> Any:
    """The runtime's bindings. Importing them imports torch."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # about libraries of torchao for other machines
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the interface is experimental
            from executorch.extension.pybindings import portable_lib
    finally:
        logging.disable(before)
    return portable_lib


def delegates() -> tuple[str, ...]:
    """The delegates that are registered in this runtime."""
    return tuple(sorted(_library()._get_registered_backend_names()))


_starting = Lock()


def threads(wanted: int | None = None) -> int:
    """The size of the one pool that all programs of the process run on.

    It is made here, the first time: as large as asked for, as ``OMP_NUM_THREADS`` says, or as the
    runtime chooses. XNNPACK's programs hold on to it, so that it cannot be made anew later.

    Raises:
        InputError: another size was asked for than it has.
    """
    with _starting:
        count = _start_pool(wanted)
    if wanted is not None and wanted != count:
        raise InputError(
            f"{wanted} threads were asked for; ExecuTorch has one pool a process, and it was "
            f"started with {count}. Ask for as many everywhere, or set OMP_NUM_THREADS."
        )
    return count


@lru_cache(maxsize=1)
def _pool() -> list[int]:
    return []


def _start_pool(wanted: int | None) -> int:
    pool = _pool()
    if not pool:
        library = _library()
        with _no_standard_error():  # it tells which files of other systems it did not find
            count = library._threadpool_get_thread_count()
            configured = os.environ.get("OMP_NUM_THREADS", "")
            if wanted is None and configured.isdecimal() and int(configured) > 0:
                wanted = int(configured)
            if wanted is not None and wanted != count:
                library._unsafe_reset_threadpool(wanted)
                count = library._threadpool_get_thread_count()
        pool.append(int(count))
    return pool[0]


@contextmanager
def _no_standard_error() -> Iterator[None]:
    """Nothing that native code writes arrives on standard error."""
    try:
        before = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(nowhere)
        os.close(before)


class _WithWeights:
    """The method of a program that is in memory with its weights: the runtime copies neither."""

    def __init__(self, module: Any, *held: bytes) -> None:
        self._module = module
        self._held = held

    def __call__(self, tensors: list[Any]) -> Any:
        return self._module.run_method(_METHOD, tuple(tensors))

    def method_meta(self) -> Any:
        return self._module.method_meta(_METHOD)


def load(path: Path, weights: bytes | None = None) -> Any:
    """The method of a program that was checked first.

    Args:
        path: The program.
        weights: The content of its file of weights, for one that has them in such a file; by default,
            of the file beside it.

    Raises:
        ArtifactError: a file is missing, cut off or damaged, or is no program for this runtime.
        ExecutionError: memory ran out.
    """
    _check(path)
    if weights is None:
        weights = weights_beside(path)
    library = _library()
    checked = {"program_verification": library.Verification.InternalConsistency}
    try:
        if weights is not None:
            program = path.read_bytes()
            module = library._load_for_executorch_from_buffer(program, weights, **checked)
            return _WithWeights(module, program, weights)
        return library._load_program(str(path), **checked).load_method(_METHOD)
    except RuntimeError as exc:
        if any(code in str(exc) for code in ("0x:21", "0x:31")):
            raise ExecutionError(
                f"{path} was to be loaded; ExecuTorch said: {said(exc)}. Use a smaller size or "
                "batch."
            ) from exc
        raise ArtifactError(
            f"{path} was to be loaded; ExecuTorch said: {said(exc)}. The file is damaged, or of "
            "another version. Export the model again."
        ) from exc


def weights_beside(path: Path) -> bytes | None:
    """The weights beside an exported program; ``None`` for one that holds its own.

    Raises:
        ArtifactError: the file is missing, or not the one that was exported.
    """
    wanted = describe(path).get("beside", {}).get(DATA)
    if wanted is None:
        return None
    try:
        data = path.with_name(DATA).read_bytes()
    except OSError as exc:
        raise ArtifactError(
            f"{path.with_name(DATA)} was to be loaded; {exc.strerror or exc}. Export the model again."
        ) from exc
    if hashlib.sha256(data).hexdigest() != wanted:
        raise ArtifactError(
            f"{path.with_name(DATA)} is not the file that was exported: its SHA-256 differs from the "
            f"one in {DESCRIPTION}. Copy or export it again."
        )
    return data


def _check(path: Path) -> None:
    """Refuse what was damaged before the runtime sees it, where it could end the process.

    Raises:
        ArtifactError: it is missing, cut off, changed, or something else.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_HEADER.size)
    except OSError as exc:
        raise ArtifactError(
            f"{path} was to be loaded; {exc.strerror or exc}. Export the model again."
        ) from exc
    if len(head) < _HEADER.size or head[4:8] != b"ET12" or head[8:12] != b"eh00":
        raise ArtifactError(
            f"{path} was to be loaded; it is not an ExecuTorch program of the version that is "
            "read here, ET12. Export the model again."
        )
    *_, program, base, segments = _HEADER.unpack(head)
    needed = max(program, base + segments)
    if size < needed:
        raise ArtifactError(
            f"{path} is cut off: it should hold {needed} bytes, it holds {size}. Copy or export "
            "it again."
        )
    wanted = describe(path).get("sha256")
    if wanted is None:  # it came without a description
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise ArtifactError(
            f"{path} is not the file that was exported: its SHA-256 differs from the one in "
            f"{DESCRIPTION}. Copy or export it again."
        )


def describe(path: Path) -> Mapping[str, Any]:
    """What the exporter wrote down beside a program; empty where the file came without it.

    Raises:
        ArtifactError: it is damaged.
    """
    description = path.with_name(DESCRIPTION)
    try:
        found = json.loads(description.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ArtifactError(
            f"{description} was to be read; {exc}. Copy or export it again."
        ) from exc
    if not isinstance(found, dict):
        raise ArtifactError(f"{description} holds no object. Copy or export it again.")
    return found


def said(exc: BaseException) -> str:
    """The runtime's message on one line, its number with the name that it stands for."""
    text = " ".join(str(exc).split()).rstrip(".")
    _, _, number = text.rpartition("0x")
    try:
        return f"{text} ({_CODES[int(number.removeprefix(':'), 16)]})"
    except (ValueError, KeyError):
        return text
