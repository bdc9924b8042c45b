"""ONNX Runtime as a backend."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from perfuse.backend import (
    SCHEMES,
    Backend,
    Component,
    Device,
    Options,
    Program,
    Request,
    StoredTensor,
    Support,
    SupportLevel,
    Target,
)
from perfuse.errors import ArtifactError, DeviceNotFoundError, ExecutionError, UnsupportedError
from perfuse.sources import ArtifactStore, exported_weights
from perfuse_onnxruntime import providers
from perfuse_onnxruntime.binding import bind
from perfuse_onnxruntime.changing import with_changes
from perfuse_onnxruntime.engine import import_onnxruntime
from perfuse_onnxruntime.external import check_external
from perfuse_onnxruntime.pieces import OnnxPieces
from perfuse_onnxruntime.program import OnnxProgram

__all__ = ["OnnxRuntime"]

_FORMAT = "onnx"
_CPU = "CPUExecutionProvider"
#: Providers that are kernels of ONNX Runtime's own. Others take the graph to a compiler, which may
#: look for the weights in a file.
_OWN = (
    _CPU,
    "CUDAExecutionProvider",
    "ROCMExecutionProvider",
    "DmlExecutionProvider",
    "WebGpuExecutionProvider",
)
#: From this many bytes of weights on, what lies between is large, too.
_LARGE = 250_000_000
#: Memory while a checkpoint's weights are loaded, over their size, by precision: the engine copies them,
#: turns them around and packs them, in float32.
_FROM_CHECKPOINT = {"float32": 3.0, "float16": 4.5}
#: The same of a file, which is let go while weights are packed; halves are widened, all before.
_FROM_FILE = {"float32": 1.0, "float16": 4.0}
#: The same of a piece, whose weights are read where they lie. Halves are widened one after the other, for
#: which the smallest piece, a single matrix, needs as much again.
_IN_PIECES = {"float32": 1.0, "float16": 2.0}
#: Where the engine looks for the files that a model in memory names.
_BESIDE = "session.model_external_initializers_file_folder_path"
_ROUNDED = (
    "the CPU provider has no float16 convolutions: it computes in float32 and rounds what lies "
    "between, so float16 halves the file and costs time"
)


class OnnxRuntime(Backend):
    """Runs ONNX files, its own exports and other exporters', on the providers of the build."""

    name: ClassVar[str] = "onnxruntime"
    storages: ClassVar[tuple[str, ...]] = tuple(SCHEMES)
    options: ClassVar[Options] = {
        "threads": range(1025),
        "cpu_fallback": ("true", "false"),
        "prepack": ("true", "false"),
    }

    def devices(self) -> Sequence[Device]:
        """One device a provider; the CPU is the first."""
        return providers.devices(import_onnxruntime().get_available_providers())

    def supports(self, request: Request) -> Support:
        """Every component in float32; in float16 with the device's restrictions."""
        device = (request.device or "cpu").lower()
        if request.precision == "float32":
            return Support(level=SupportLevel.FULL)
        if request.precision == "float16":
            if device == "cpu":
                return Support(level=SupportLevel.CONDITIONAL, reason=_ROUNDED)
            return Support(level=SupportLevel.FULL)
        return Support(
            level=SupportLevel.UNSUPPORTED,
            reason=f"ONNX Runtime has no {request.precision} kernels for convolutions; "
            "use float16 or float32",
        )

    def weights(self, component: Component) -> Mapping[str, tuple[int, ...]] | None:
        """Those of a folder that has a weight map, as perfuse writes one, and no integers."""
        return exported_weights(component, _FORMAT)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Load the component's ONNX file, or a checkpoint's weights into its graph.

        The graph of a checkpoint comes from the store, where it is kept for every checkpoint of the
        same config. Its weights stay in the checkpoint's mapped files.

        Args:
            component: What to run.
            target: Options: ``threads``, 0 for the engine's choice; ``cpu_fallback=false``, to fail where another
                device would leave nodes to the CPU; ``prepack=false``, to have a CPU read the
                weights where their file is mapped: slower, with no copy of them in its own layout.
            store: Where graphs are, and exports of what has no graph of its own.

        Raises:
            InputError: an option is unknown or malformed.
            DeviceNotFoundError: the installed build does not have the device.
            UnsupportedError: bfloat16, or an operator that the provider lacks.
            ExportError: the component could not be lowered.
            ArtifactError: the file is missing, damaged, or of another component.
        """
        onnxruntime = import_onnxruntime()

        switches = self.switches(target)
        threads = int(switches["threads"]) if "threads" in switches else _threads()
        cpu_fallback = switches.get("cpu_fallback") != "false"
        device = target.device if target.device is not None else "cpu"
        provider, options = providers.resolve(device, onnxruntime.get_available_providers())
        self.check(component, target)
        from perfuse.run import bound, exported

        graph = bound(component, _FORMAT, store) if provider in _OWN else None
        path = exported(component, _FORMAT, store) if graph is None else graph.path
        settings = _settings(provider, threads, cpu_fallback=cpu_fallback)
        if component.storage:
            # Otherwise it rounds what such a weight is multiplied with to eight bits, too.
            settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if provider == _CPU and switches.get("prepack") == "false":
            _read_in_place(settings)
        size = _weights_size(path) if graph is None else graph.weights.size
        if provider == _CPU and size >= _LARGE:
            # From the second call on the engine would keep what lies between twice: as the first call
            # took it, piece by piece, and as one block.
            settings.enable_mem_pattern = False
        wanted = [(provider, options)]
        if cpu_fallback and provider != _CPU:
            wanted.append((_CPU, {}))
        model: str | bytes = str(path)
        weights: Sequence[StoredTensor] = ()
        if graph is not None:
            constants, tensors = graph.weights.constants, graph.tensors
            model, weights = bind(path.read_bytes(), constants, tensors, settings)
        else:
            _check(path)
            if component.build is None and component.changes is not None:
                model, weights = with_changes(path, component, settings)
        session = _session(path, model, device, wanted, settings)
        return OnnxProgram(session, component, path, device, weights)

    def footprint(
        self, component: Component, target: Target, *, in_pieces: bool = False
    ) -> float | None:
        """Of a CPU: pieces are read where they are mapped; what is whole is packed, and widened before."""
        own = target.device is None or target.device.lower() == "cpu"
        if in_pieces:
            return _IN_PIECES.get(component.precision) if own and not component.storage else None
        if not own or (component.build is None and component.storage):
            return 1.0
        known = _FROM_FILE if component.build is None else _FROM_CHECKPOINT
        return known.get(component.precision, 1.0)

    def prepare_in_pieces(
        self, component: Component, target: Target, store: ArtifactStore, room: int
    ) -> Program:
        """Cut the component's graph into pieces: each is a session while its turn lasts.

        The weights of a piece are read where their file is mapped, as with ``prepack=false``.

        Raises:
            UnsupportedError: the file is another tool's.
        """
        switches = self.switches(target)
        threads = int(switches["threads"]) if "threads" in switches else _threads()
        self.check(component, target)
        from perfuse.run import apart, exported

        graph = apart(component, _FORMAT, store)
        path = exported(component, _FORMAT, store) if graph is None else graph.path
        if graph is None:
            _check(path)

        def settings() -> Any:
            made = _settings(_CPU, threads, cpu_fallback=True)
            _read_in_place(made)
            # What a kept piece holds between its turns is its weights alone.
            made.enable_cpu_mem_arena = made.enable_mem_pattern = False
            # A weight is widened when it is used; by default all of a piece would be before its start.
            made.execution_order = import_onnxruntime().ExecutionOrder.PRIORITY_BASED
            made.add_session_config_entry(_BESIDE, str(path.parent))
            return made

        def session(model: bytes, made: Any) -> Any:
            # Weights that were widened or turned around beforehand would be there twice.
            return _session(path, model, "cpu", [(_CPU, {})], made, without=["ConstantFolding"])

        return OnnxPieces(
            component,
            path,
            graph,
            room=room,
            device="cpu",
            settings=settings,
            session=session,
        )


def _check(path: Path) -> None:
    """See that a file is there, with those that it takes its weights from.

    Raises:
        ArtifactError: one is missing, or lies outside of the folder.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} was to be loaded; it is not there. Export the model again.")
    check_external(path)


