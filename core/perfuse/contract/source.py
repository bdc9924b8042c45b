"""Where a pipeline comes from: a checkpoint, an exported folder, an object in memory."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.contract.component import Component
from perfuse.contract.spec import PipelineSpec
from perfuse.errors import InputError

if TYPE_CHECKING:
    from perfuse.sources.tokenizer import Tokenizer

__all__ = ["Source"]


class Source(ABC):
    """A pipeline's description, its components, its tokenizers and its other files."""

    #: What the user named: a folder or a Hub id.
    model: str
    #: The description of the pipeline.
    spec: PipelineSpec
    #: The commit of a Hub repository; ``None`` for any other source.
    revision: str | None = None
    #: What a file was recognised as by its tensors; ``None`` where the source says it itself.
    layout: str | None = None
    #: The pipeline's attributes whose models are others than the named source's own.
    replaced: tuple[str, ...] = ()

    @abstractmethod
    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        """One component, for a backend to prepare.

        Args:
            name: One of ``spec.components``.
            precision: Of weights and arithmetic; by default that of the export, and float32 for
                any other source.
            static: Dimensions to fix; every other one stays symbolic.

        Raises:
            InputError: the component, the precision or a dimension is unknown.
        """

    @abstractmethod
    def tokenizer(self, name: str) -> "Tokenizer":
        """One of ``spec.tokenizers``.

        Raises:
            InputError: the source has no tokenizer of this name.
        """

    def files(self) -> Mapping[str, Path]:
        """Files to copy into an export, such as tokenizers: path in the export to source file."""
        return {}

    @property
    def format(self) -> str | None:
        """The engine format of the components; ``None`` if they are torch modules."""
        return None

    @property
    def transforms(self) -> tuple[str, ...]:
        """The transforms that were applied before the components were exported."""
        return ()

    def weight_bytes(self) -> Mapping[str, int]:
        """Bytes of stored weights by component, or by model where components share one."""
        return {}

    def exported(self) -> Mapping[str, Any]:
        """Each component's entry in the manifest of an export; empty for any other source."""
        return {}

    def with_spec(self, spec: PipelineSpec) -> "Source":
        """The same source with another description.

        Raises:
            InputError: this kind of source does not support it.
        """
        raise InputError(
            f"{self.model} was to run with another scheduler; this kind of source always uses its "
            "own. Open it without scheduler_from, and set pipe.scheduler."
        )

    def verify(self) -> None:
        """Compare the checksum of every file with the one recorded when it was written.

        Raises:
            InputError: the source has no recorded checksums.
            ArtifactError: a file has changed.
        """
        raise InputError(
            f"{self.model} was to be verified; only exported folders record the checksums of their "
            "files. Verify an exported folder."
        )
