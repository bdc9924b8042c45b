"""The contract of a reader: a plugin that knows the layout of folders that other tools write."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse.contract.source import Source

__all__ = ["Reader"]


class Reader(ABC):
    """A plugin that reads folders of one layout, which no manifest of ours describes."""

    @abstractmethod
    def read(self, folder: Path, *, scheduler: Mapping[str, Any] | None) -> Source:
        """Describe the folder. Nothing is loaded, nothing executed.

        Args:
            folder: It has one of the patterns of the reader's manifest.
            scheduler: The scheduler's config, if it was named apart; it goes before the folder's.

        Returns:
            A source whose spec has an empty ``scheduler`` where neither names one.

        Raises:
            ArtifactError: the folder is incomplete or damaged, or leads out of itself.
            InputError: it holds several pipelines, or one that perfuse cannot run.
        """
