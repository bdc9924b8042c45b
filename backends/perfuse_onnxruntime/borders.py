"""How arrays enter and leave a graph: by name, in the dtype and rank that its file declares.

Files that perfuse exported fit as they are. Other exporters write the same models with a timestep
of rank 0, or of whole numbers, or with other names for the output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfuse.errors import ArtifactError, InputError
from perfuse.spec import Signature, TensorSpec

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
#: What exporters call the one output of a denoiser.
_PREDICTIONS = frozenset(
    ("out_sample", "out_hidden_states", "sample", "noise_pred", "denoiser_output")
)
_ALIASES = {
    "latent_parameters": frozenset(("latent_sample", "latent")),
    **dict.fromkeys(_PREDICTIONS, _PREDICTIONS),
}

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Border:
    """One input or output of a graph, with its tensor in the signature."""

    #: The signature's name.
    name: str
    #: The graph's name.
    node: str
    #: The graph's dtype.
    dtype: np.dtype[Any]
    #: The graph's sizes; ``None`` for an axis that takes any size.
    shape: tuple[int | None, ...]


def inputs(signature: Signature, nodes: Sequence[Any], *, where: str) -> tuple[Border, ...]:
    """The graph's inputs in the order of the signature.

    Raises:
        ArtifactError: the graph does not take exactly the signature's inputs.
    """
    by_name = {node.name: node for node in nodes}
    if by_name.keys() != set(signature.input_names):
        raise ArtifactError(
            f"{where} takes {', '.join(by_name)}; the manifest declares "
            f"{', '.join(signature.input_names)}. Export the model again."
        )
    return tuple(_border(tensor, by_name[tensor.name], where) for tensor in signature.inputs)


def outputs(signature: Signature, nodes: Sequence[Any], *, where: str) -> tuple[Border, ...]:
    """The graph's outputs in the order of the signature; it may have more.

    Raises:
        ArtifactError: the graph lacks one.
    """
    by_name = {node.name: node for node in nodes}
    return tuple(
        _border(tensor, by_name[_output(tensor.name, list(by_name), where)], where)
        for tensor in signature.outputs
    )


def _output(name: str, found: list[str], where: str) -> str:
    if name in found:
        return name
    if name == "penultimate_hidden_state":
        # Others write all of CLIP's states, hidden_states.0 first and the last layer's last.
        states = [other for other in found if other.startswith("hidden_states.")]
        if len(states) > 1:
            return f"hidden_states.{len(states) - 2}"
    others = [other for other in found if other in _ALIASES.get(name, ())]
    if len(others) == 1:
        return others[0]
    raise ArtifactError(
        f"{where} gives {', '.join(found)}; {name} was looked for. Export the model again."
    )


def _border(tensor: TensorSpec, node: Any, where: str) -> Border:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ArtifactError(
            f"{where} declares {node.name} as {node.type}, which numpy has no array for. Export "
            "the model again in float32 or float16."
        )
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    if len(shape) != len(tensor.shape) and not (shape == () and len(tensor.shape) == 1):
        raise ArtifactError(
            f"{where} declares {node.name} with {len(shape)} dimensions; {len(tensor.shape)} "
            f"were expected: {tensor.shape}. Export the model again."
        )
    fixed = [
        (size, wanted)
        for size, wanted in zip(shape, tensor.shape, strict=False)
        if size is not None and isinstance(wanted, int)
    ]
    if any(size != wanted for size, wanted in fixed):
        raise ArtifactError(
            f"{where} declares {node.name} of shape {tuple(node.shape)}; {tensor.shape} was expected. "
            "Export the model again."
        )
    return Border(name=tensor.name, node=node.name, dtype=np.dtype(dtype), shape=shape)


def converter(border: Border, tensor: TensorSpec) -> Callable[[Any], Array]:
    """A function that converts a caller's array to the graph's dtype; cheap if none is needed."""
    rank_0 = border.shape == () and len(tensor.shape) == 1

    def convert(value: Any) -> Array:
        array = value if type(value) is np.ndarray else _as_array(value, border.name)
        if array.dtype != border.dtype:
            array = _cast(array, border)
        if rank_0:
            array = _only(array, border.name)
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)

    return convert


def _as_array(value: Any, name: str) -> Array:
    try:
        return np.asarray(value)
    except Exception as exc:  # whatever an array type of another library raises
        raise InputError(
            f"{name} was given as {type(value).__name__}, which numpy cannot read: {exc}. Pass a "
            "numpy array."
        ) from exc


def _cast(array: Array, border: Border) -> Array:
    kinds = array.dtype.kind, border.dtype.kind
    if kinds[0] not in "fiub" or (kinds[1] == "b") != (kinds[0] == "b"):
        raise InputError(f"{border.name} takes {border.dtype}; got {array.dtype}.")
    if kinds[1] == "f":
        return array.astype(border.dtype)
    cast = array.astype(border.dtype)
    changed = cast != array
    if changed.any():
        raise InputError(
            f"{border.name} is {border.dtype} in this file; got {array[changed][0]:.7g}, which "
            "would be truncated. Use a scheduler with whole timesteps (timestep_spacing='leading'), or "
            "export the model with perfuse, which keeps fractions."
        )
    return cast


def _only(array: Array, name: str) -> Array:
    """The value that a whole batch shares."""
    if array.size == 0 or (array != array.flat[0]).any():
        raise InputError(
            f"{name} is one number for the whole batch in this file; got {array.tolist()}. Export "
            "the model with perfuse, or pass one value."
        )
    return array.reshape(-1)[:1].reshape(())
