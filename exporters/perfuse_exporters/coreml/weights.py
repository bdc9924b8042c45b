"""The weights of a saved Core ML package: where its files have them, and others in their place.

coremltools makes no graph without weights. So one is made with weights that are random numbers:
where their bytes are in its files, there the weight is. Its passes cannot have found one to be zero or
one, or equal to another; and a number that follows from weights is not among them, so that a package
which has such instead of a weight is refused.
"""

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from perfuse.backend import Change, Constant, Quantized, StoredTensor, WeightMap
from perfuse.capture import replace_tensors
from perfuse.errors import ExportError
from perfuse_exporters.coreml.mlpackage import model_file, stored_values

__all__ = ["fill", "located", "randomised", "without"]

#: Shorter ones may be in a file where nobody put them.
_FEWEST_BYTES = 6
#: Core ML's converter keeps weights of fewer elements in the file of the program.
_ELEMENTS = 10
_aten = torch.ops.aten
#: What may leave the numbers of a weight as they are, each once; whether it does is seen in the file.
_LAYOUTS = (
    *(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
    *(_aten.permute.default, _aten.transpose.int, _aten.t.default, _aten.alias.default),
    *(_aten.unsqueeze.default, _aten.squeeze.dims, _aten.squeeze.dim, _aten.clone.default),
    *(_aten._to_copy.default, _aten.to.dtype, _aten.slice.Tensor, _aten.embedding.default),
)


def randomised(module: nn.Module) -> tuple[nn.Module, frozenset[str]]:
    """A copy of a module in float32 with random weights, no two alike; and their names."""
    saved = module.state_dict(keep_vars=True)
    weights = {name: t for name, t in saved.items() if t.is_floating_point()}
    ids = {id(tensor) for tensor in weights.values()}
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        if id(tensor) in ids:
            return torch.randn(tensor.shape, generator=generator)
        return tensor.float() if tensor.is_floating_point() else tensor

    return replace_tensors(module, drawn), frozenset(weights)


def located(
    package: Path, program: ExportedProgram, module: nn.Module, names: frozenset[str]
) -> dict[str, Constant]:
    """Where a package has the random weights of a module: by ``FILE@OFFSET``, which it is.

    Args:
        package: The ``.mlpackage``.
        program: What it was converted from.
        module: What that was captured of.
        names: Those of the weights.

    Raises:
        ExportError: a weight that the program uses is not there as it is.
    """
    tensors = _by_tensor(module, names)
    used = _used(program, tensors)
    forms = {_digest(array): known for known, array in _forms(used)}
    main, found = model_file(package), dict[str, Constant]()
    for file, offset, array in stored_values(package):
        known = forms.get(_digest(array))
        if known is not None:
            found[f"{file}@{offset}"] = known
    program_file = main.read_bytes()
    for known, array in _forms({n: t for n, t in used.items() if t.numel() < _ELEMENTS}):
        for offset in _places(program_file, array.tobytes()):
            found[f"{main.name}@{offset}"] = known
    missing = used.keys() - {one.tensor for one in found.values()}
    if missing:
        raise ExportError(
            f"{package.name} does not hold {', '.join(sorted(missing)[:3])} as it is: its graph "
            "and its weights cannot be told apart."
        )
    return found


def _by_tensor(module: nn.Module, names: frozenset[str]) -> dict[str, tuple[str, Tensor]]:
    """For each weight the first name of the same tensor, and the tensor."""
    first: dict[int, str] = {}
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in names:
            found[name] = first.setdefault(id(tensor), name), tensor.detach()
    return found


def _used(program: ExportedProgram, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The weights that a program uses, by their first names.

    Raises:
        ExportError: it computes something from weights alone, which is then a constant.
    """
    specs = iter(program.graph_signature.input_specs)
    used, constants, of_weights = {}, set(), set()
    for node in program.graph.nodes:
        given = node.all_input_nodes
        if node.op == "placeholder":
            spec = next(specs)
            if spec.kind is not InputKind.USER_INPUT:
                constants.add(node)
            if node in constants and node.users and spec.target in tensors:
                name, tensor = tensors[str(spec.target)]
                used[name] = tensor
                of_weights.add(node)
        elif node.op == "call_function" and constants.issuperset(given):
            constants.add(node)
            sources = of_weights.intersection(given)
            if sources and not (node.target in _LAYOUTS and _count(node) in map(_count, sources)):
                raise ExportError(
                    f"{node.target} of weights alone is a constant: its graph and its weights "
                    "cannot be told apart."
                )
            of_weights |= {node} if sources else set()
    return used


def _count(node: Node) -> int:
    """The elements of what a node makes."""
    return int(node.meta["val"].numel())


def _forms(tensors: Mapping[str, Tensor]) -> Iterator[tuple[Constant, Any]]:
    """How a package may hold each tensor: in a precision, and a matrix turned around."""
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        turned = (Change(kind="transpose", sizes=(1, 0)),) if len(shape) == 2 else ()
        for dtype in ("float32", "float16"):
            array = tensor.to(getattr(torch, dtype)).numpy()
            yield Constant(tensor=name, dtype=dtype, shape=shape), array
            if turned and min(shape) > 1:
                known = Constant(tensor=name, dtype=dtype, shape=shape, changes=turned)
                yield known, array.T


def _digest(array: Any) -> bytes:
    return hashlib.blake2b(array.tobytes(), digest_size=16).digest()


def _places(content: bytes, wanted: bytes) -> Iterator[int]:
    """Where bytes are in others."""
    place = content.find(wanted) if len(wanted) >= _FEWEST_BYTES else -1
    while place >= 0:
        yield place
        place = content.find(wanted, place + 1)


def _by_file(weights: WeightMap) -> dict[str, list[tuple[int, Constant]]]:
    """The constants in each file, in their order."""
    found = defaultdict(list)
    for name, constant in weights.constants.items():
        file, _, offset = name.rpartition("@")
        found[file].append((int(offset), constant))
    return {file: sorted(ones, key=lambda one: one[0]) for file, ones in found.items()}


def without(package: Path, weights: WeightMap) -> None:
    """Cut the weights out of the files of a package that are not the program."""
    main = model_file(package)
    for name, constants in _by_file(weights).items():
        path, partial = main.parent / name, main.with_suffix(".partial")
        if path == main:
            continue
        with open(path, "rb") as source, open(partial, "wb") as target:
            for offset, constant in constants:
                target.write(source.read(offset - source.tell()))
                source.seek(constant.size, 1)
            shutil.copyfileobj(source, target)
        partial.replace(path)


def fill(
    graph: Path,
    weights: WeightMap,
    tensors: Mapping[str, StoredTensor | Quantized],
    package: Path,
) -> None:
    """Write a package without weights with those of a module, one at a time.

    Raises:
        ExportError: one has numbers that the package's precision cannot hold.
    """
    shutil.copytree(graph, package)
    main = model_file(package)
    for name, constants in _by_file(weights).items():
        path, cut = main.parent / name, name != main.name
        kept = path.read_bytes()
        with open(path, "wb") as file:
            at = 0
            for offset, constant in constants:
                length = offset - file.tell()
                file.write(kept[at : at + length])
                at += length + (0 if cut else constant.size)
                found = tensors[constant.tensor]
                plain = found.dequantized if isinstance(found, Quantized) else found
                file.write(constant.of(plain, exact=True).changed(constant.changes).array.data)
            file.write(kept[at:])
