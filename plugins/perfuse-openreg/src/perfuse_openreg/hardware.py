"""What devices there are, and what each one is: plain data, as a vendor's tool would list it."""

from dataclasses import dataclass

__all__ = ["HARDWARE", "ITEM_SIZES", "Hardware", "readable"]

#: The types that device memory holds, in bytes each.
ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "bool": 1}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device of the machine."""

    #: What a person types after the colon.
    name: str
    #: Device memory in bytes.
    memory: int
    #: What its arithmetic can round results to.
    precisions: tuple[str, ...]


#: Unlike each other, so that nobody takes the first for the only one. The first is the default.
HARDWARE = (
    Hardware(name="0", memory=512_000_000, precisions=("float32", "float16", "bfloat16")),
    Hardware(name="1", memory=64_000_000, precisions=("float32", "bfloat16")),
)


def readable(size: int) -> str:
    """A number of bytes for a person.

    >>> readable(64_000_000)
    '64.0 MB'
    """
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
