"""An exported folder, which runs with numpy, Pillow, a tokenizer and its engine only."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from perfuse.contract.component import Component
from perfuse.contract.source import Source
from perfuse.contract.spec import PipelineSpec
from perfuse.errors import ArtifactError, InputError
from perfuse.sources.manifest import ExportedComponent, Manifest, inside
from perfuse.sources.tokenizer import Tokenizer

__all__ = ["Artifact"]


@dataclass(frozen=True, kw_only=True)
class Artifact(Source):
    """A pipeline in an exported folder."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the manifest and check that the files are there.

        Raises:
            ArtifactError: the folder is not a complete artifact.
        """
        path = Path(folder)
        return cls(path=path, manifest=Manifest.read(path))

    @property
    def model(self) -> str:  # type: ignore[override]  # it follows from the path
        return str(self.path)

    @property
    def spec(self) -> PipelineSpec:  # type: ignore[override]
        return self.manifest.spec

    @property
    def format(self) -> str:
        """The engine format of its components."""
        return next(iter(self.manifest.components.values())).format

    @property
    def transforms(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.manifest.source.get("transforms") or "").split(";")))

    def exported(self) -> Mapping[str, ExportedComponent]:
        return self.manifest.components

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of the files of each component."""
        return {
            name: sum(int(self.manifest.files[file]["size"]) for file in files)
            for name, files in self.manifest.files_of().items()
        }

    def with_spec(self, spec: PipelineSpec) -> "Artifact":
        return dataclasses.replace(self, manifest=dataclasses.replace(self.manifest, spec=spec))

    def verify(self) -> None:
        """Compare every file's SHA-256 with the manifest's.

        Raises:
            ArtifactError: a file has changed since the export.
        """
        self.manifest.verify(self.path)

    def component(
        self, name: str, *, precision: str | None = None, static: Mapping[str, int] | None = None
    ) -> Component:
        """One component, as it was exported.

        Raises:
            ArtifactError: the artifact has no such component.
            InputError: another precision or other fixed sizes were asked for.
        """
        if name not in self.manifest.components:
            raise ArtifactError(
                f"{name} was asked for; {self.path} holds {', '.join(self.manifest.components)}."
            )
        exported = self.manifest.components[name]
        if precision is not None and precision != exported.precision:
            raise InputError(
                f"{name} was asked for in {precision}; {self.path} holds it in "
                f"{exported.precision}. Export the checkpoint again with --precision {precision}."
            )
        if static and dict(static) != dict(exported.static):
            raise InputError(
                f"{name} was asked for with the sizes {dict(static)} fixed; {self.path} was made "
                f"for {dict(exported.static) or 'any size'}. Export the checkpoint again."
            )
        return Component(
            spec=self.spec.components[name],
            precision=exported.precision,
            static=exported.static,
            sizes=exported.sizes,
            options=exported.options,
            storage=exported.storage,
            calibration=exported.calibration,
            files={exported.format: inside(self.path, exported.file)},
        )

    def tokenizer(self, name: str) -> Tokenizer:
        """One of its tokenizers.

        Raises:
            InputError: the artifact has no tokenizer of this name.
            ArtifactError: the tokenizer's files are missing or damaged.
        """
        if name not in self.spec.tokenizers:
            raise InputError(
                f"Tokenizer {name!r} was asked for; {self.path} has "
                f"{', '.join(self.spec.tokenizers) or 'none'}."
            )
        return Tokenizer.from_folder(inside(self.path, self.spec.tokenizers[name]))