def _session(
    path: Path,
    model: str | bytes,
    device: str,
    wanted: list[tuple[str, dict[str, Any]]],
    settings: Any,
    *,
    without: Sequence[str] = (),
) -> Any:
    """A session on the first of the providers wanted, the next for the nodes it cannot take.

    Args:
        path: The file, for errors.
        model: The same as text, or the model itself.
        device: The device that was asked for.
        wanted: Providers with their options.
        settings: The ``onnxruntime.SessionOptions``.
        without: The names of optimisations that the engine is to leave out.

    Raises:
        ArtifactError: the file is damaged.
        DeviceNotFoundError: the provider's own libraries, or the device, are not there.
        UnsupportedError: there is no kernel for an operator.
        ExecutionError: the provider failed to compile the graph.
    """
    onnxruntime = import_onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as engine

    try:
        session = onnxruntime.InferenceSession(
            model,
            settings,
            providers=wanted,
            enable_fallback=False,
            disabled_optimizers=list(without),
        )
    except engine.NotImplemented as exc:
        raise UnsupportedError(
            f"{path} was to run on onnxruntime:{device}; {_said(exc)} Use another device or "
            "precision."
        ) from exc
    except (engine.EPFail, engine.RuntimeException, MemoryError) as exc:
        raise ExecutionError(
            f"{path} was to be made ready on onnxruntime:{device}; {_said(exc)} Try "
            "onnxruntime:cpu, or float16 if memory ran out."
        ) from exc
    except Exception as exc:  # every status of the engine is a class of its own
        raise ArtifactError(
            f"{path} was to be loaded; {_said(exc)} The file, or the weights beside it, are "
            "missing, damaged or of another version. Export the model again."
        ) from exc
    provider = wanted[0][0]
    if provider not in session.get_providers():
        raise DeviceNotFoundError(
            f"onnxruntime:{device} was asked for; {provider} could not start and only "
            f"{', '.join(session.get_providers())} is left. Install the libraries that it needs "
            "(for CUDA: the CUDA and cuDNN versions that onnxruntime-gpu names)."
        )
    return session


