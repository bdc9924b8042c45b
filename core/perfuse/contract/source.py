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
    """A description of a pipeline, its components, its tokenizers and the files that go with it."""

    #: What a person calls it: a folder, a Hub id.
    model: str
    #: What it is made of.
    spec: PipelineSpec
    #: The commit of a Hub repository.
    revision: str | None = None

    @abstractmethod
    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        """A component for a backend to prepare.

        Args:
            name: One of ``spec.components``.
            precision: What its weights and arithmetic are to be; by default what they are in an
                export, and float32 elsewhere.
            static: Dimensions to fix; every other one stays symbolic.

        Raises:
            InputError: there is no such component, precision or dimension.
        """

    @abstractmethod
    def tokenizer(self, name: str) -> "Tokenizer":
        """One of its tokenizers.

        Raises:
            InputError: there is none of this name.
        """

    def files(self) -> Mapping[str, Path]:
        """What an export takes along, tokenizers for one: the path there to the file here."""
        return {}

    @property
    def format(self) -> str | None:
        """The engine format that its components are in; ``None`` where they are torch modules."""
        return None

    @property
    def transforms(self) -> tuple[str, ...]:
        """The transforms that its components went through when they were exported."""
        return ()

    def weight_bytes(self) -> Mapping[str, int]:
        """Bytes of stored weights, by component, or by the part that several components share."""
        return {}

    def exported(self) -> Mapping[str, Any]:
        """For an export: each component as its manifest has it."""
        return {}

    def with_spec(self, spec: PipelineSpec) -> "Source":
        """The same source, described otherwise.

        Raises:
            InputError: this kind of source cannot be.
        """
        raise InputError(f"{self.model} was to run with another scheduler; it brings its own.")

    def verify(self) -> None:
        """Check the content of every file against what was recorded when it was written.

        Raises:
            InputError: nothing was recorded.
            ArtifactError: a file is another.
        """
        raise InputError(
            f"{self.model} was to be verified; only an exported folder has a record of its files."
        )
