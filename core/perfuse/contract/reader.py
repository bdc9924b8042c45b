"""The contract of a reader: a plugin that opens folders written by other tools."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse.contract.source import Source

__all__ = ["Reader"]


class Reader(ABC):
    """A plugin that reads folders of one layout, which have no perfuse manifest."""

    @abstractmethod
    def read(self, folder: Path, *, scheduler: Mapping[str, Any] | None) -> Source:
        """Describe the folder. No weights are loaded and no code of the folder runs.

        Args:
            folder: A folder that matches a pattern of the reader's manifest.
            scheduler: A scheduler config given apart (``scheduler_from``); overrides the folder's.

        Returns:
            A source; ``spec.scheduler`` is empty if neither the argument nor the folder gives one.

        Raises:
            ArtifactError: the folder is incomplete or damaged, or points outside of itself.
            InputError: it holds several pipelines, or one that perfuse cannot run.
        """
