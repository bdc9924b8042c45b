"""The contract between the host and an exporter."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from perfuse.contract.component import Component
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.options import Options

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Exporter"]


class Exporter(ABC):
    """A plugin that lowers components to one engine's file format. It needs no hardware."""

    #: The format's name: ``"onnx"``.
    format: ClassVar[str]
    #: Whether a file takes one size, or a list of sizes. The host then fixes every dimension.
    fixed: ClassVar[bool] = False
    #: Schemes in which it can store weights, apart from the precision that is computed in.
    storages: ClassVar[tuple[str, ...]] = ()
    #: Its switches. The host refuses others.
    options: ClassVar[Options] = FrozenDict()
    #: Whether the format's users look for a ``model_index.json`` in the folder, as a checkpoint has.
    indexed: ClassVar[bool] = False

    @abstractmethod
    def export(self, component: Component, folder: Path) -> Path:
        """Write the component into ``folder``, which exists and is empty; return its main file.

        The main file may be a folder, as a ``.mlpackage`` is.

        Raises:
            ExportError: the component could not be captured or lowered.
            InputError: an option cannot be used, with another or with this component.
        """

    def arrange(
        self,
        folder: Path,
        components: Mapping[str, Component],
        files: Mapping[str, Path],
        *,
        model: str,
    ) -> Mapping[str, Path]:
        """Put a whole pipeline's files where this format's users look for them.

        Called once, when every component has been exported, before the manifest is written.

        Args:
            folder: The pipeline's folder, with tokenizers and scheduler already in it.
            components: What was exported, by name; without modules.
            files: The main file of each, inside the folder.
            model: What the person called the model.

        Returns:
            The main file of each, where it is now.
        """
        return files

    def unsupported(self, program: "ExportedProgram", component: Component) -> Mapping[str, str]:
        """What of a captured graph this format cannot hold: ``{"aten.fft": "why"}``.

        For ``perfuse inspect --for``; an exporter that cannot say so beforehand says nothing.
        """
        return {}