def _settings(provider: str, threads: int, *, cpu_fallback: bool) -> Any:
    onnxruntime = import_onnxruntime()

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an exception, with the same words
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if provider == "DmlExecutionProvider":  # DirectML refuses memory patterns
        options.enable_mem_pattern = False
    if provider != _CPU:
        if not cpu_fallback:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # Lets the report say which nodes went to the CPU; engines before 1.24 ignore it.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _weights_size(path: Path) -> int:
    weights = path.with_name(f"{path.name}_data")
    return weights.stat().st_size if weights.is_file() else 0


def _read_in_place(settings: Any) -> None:
    """Have weights read from the mapped file.

    Without this the engine keeps a copy of every matrix, packed for its kernels, and one of every
    convolution's, in blocks of channels.
    """
    onnxruntime = import_onnxruntime()

    settings.add_session_config_entry("session.disable_prepacking", "1")
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


def _threads() -> int:
    """``OMP_NUM_THREADS``, or the cores this process may use; 0 leaves it to the engine."""
    configured = os.environ.get("OMP_NUM_THREADS", "")
    if configured.isdecimal():
        return int(configured)
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        # With all cores allowed the engine picks one thread a physical core, and pins it.
        return allowed if allowed != os.cpu_count() else 0
    return 0


def _said(exc: BaseException) -> str:
    """The engine's message on one line, as a sentence."""
    text = " ".join(str(exc).split()).removeprefix("[ONNXRuntimeError] : ")
    return f"ONNX Runtime said: {text.rstrip('.')}."
