"""Lowers a component to StableHLO: ``model.stablehlo`` and ``model.safetensors``. And reads both.

The program is what ``jax.export`` serialises: StableHLO in its portable form, with the names,
shapes and dtypes of what it takes and gives. The weights are arguments of it, so that they can be
replaced without compiling again. Inputs and outputs are float32 whatever the precision; whole
numbers are int32, because they are indices in our graphs and XLA's devices are made for 32 bits.

Reading needs jax, and neither torch nor the exporter.
"""

import hashlib
import json
import os
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.backend import PRECISIONS, Component, Exporter, Options
from perfuse.errors import ArtifactError, ExportError, InputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

__all__ = [
    "CAST_TYPES",
    "FORMAT",
    "Loaded",
    "StableHloExporter",
    "import_jax",
    "load",
    "said",
    "settings",
]

FORMAT = "stablehlo"
MODEL, WEIGHTS = "model.stablehlo", "model.safetensors"

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_OPTIONS = {
    "auto_cast": ("none", "matmult", "all"),
    "auto_cast_type": ("bf16", "fp16", "tf32", "fp8_e4m3"),
    "operators": ("core", "neuron"),
}
#: What ``auto_cast_type`` may be, and the precision that it is.
CAST_TYPES = {"bf16": "bfloat16", "fp16": "float16"}
_NO_TYPE = {
    "tf32": "XLA has no TF32, and how Neuron rounds to it is not known here",
    "fp8_e4m3": "how Neuron scales and saturates values for FP8 is not known here",
}
#: The names of dtypes in a .safetensors file, https://huggingface.co/docs/safetensors.
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "bool": "BOOL"}
#: After the program, where flatbuffers do not look: this and the SHA-256 of what is before it.
#: MLIR's reader ends the process on some damaged files, and reads others as another program.
_SEAL = b"perfuse\0"
_settings_lock = RLock()


def import_jax() -> Any:
    """The ``jax`` module, imported so that it changes and says nothing.

    Importing JAX 0.10 draws from numpy's global generator (``jax._src.clusters.k8s_cluster``), and
    whatever the process has seeded would go on elsewhere. Its runtime logs to standard error.
    """
    if "jax" not in sys.modules:
        import numpy as np

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        state = np.random.get_state()
        import jax

        np.random.set_state(state)
    import jax

    return jax


class StableHloExporter(Exporter):
    """Writes StableHLO in float32, float16 or bfloat16, for one size.

    Options: ``auto_cast`` (``none``, ``matmult``, ``all``) and ``auto_cast_type`` (``bf16``,
    ``fp16``), with what neuronx-cc does under the same names written into the program; and
    ``operators=neuron``, for the graph in the operators that Neuron's compiler documents.
    """

    format: ClassVar[str] = FORMAT
    fixed: ClassVar[bool] = True
    options: ClassVar[Options] = _OPTIONS

    def export(self, component: Component, folder: Path) -> Path:
        """Write the component into an empty folder and return the path of ``model.stablehlo``.

        Raises:
            ExportError: a dimension has no size, or the component could not be captured or lowered.
            InputError: an option is a cast that cannot be computed here.
        """
        options = _read_options(component.options)
        if component.precision not in PRECISIONS:
            raise ExportError(
                f"{component.name} was to be exported to StableHLO in {component.precision}; "
                f"choose one of {', '.join(PRECISIONS)}."
            )
        if component.precision != "float32" and options["auto_cast"] != "none":
            raise InputError(
                f"auto_cast={options['auto_cast']} was asked for with {component.precision}; it "
                "casts float32. Use --precision float32, or leave auto_cast out."
            )
        _check_sizes(component)
        import_jax()
        import torch

        from perfuse_exporters.capture import capture
        from perfuse_exporters.stablehlo_graph import Casting, decomposed, lowered, weights_of

        graph = capture(component, getattr(torch, component.precision))
        if options["operators"] == "neuron":
            from perfuse_exporters.neuron_graph import core_graph

            program = core_graph(graph)
        else:
            program = decomposed(graph)
        weights = {name: _whole_in_32_bits(name, t) for name, t in weights_of(program).items()}
        function = lowered(
            program,
            component,
            Casting(mode=options["auto_cast"], dtype=CAST_TYPES[options["auto_cast_type"]]),
        )
        path = folder / MODEL
        path.write_bytes(_sealed(_serialised(function, component, weights)))
        details = {"component": component.name, "precision": component.precision, **options}
        _write_weights(folder / WEIGHTS, weights, details)
        return path

    def unsupported(self, program: "ExportedProgram", component: Component) -> Mapping[str, str]:
        """The operators without a lowering, each with the reason and the line of the model."""
        import_jax()
        from perfuse_exporters.stablehlo_graph import decomposed, line_of, refusals

        return {
            name: f"{reason} ({line_of(node) or 'an unknown line'})"
            for name, (reason, node) in refusals(decomposed(program)).items()
        }


