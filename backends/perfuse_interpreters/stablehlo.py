"""A StableHLO program behind a component's signature, compiled for one of JAX's devices."""

import warnings
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from perfuse.arrays import to_numpy
from perfuse.backend import Array, Component, ExecutionReport, Program, StoredTensor
from perfuse.errors import ArtifactError, ExecutionError, InputError
from perfuse.plugins import said
from perfuse.run import Bound, bound, exported
from perfuse.sources import ArtifactStore, changed_constants, read_map
from perfuse_exporters.stablehlo.engine import import_jax, settings
from perfuse_exporters.stablehlo.exporter import CAST_TYPES
from perfuse_exporters.stablehlo.files import FORMAT, Loaded, load, stored_weights, taken

__all__ = ["OPTIMIZATIONS", "OfFiles", "StableHloProgram", "compiled_in", "prepared"]

#: In the store, so that ``perfuse cache`` lists and clears it.
_COMPILED = "xla-compiled"
#: How hard the compiler works: at 0 it takes half the time, and its programs take four times as long.
OPTIMIZATIONS = ("0", "1", "2", "3")


def prepared(
    component: Component,
    store: ArtifactStore,
    lowered: Callable[[Component], Component] = lambda component: component,
    **settings: Any,
) -> "StableHloProgram":
    """A component as a program: its graph with the checkpoint's weights, or a file with its own.

    Args:
        component: What is to run; every dimension fixed.
        store: Where graphs are, and exports of what has no graph of its own.
        lowered: What is lowered of a component.
        **settings: Those of ``StableHloProgram``.

    Raises:
        ExportError: it could not be lowered.
        ArtifactError: the files are damaged, or of another component or size.
        ExecutionError: XLA could not compile it.
    """

    def weights(one: Component) -> _Weights:
        graph = bound(lowered(one), FORMAT, store)
        if graph is not None:
            return _OfCheckpoint(graph)
        return OfFiles(exported(lowered(one), FORMAT, store), one)

    return StableHloProgram(component, weights, **settings)


class _Weights(Protocol):
    """A program's file, and the weights that it is to run with."""

    @property
    def path(self) -> Path:
        """The file."""

    def load(self) -> Loaded:
        """The program with all of its weights."""

    def some(self, names: AbstractSet[str]) -> Mapping[str, StoredTensor] | None:
        """Those of these names in the model's state dict, as the program takes them.

        ``None`` where it is not known which they are.
        """


@dataclass(frozen=True)
class _OfCheckpoint:
    """Those of a checkpoint, with the adapters that are in them."""

    graph: Bound

    @property
    def path(self) -> Path:
        return self.graph.path

    def load(self) -> Loaded:
        return load(self.path, taken(self.graph.weights, self.graph.tensors))

    def some(self, names: AbstractSet[str]) -> Mapping[str, StoredTensor]:
        return taken(self.graph.weights.only(names), self.graph.tensors)


@dataclass(frozen=True)
class OfFiles:
    """Those of an export, with adapters where the component has them."""

    path: Path
    component: Component

    def load(self) -> Loaded:
        changes = self.component.changes
        given = self.some(changes.names) if changes is not None else None
        loaded = load(self.path)
        return loaded if given is None else replace(loaded, given=given)

    def some(self, names: AbstractSet[str]) -> Mapping[str, StoredTensor] | None:
        known = read_map(self.path) if self.component.build is None else None
        if known is None:
            return None
        with stored_weights(self.path) as stored:

            def read(name: str) -> StoredTensor:
                return stored(name, known.constants[name].dtype)

            found = {name: read(name) for name in known.only(names).constants}
            if self.component.changes is not None:
                found.update(changed_constants(known, self.component.changes, read))
            return found


