"""Lowers components to ExecuTorch: ``model.pte``, and ``model.json`` that describes it."""

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.backend import Component, Exporter
from perfuse.errors import ExportError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["DESCRIPTION", "FORMAT", "ExecuTorchExporter", "open_dims"]

FORMAT = "executorch"
MODEL = "model.pte"
#: Beside the model: its SHA-256, and which operators XNNPACK took and which it left.
DESCRIPTION = "model.json"


def open_dims(component: Component) -> tuple[str, ...]:
    """The dimensions without a size and without a largest one."""
    spec = component.spec
    bounded = {name for name, dim in spec.dims.items() if dim.maximum is not None}
    return tuple(d for d in spec.signature.dims if d not in bounded and d not in component.static)


class ExecuTorchExporter(Exporter):
    """Writes ``.pte`` files whose operators are XNNPACK's wherever it has them.

    Inputs and outputs are those of the signature, in its order; they have no names in the file.
    In float16 the weights and the borders are float16, but for the timestep.
    """

    format: ClassVar[str] = FORMAT

    def export(self, component: Component, folder: Path) -> Path:
        """Write the component into an empty folder and return the path of ``model.pte``.

        Raises:
            ExportError: a dimension has neither a size nor a maximum, the precision is not one
                that XNNPACK has kernels for, or the component could not be captured or lowered.
        """
        import torch

        if component.precision not in ("float32", "float16"):
            raise ExportError(
                f"{component.name} was to be exported to executorch in {component.precision}; "
                "XNNPACK has no kernels for it. Use --precision float32 or float16."
            )
        if dims := open_dims(component):
            raise ExportError(
                f"{component.name} was to be exported to executorch for any {', '.join(dims)}; "
                "ExecuTorch plans a program's memory when it writes the file. Fix the sizes: "
                "--height H --width W --batch B."
            )
        from perfuse.capture import capture

        path = folder / MODEL
        try:
            with _quiet():
                program = capture(component, getattr(torch, component.precision))
                delegation = _lower(program, path)
        except (ExportError, OSError):
            raise
        except Exception as exc:
            raise ExportError(
                f"{component.name} ({component.spec.class_name}) was to be lowered to ExecuTorch; "
                f"it said: {type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}. Run this "
                "component on another backend."
            ) from exc
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        description = {"sha256": digest, "delegation": delegation}
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", "utf-8")
        return path


def _lower(program: "ExportedProgram", path: Path) -> dict[str, Any]:
    """Write a captured graph and say where its operators went."""
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower

    from perfuse_executorch.operators import decompositions

    edge = to_edge_transform_and_lower(
        program.run_decompositions(dict(decompositions())), partitioner=[_partitioner()]
    )
    found = get_delegation_info(edge.exported_program().graph_module)
    operators = {
        name: count
        for name, count in sorted(found.delegation_by_operator.items())
        if name != "getitem"  # takes one of an operator's results
    }
    with open(path, "wb") as file:
        edge.to_executorch().write_to_file(file)
    return {
        "delegate": "XnnpackBackend",
        "subgraphs": found.num_delegated_subgraphs,
        "delegated": {name: n.delegated for name, n in operators.items() if n.delegated},
        "portable": {name: n.non_delegated for name, n in operators.items() if n.non_delegated},
    }


def _partitioner() -> Any:
    """XNNPACK's, without what it rounds more than the portable kernels do.

    A timestep's frequencies are exponentials, and 999 times their error is an error of the phase.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    rounded = ("exp.default", "sin.default", "cos.default")
    return XnnpackPartitioner(
        configs=[
            config
            for config in ALL_PARTITIONER_CONFIGS
            if getattr(config, "target_name", None) not in rounded
        ]
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The tools talk about packages that are not needed; standard output is the user's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
