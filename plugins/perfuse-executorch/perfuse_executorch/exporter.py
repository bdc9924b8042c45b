"""Lowers components to ExecuTorch: ``model.pte``, ``model.ptd`` with its weights, and ``model.json``.

``model.json`` describes both.
"""

import hashlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.backend import Component, Exporter, Options, Quantized, StoredTensor, WeightMap
from perfuse.errors import ExportError
from perfuse.sources import write_map

from perfuse_executorch.weights import DATA, Layout, constants_of, read_layout

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["DESCRIPTION", "FORMAT", "ExecuTorchExporter", "open_dims"]

FORMAT = "executorch"
MODEL = "model.pte"
#: Beside the model: its SHA-256, and which operators XNNPACK took and which it left.
DESCRIPTION = "model.json"
#: The option that says where weights are.
_PLACE = "weights"
#: What ExecuTorch calls the file of the constants that are marked so, but for its ending.
_TAG = DATA.removesuffix(".ptd")


def open_dims(component: Component) -> tuple[str, ...]:
    """The dimensions without a size and without a largest one."""
    spec = component.spec
    bounded = {name for name, dim in spec.dims.items() if dim.maximum is not None}
    return tuple(d for d in spec.signature.dims if d not in bounded and d not in component.static)


class ExecuTorchExporter(Exporter):
    """Writes ``.pte`` files whose operators are XNNPACK's wherever it has them.

    Inputs and outputs are those of the signature, in its order; they have no names in the file.
    In float16 the weights and the borders are float16, but for the timestep. Weights lie in a file of
    their own, so that one program serves every checkpoint; with the option ``weights=inside`` they are
    in the ``.pte``.
    """

    format: ClassVar[str] = FORMAT
    options: ClassVar[Options] = {_PLACE: ("beside", "inside")}

    def export(self, component: Component, folder: Path) -> Path:
        """Write the component into an empty folder, weights and all, and return ``model.pte``'s path.

        Raises:
            ExportError: a dimension has neither a size nor a maximum, the precision is not one
                that XNNPACK has kernels for, or the component could not be captured or lowered.
        """
        import torch

        _check(component)
        from perfuse.capture import capture

        path = folder / MODEL
        with _lowering(component):
            program = capture(component, getattr(torch, component.precision))
            delegation = _lower(program, path)
        _describe(path, delegation)
        return path

    def export_graph(self, component: Component, folder: Path) -> tuple[Path, WeightMap]:
        """Write the program, and the layout of its file of weights.

        Raises:
            ExportError: as ``export``; or weights are to be inside the program, or have been computed
                with when it was made.
        """
        import torch

        if component.options.get(_PLACE) == "inside":
            raise ExportError(f"{_PLACE}=inside has the weights in the program. Leave it out.")
        _check(component)
        from perfuse.capture import build, hollow, trace

        dtype = getattr(torch, component.precision)
        module = build(component)
        emptied, bound = hollow(module, dtype)
        stand_ins = _drawn(emptied, bound)
        path = folder / MODEL
        with _lowering(component):
            program = trace(component, emptied, dtype)
            _mark(program, bound)
            delegation = _lower(program, path, apart=bound)
        data = (folder / DATA).read_bytes()
        layout = Layout.of(data)
        constants = constants_of(layout, data, stand_ins)
        there, used = {one.tensor for one in constants.values()}, _read(program) & set(stand_ins)
        if missing := sorted(used - there):
            raise ExportError(
                f"{component.name}: the program has {missing[0]} within, computed with. Graph and "
                "weights cannot be had apart."
            )
        layout.write(folder)
        _describe(path, delegation)
        return path, WeightMap.around(constants, StoredTensor.all_of(module), bound)

    def fill(
        self,
        graph: Path,
        weights: WeightMap,
        tensors: Mapping[str, StoredTensor | Quantized],
        folder: Path,
    ) -> Path:
        layout = read_layout(graph)
        layout.write(folder)
        (folder / DATA).write_bytes(layout.filled(weights, tensors))
        shutil.copyfile(graph, folder / MODEL)
        described = json.loads(graph.with_name(DESCRIPTION).read_text("utf-8"))
        _describe(folder / MODEL, described["delegation"], DATA)
        write_map(weights, folder)
        return folder / MODEL