class StableHloProgram(Program):
    """One executable. The weights are on the device; each call's outputs are the caller's.

    They are arguments of it: others take their place without compiling again.
    """

    def __init__(
        self,
        component: Component,
        weights: Callable[[Component], _Weights],
        *,
        device: Any,
        name: str,
        cache: Path | None = None,
        optimization: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Load, check and compile.

        Args:
            component: What is to run; every dimension fixed.
            weights: Gives its file and weights, also of the component with other adapters.
            device: One of ``jax.devices()``.
            name: What the device is called in reports.
            cache: Where compiled programs are kept; ``None`` for nowhere.
            optimization: One of ``OPTIMIZATIONS``; ``None`` for XLA's own choice, the last.
            details: What a report says besides.

        Raises:
            ArtifactError: the files are damaged, or of another component or size.
            ExecutionError: XLA could not compile it.
        """
        jax = import_jax()

        own = weights(component)
        loaded, path = own.load(), own.path
        _check_borders(component, loaded.inputs, loaded.outputs, path)
        self.signature = component.signature
        self._component = component
        self._device, self._name = device, name
        self._dtypes = {tensor: np.dtype(aval.dtype) for tensor, aval in loaded.inputs.items()}
        self._notes = {**loaded.details, **(details or {})}
        self._put = jax.device_put
        self._of = weights
        here = jax.sharding.SingleDeviceSharding(device)
        avals_here = [
            {
                one: jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=here)
                for one, aval in avals.items()
            }
            for avals in (loaded.weights, loaded.inputs)
        ]
        try:
            self._weights = {one: self._placed(tensor) for one, tensor in loaded.tensors()}
            lowered = jax.jit(loaded.exported.call).lower(*avals_here)
            self._compiled: Any = _compiled(lowered, _options(device, optimization), cache)
        except ArtifactError:
            raise
        except Exception as exc:
            raise ExecutionError(
                f"{component.name} in {path} was to be compiled for {name}; XLA said: "
                f"{said(exc)}. Export the model again, or run it on another backend."
            ) from exc

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once; numpy arrays out, float32 where they are floating-point.

        Raises:
            InputError: the arrays do not fit the signature, or the sizes of the file.
            ExecutionError: XLA failed, or the program was closed.
        """
        spec = self._component.spec
        if self._compiled is None:
            raise ExecutionError(f"{spec.name} was called after close(). Prepare it again.")
        dims = spec.signature.bind(inputs, component=spec.name)
        self._component.check_dims(dims)
        arrays = {name: _fitted(inputs[name], self._dtypes[name], name) for name in inputs}
        try:
            outputs = self._compiled(self._weights, self._put(arrays, self._device))
            return {name: np.array(outputs[name]) for name in spec.signature.output_names}
        except RuntimeError as exc:
            raise ExecutionError(
                f"{spec.name} was to run on {self._name}; XLA said: {said(exc)}. Try a smaller "
                "size or another device."
            ) from exc

    def _placed(self, tensor: StoredTensor) -> Any:
        """A weight on the device."""
        dtype = np.dtype(import_jax().numpy.dtype(tensor.dtype))
        return self._put(tensor.array.view(dtype), self._device)

    def rebind(self, component: Component) -> bool:
        """Put the weights on the device that adapters change, or changed; the others are there."""
        if self._compiled is None or component.unchanged != self._component.unchanged:
            return False
        changes = [one.changes for one in (self._component, component) if one.changes is not None]
        touched = self._of(component).some({name for one in changes for name in one.names})
        if touched is None:
            return False
        for name, tensor in touched.items():
            self._weights[name] = self._placed(tensor)
        self._component = component
        return True

    def report(self) -> ExecutionReport:
        """The device that it was compiled for, and the precision and casts of the program."""
        jax = import_jax()

        if self._compiled is None:
            raise ExecutionError(f"{self._component.name} was closed; it has nothing to report.")
        return ExecutionReport(
            device=self._name,
            precision=_precision(self._notes, self._component.precision),
            engine=f"jax {jax.__version__}",
            details={"platform": self._device.client.platform_version, **self._notes},
        )

    def close(self) -> None:
        """Release the executable and the weights."""
        self._compiled = None
        self._weights = {}


def _check_borders(
    component: Component, inputs: Mapping[str, Any], outputs: Mapping[str, Any], path: Path
) -> None:
    """Check that a program's inputs and outputs match the component's signature and sizes."""
    signature = component.signature
    for kind, specs, found in (
        ("takes", signature.inputs, inputs),
        ("gives", signature.outputs, outputs),
    ):
        wanted = {spec.name: spec.shape for spec in specs}
        shapes = {name: tuple(aval.shape) for name, aval in found.items()}
        if shapes.keys() != wanted.keys() or (kind == "takes" and shapes != wanted):
            raise ArtifactError(
                f"{path} {kind} {_written(shapes)}; {component.name} was to have "
                f"{_written(wanted)}. The file was made for another component or size. Export the "
                "model again."
            )


def compiled_in(store: ArtifactStore) -> Path | None:
    """The store's folder for XLA's compiled programs; ``None`` if it cannot be written."""
    return store.shared(_COMPILED)


def _compiled(lowered: Any, options: Mapping[str, Any], cache: Path | None) -> Any:
    """Compile, or load from XLA's cache; damaged cache files are removed first."""
    jax = import_jax()
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    if cache is None or jax.config.jax_compilation_cache_dir is not None:  # the process' own
        return lowered.compile(compiler_options=options)
    kept = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    with settings(**kept), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*persistent compilation cache")
        reset_cache()
        try:
            return lowered.compile(compiler_options=options)
        except UserWarning:
            for file in cache.iterdir():
                file.unlink(missing_ok=True)
            return lowered.compile(compiler_options=options)
        finally:
            reset_cache()


def _precision(notes: Mapping[str, Any], asked: str) -> str:
    """The precision of matrix products: that of the weights, or what they are cast to."""
    if notes.get("auto_cast", "none") != "none":
        return CAST_TYPES.get(notes.get("auto_cast_type", ""), asked)
    return str(notes.get("precision", asked))


def _options(device: Any, optimization: str | None) -> dict[str, Any]:
    """As the program is written: XLA may otherwise leave out a rounding, and reorder sums."""
    options: dict[str, Any] = {"xla_allow_excess_precision": False}
    if device.platform == "cpu":
        options["xla_cpu_enable_fast_math"] = False
    if optimization is not None:
        options["xla_backend_optimization_level"] = int(optimization)
    return options


def _fitted(value: Array, dtype: "np.dtype[Any]", name: str) -> npt.NDArray[Any]:
    """An array as the program takes it; a number that would become another is refused."""
    array = to_numpy(value)
    if dtype.kind == "i":
        if array.dtype.kind not in "iub":
            raise InputError(
                f"{name} takes whole numbers; got {array.dtype}, whose fractions would be cut off."
            )
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise InputError(f"{name} takes whole numbers of {limits.bits} bits; got a larger one.")
    return np.asarray(array, dtype=dtype)


def _written(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