def _read_options(given: Mapping[str, str]) -> dict[str, str]:
    defaults = {"auto_cast": "none", "auto_cast_type": "bf16", "operators": "core"}
    options = {**defaults, **given}
    kind = options["auto_cast_type"]
    if kind in _NO_TYPE:
        raise InputError(
            f"auto_cast_type={kind} was asked for; {_NO_TYPE[kind]}. Use bf16 or fp16, or compile "
            "on a Neuron instance: perfuse export --to neuron."
        )
    return options


def _check_sizes(component: Component) -> None:
    dims = [dim for dim in component.spec.signature.dims if dim not in component.static]
    if dims:
        several = "several sizes of" if component.sizes else "any"
        raise ExportError(
            f"{component.name} was to be exported to StableHLO for {several} {', '.join(dims)}; a "
            "program has one size. Fix them: --height H --width W --batch B."
        )


def _whole_in_32_bits(name: str, tensor: "Tensor") -> "Tensor":
    """A weight as it is stored: int64 as int32, which it must fit."""
    import torch

    if tensor.dtype != torch.int64:
        return tensor
    small = tensor.to(torch.int32)
    if not torch.equal(small.to(torch.int64), tensor):
        raise ExportError(
            f"The buffer {name} holds whole numbers beyond 32 bits; the program's are int32. "
            "Run this component on another backend."
        )
    return small


def _dtype_name(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _serialised(function: Any, component: Component, weights: "Mapping[str, Tensor]") -> bytearray:
    """The function, traced for the component's sizes. No array is computed with or held."""
    jax = import_jax()

    taken = {
        name: jax.ShapeDtypeStruct(tuple(tensor.shape), _dtype_name(tensor))
        for name, tensor in weights.items()
    }
    inputs = {
        tensor.name: jax.ShapeDtypeStruct(
            tensor.resolve(component.static), "int32" if tensor.dtype == "int64" else "float32"
        )
        for tensor in component.spec.signature.inputs
    }
    function.__name__ = component.name
    try:
        # The program would otherwise name the exporting machine's files, operation by operation, and
        # be another one where the process has 64 bits switched on.
        with settings(jax_traceback_in_locations_limit=0, jax_enable_x64=False):
            exported = jax.export.export(jax.jit(function), platforms=_PLATFORMS)(taken, inputs)
            serialised: bytearray = exported.serialize()
            return serialised
    except Exception as exc:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be lowered to StableHLO; JAX "
            f"{jax.__version__} said: {said(exc)}. Run this component on another backend."
        ) from exc


@contextmanager
def settings(**values: Any) -> Iterator[None]:
    """JAX's settings within the block; they are the process', so one thread at a time has its own."""
    jax = import_jax()

    with _settings_lock:
        before = {name: getattr(jax.config, name) for name in values}
        try:
            for name, value in values.items():
                jax.config.update(name, value)
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)


def _write_weights(path: Path, weights: "Mapping[str, Tensor]", details: Mapping[str, str]) -> None:
    """Write a .safetensors file tensor by tensor; the library would hold a copy of them all."""
    import torch

    header: dict[str, Any] = {"__metadata__": dict(details)}
    end = 0
    for name, tensor in weights.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[_dtype_name(tensor)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in weights.values():
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


# Reading


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A program and where its weights are; nothing is compiled and no weight is in memory."""

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

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """Each weight as a numpy array, read when its turn has come.

        Raises:
            ArtifactError: the file cannot be read any more.
        """
        with _opened(self.path.with_name(WEIGHTS)) as file:
            for name in self.weights:
                yield name, file.get_tensor(name)


def _sealed(program: bytes | bytearray) -> bytes:
    return bytes(program) + _SEAL + hashlib.sha256(program).digest()


def _unsealed(path: Path) -> bytearray:
    """The program of a file that is as it was written.

    Raises:
        ArtifactError: the file is missing, cut off, changed, or another tool's.
    """
    try:
        data = bytearray(path.read_bytes())
    except OSError as exc:
        raise ArtifactError(
            f"{path} was to be read; the system said: {exc.strerror or exc}. Export the model again."
        ) from exc
    program = data[: -len(_sealed(b""))]
    if data != _sealed(program):
        raise ArtifactError(
            f"{path} is damaged or cut off, or was not written by perfuse: the SHA-256 at its end "
            "is not its own. Export the model again."
        )
    return program


def load(main: Path) -> Loaded:
    """Read ``model.stablehlo``, and check that it is ours and that its weights fit it.

    jax trusts what it deserialises: StableHLO can call anything that is registered in the process
    by name. A program that calls out is refused; ours hold no such call.

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
    return Loaded(
        exported=exported,
        weights=weights,
        inputs=inputs,
        outputs=outputs,
        details=_checked_weights(main.with_name(WEIGHTS), weights),
        path=main,
    )


_CALL = re.compile(r"custom_call\W+([\w.$@]+)")


def _checked_weights(path: Path, wanted: Mapping[str, Any]) -> dict[str, str]:
    """See that a file holds these weights and no others; return its notes."""
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


def said(exc: BaseException) -> str:
    """What a library said, on one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines[0] if lines else type(exc).__name__).rstrip(".")
