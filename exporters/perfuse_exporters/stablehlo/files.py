"""The files of a StableHLO program: their names, their seal, and reading them.

Needs jax, and neither torch nor the exporter.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfuse.backend import Quantized, StoredTensor, WeightMap
from perfuse.errors import ArtifactError
from perfuse.plugins import said
from perfuse_exporters.stablehlo.engine import import_jax

__all__ = [
    "FORMAT",
    "MODEL",
    "WEIGHTS",
    "Loaded",
    "load",
    "sealed",
    "stored_weights",
    "taken",
    "write_weights",
]

FORMAT = "stablehlo"
MODEL, WEIGHTS = "model.stablehlo", "model.safetensors"

#: The names of dtypes in a .safetensors file, https://huggingface.co/docs/safetensors.
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "bool": "BOOL"}
#: Written after the program, where flatbuffers ignores it, with the SHA-256 of the program.
#: MLIR's reader ends the process on some damaged files, and reads others as another program.
_SEAL = b"perfuse\0"
_CALL = re.compile(r"custom_call\W+([\w.$@]+)")


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A program and the files of its weights, with nothing compiled or loaded."""

    #: ``jax.export.Exported``: takes the weights and the inputs, each a dict, and gives a dict.
    exported: Any
    #: The shape and dtype of each weight that the program takes.
    weights: Mapping[str, Any]
    #: The same of each input, and of each output.
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    #: What the exporter noted: the component, its precision, and the options.
    details: Mapping[str, str]
    path: Path
    #: The weights that are not in the file beside it, or others there, as the program takes them.
    given: Mapping[str, StoredTensor]

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Each weight, read when its turn has come.

        Raises:
            ArtifactError: the file cannot be read any more.
        """
        with stored_weights(self.path) as stored:
            for name, aval in self.weights.items():
                if name in self.given:
                    yield name, self.given[name]
                else:
                    yield name, stored(name, str(aval.dtype))


def taken(
    weights: WeightMap, tensors: Mapping[str, StoredTensor | Quantized]
) -> dict[str, StoredTensor]:
    """The weights of a graph as its program takes them, of the tensors of a module.

    Raises:
        ExportError: one has numbers that the program's precision cannot hold.
    """
    found = {}
    for name, constant in weights.constants.items():
        tensor = tensors[constant.tensor]
        plain = tensor.dequantized if isinstance(tensor, Quantized) else tensor
        found[name] = constant.of(plain, exact=True)
    return found


def write_weights(
    path: Path, weights: Mapping[str, StoredTensor], details: Mapping[str, str]
) -> None:
    """Write a .safetensors file tensor by tensor; the library would hold a copy of them all."""
    import numpy as np

    header: dict[str, Any] = {"__metadata__": dict(details)}
    end = 0
    for name, tensor in weights.items():
        start, end = end, end + tensor.array.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in weights.values():
            file.write(np.ascontiguousarray(tensor.array).reshape(-1).view(np.uint8).data)


@contextmanager
def stored_weights(main: Path) -> Iterator[Callable[[str, str], StoredTensor]]:
    """What reads a weight beside ``model.stablehlo``, by its name and dtype, in a ``with`` block.

    Raises:
        ArtifactError: the file cannot be read, or there is no such weight.
    """
    import numpy as np

    with _opened(main.with_name(WEIGHTS)) as file:

        def read(name: str, dtype: str) -> StoredTensor:
            array = file.get_tensor(name)
            bits = array.view(np.uint16) if dtype == "bfloat16" else array
            return StoredTensor(dtype=dtype, array=bits)

        yield read


def sealed(program: bytes | bytearray) -> bytes:
    """A serialised program with its SHA-256 after it."""
    return bytes(program) + _SEAL + hashlib.sha256(program).digest()


def _unsealed(path: Path) -> bytearray:
    """The program of a file, after a check of its SHA-256.

    Raises:
        ArtifactError: the file is missing, cut off, changed, or another tool's.
    """
    try:
        data = bytearray(path.read_bytes())
    except OSError as exc:
        raise ArtifactError(
            f"{path} was to be read; the system said: {exc.strerror or exc}. Export the model again."
        ) from exc
    program = data[: -len(sealed(b""))]
    if data != sealed(program):
        raise ArtifactError(
            f"{path} is damaged or cut off, or was not written by perfuse: the SHA-256 at its end "
            "is not its own. Export the model again."
        )
    return program


def load(main: Path, given: Mapping[str, StoredTensor] | None = None) -> Loaded:
    """Read ``model.stablehlo``, and check that it is ours and that its weights fit it.

    jax trusts what it deserialises: StableHLO can call anything that is registered in the process
    by name. A program that calls out is refused; ours hold no such call.

    Args:
        main: The file.
        given: The weights that are not in the file beside it; see ``taken``.

    Raises:
        ArtifactError: a file is missing, damaged, or was not written by the exporter; a weight is
            missing, unexpected, or has another shape or dtype.
    """
    jax = import_jax()
    program = _unsealed(main)
    try:
        exported = jax.export.deserialize(program)
        (weights, inputs), keywords = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        named = all(
            isinstance(part, dict) and not any(isinstance(one, dict) for one in part.values())
            for part in (weights, inputs, outputs)
        )
        if keywords or not named or exported.nr_devices != 1 or exported.ordered_effects:
            raise ValueError("it does not take named weights and inputs")
        text = exported.mlir_module()
    except Exception as exc:  # of flatbuffers, of MLIR, or of the structure
        raise ArtifactError(
            f"{main} cannot be read by jax {jax.__version__} as a program of perfuse: {said(exc)}. "
            "Update jax, or export the model again."
        ) from exc
    if calls := sorted(set(_CALL.findall(text))):
        raise ArtifactError(
            f"{main} calls {', '.join(calls)}, which is code outside it; a program of perfuse "
            "calls none. Export the model again from a checkpoint that you trust."
        )
    given = given if given is not None else {}
    beside = {name: aval for name, aval in weights.items() if name not in given}
    return Loaded(
        exported=exported,
        weights=weights,
        inputs=inputs,
        outputs=outputs,
        details=_checked_weights(main.with_name(WEIGHTS), beside),
        path=main,
        given=given,
    )


def _checked_weights(path: Path, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Check that a file holds exactly these weights; return its metadata."""
    with _opened(path) as file:
        names = set(file.keys())
        if names != set(wanted):
            missing, unknown = sorted(set(wanted) - names), sorted(names - set(wanted))
            raise ArtifactError(
                f"{path} does not hold the weights of its program; missing: "
                f"{', '.join(missing[:3]) or 'none'}; unknown: {', '.join(unknown[:3]) or 'none'}. "
                "Export the model again."
            )
        for name, aval in wanted.items():
            part = file.get_slice(name)
            found = (tuple(part.get_shape()), part.get_dtype())
            if found != (aval.shape, _CODES.get(str(aval.dtype))):
                raise ArtifactError(
                    f"{path} holds {name} as {found[1]} {found[0]}; its program takes {aval.dtype} "
                    f"{aval.shape}. Export the model again."
                )
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as exc:
        raise ArtifactError(
            f"{path} cannot be read as a .safetensors file: {said(exc)}. Export the model again."
        ) from exc
