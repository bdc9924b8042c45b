"""How much memory there is, and refusing what needs more before it is tried."""

import functools
import os
import re
import sys
from pathlib import Path

from perfuse.errors import InputError

__all__ = ["check_memory", "most_memory", "peak_memory", "read_size", "return_memory"]

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{unit}B": 1000**i for i, unit in enumerate("KMGT", 1)}
_UNITS |= {f"{unit}IB": 1024**i for i, unit in enumerate("KMGT", 1)}
_VARIABLE = "PERFUSE_MEMORY_LIMIT"
#: Where Linux says what a container may take.
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def read_size(text: str) -> int:
    """Read a number of bytes: ``"8GB"`` or ``"512 MiB"``.

    Raises:
        InputError: the text is not a number and a unit.
    """
    number = text.strip().rstrip("BIKMGTbikmgt ")
    unit = text.strip()[len(number) :].strip().upper()
    if not number.replace(".", "", 1).isdecimal() or unit not in _UNITS:
        raise InputError(f"Memory {text!r} was given; write a number and a unit: 8GB, 512MiB.")
    return int(float(number) * _UNITS[unit])


def peak_memory() -> int | None:
    """The most bytes that this process has had in memory; ``None`` where the system does not say.

    On Linux ``ru_maxrss`` begins with what the process that started this one had.
    """
    try:
        status = Path("/proc/self/status").read_text("utf-8")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def return_memory() -> None:
    """Give what was released back to the system, where the C library keeps it for what comes next.

    glibc's does: of a gigabyte that an engine used in parts of some megabytes, most stays resident.
    """
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def most_memory() -> int | None:
    """The bytes that a run may need: ``PERFUSE_MEMORY_LIMIT``, or what the machine has.

    ``None`` where the system does not tell.

    Raises:
        InputError: ``PERFUSE_MEMORY_LIMIT`` is no size.
    """
    configured = os.environ.get(_VARIABLE)
    return read_size(configured) if configured else _of_machine()


@functools.cache
def _of_machine() -> int | None:
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows; or the name is not known
        return None
    try:
        return min(found, int(_CONTAINER.read_text("ascii")))
    except (OSError, ValueError):  # no container, or "max"
        return found


def check_memory(needed: int, what: str) -> None:
    """Refuse what cannot fit into memory.

    Args:
        needed: Bytes that it needs at least, as an estimate that is never too high.
        what: What was asked for.

    Raises:
        InputError: that is more than there is, or than ``PERFUSE_MEMORY_LIMIT`` allows.
    """
    most = most_memory()
    if most is not None and needed > most:
        raise InputError(
            f"{what} was asked for; that needs at least {_gb(needed)} of memory, and {_gb(most)} is "
            f"the most here. Ask for less, or set another limit: {_VARIABLE}=64GB."
        )


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count < 10**18 else f"10^{len(str(count)) - 10} GB"
