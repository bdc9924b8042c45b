"""A manifest whose annotations are texts, as the line below makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Texts:
    name: str = "a"
    requires: tuple[str, ...] = ()
    indexed: bool = False
    last: str | None = None