def _check(component: Component) -> None:
    """Refuse what no program can be made for."""
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


@contextmanager
def _lowering(component: Component) -> Iterator[None]:
    """What ExecuTorch's tools say, as an error of ours; their notes to nobody."""
    try:
        with _quiet():
            yield
    except (ExportError, OSError):
        raise
    except Exception as exc:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be lowered to ExecuTorch; "
            f"it said: {type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}. Run this "
            "component on another backend."
        ) from exc


def _drawn(module: "nn.Module", names: Collection[str]) -> dict[str, StoredTensor]:
    """Give the hollow tensors of a module numbers of their own, by which they are known again."""
    import torch

    generator = torch.Generator().manual_seed(0)
    found: dict[str, StoredTensor] = {}
    seen = set[int]()
    for name, tensor in module.state_dict().items():
        if name in names and tensor.data_ptr() not in seen:  # some are under two names
            seen.add(tensor.data_ptr())
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
            found[name] = StoredTensor.of(tensor)
    return found


def _mark(program: "ExportedProgram", names: Collection[str]) -> None:
    """Say in a graph which of its constants delegates are to leave to the other file."""
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        if tensors.get(node.name) in names:
            node.meta.setdefault("custom", {})["delegate_constant_tag"] = _TAG


def _read(program: "ExportedProgram") -> set[str]:
    """The parameters and buffers that a program's operators read."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {names[node.name] for node in program.graph.nodes if node.name in names and node.users}


def _lower(
    program: "ExportedProgram", path: Path, *, apart: Collection[str] = ()
) -> dict[str, Any]:
    """Write a captured graph and say where its operators went; some of its weights into ``model.ptd``."""
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower

    from perfuse_executorch.operators import decompositions

    decomposed = program.run_decompositions(dict(decompositions()))
    try:
        edge = to_edge_transform_and_lower(decomposed, partitioner=[_partitioner()])
    except AssertionError as exc:
        # ExecuTorch 1.4 may join operators into two parts each of which waits for the other, as with
        # DiT's modulations. Then each operator is a part of its own.
        if "dependency cycles" not in str(exc):
            raise
        edge = to_edge_transform_and_lower(decomposed, partitioner=[_partitioner(alone=True)])
    found = get_delegation_info(edge.exported_program().graph_module)
    operators = {
        name: count
        for name, count in sorted(found.delegation_by_operator.items())
        if name != "getitem"  # takes one of an operator's results
    }
    signature = edge.exported_program().graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    made = edge.to_executorch(
        ExecutorchBackendConfig(
            external_constants=lambda node: _TAG if names.get(node.name) in apart else None
        )
    )
    with open(path, "wb") as file:
        made.write_to_file(file)
    if apart:
        made.write_tensor_data_to_file(str(path.parent))
    return {
        "delegate": "XnnpackBackend",
        "subgraphs": found.num_delegated_subgraphs,
        "delegated": {name: n.delegated for name, n in operators.items() if n.delegated},
        "portable": {name: n.non_delegated for name, n in operators.items() if n.non_delegated},
    }


def _describe(path: Path, delegation: Mapping[str, Any], *others: str) -> None:
    """Write ``model.json`` beside a program: its SHA-256, and of other files that it needs."""
    beside = {name: _digest(path.with_name(name)) for name in others}
    description = {"sha256": _digest(path), "beside": beside, "delegation": delegation}
    path.with_name(DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", "utf-8")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partitioner(*, alone: bool = False) -> Any:
    """XNNPACK's, without what it rounds more than the portable kernels do.

    With ``alone`` it joins no operators.

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
        ],
        per_op_mode=alone,
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
