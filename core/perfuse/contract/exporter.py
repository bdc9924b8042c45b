"""The contract between the host and an exporter."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from perfuse.contract.component import Component
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.options import Options
from perfuse.contract.quantized import Quantized
from perfuse.contract.weights import StoredTensor, WeightMap

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Exporter"]


class Exporter(ABC):
    """A plugin that lowers components to one engine's file format. It needs no hardware."""

    #: The format's name: ``"onnx"``.
    format: ClassVar[str]
    #: Whether a file takes fixed sizes only (one, or a list). The host then fixes every dimension.
    fixed: ClassVar[bool] = False
    #: Schemes in which it can store weights, apart from the precision that is computed in.
    storages: ClassVar[tuple[str, ...]] = ()
    #: Its options. The host refuses unknown ones.
    options: ClassVar[Options] = FrozenDict()
    #: Whether tools that read the format expect a ``model_index.json`` in the folder.
    indexed: ClassVar[bool] = False

    @abstractmethod
    def export(self, component: Component, folder: Path) -> Path:
        """Write the component into ``folder``, which exists and is empty; return its main file.

        The main file may be a folder, as a ``.mlpackage`` is.

        Raises:
            ExportError: the component could not be captured or lowered.
            InputError: an option does not fit another option or this component.
        """

    def export_graph(self, component: Component, folder: Path) -> tuple[Path, WeightMap]:
        """Write the component's graph without its weights into ``folder``, which exists and is empty.

        Nothing of what is written may follow from the value of a floating-point tensor that the
        module saves. What it holds besides, such as tables computed from the config, is part of the
        graph.

        Returns:
            The main file, and what its constants are.

        Raises:
            ExportError: the component could not be captured or lowered.
            InputError: an option does not fit another option or this component.
        """
        raise NotImplementedError(f"{self.format} files have their weights in them")

    def fill(
        self,
        graph: Path,
        weights: WeightMap,
        tensors: Mapping[str, StoredTensor | Quantized],
        folder: Path,
    ) -> Path:
        """Write a graph with weights into ``folder``, as ``export`` would; return its main file.

        Those that the component stores in integers come as such, one at a time.

        Raises:
            ExportError: the folder cannot be written, or a tensor has numbers that the precision
                cannot hold.
        """
        raise NotImplementedError(f"{self.format} files have their weights in them")

    def arrange(
        self,
        folder: Path,
        components: Mapping[str, Component],
        files: Mapping[str, Path],
        *,
        model: str,
    ) -> Mapping[str, Path]:
        """Move a whole pipeline's files to where tools that read the format expect them.

        Called once, after every component is exported and before the manifest is written.

        Args:
            folder: The pipeline's folder, with tokenizers and scheduler already in it.
            components: The exported components by name, without torch modules.
            files: Component name to its main file, inside the folder.
            model: The model as the user named it: a folder or a Hub id.

        Returns:
            Component name to its main file, after the move.
        """
        return files

    def unsupported(self, program: "ExportedProgram", component: Component) -> Mapping[str, str]:
        """Operators of a captured graph that the format cannot hold: ``{"aten.fft": "why"}``.

        Used by ``perfuse inspect --for``. Empty where an exporter cannot tell beforehand.
        """
        return {}
