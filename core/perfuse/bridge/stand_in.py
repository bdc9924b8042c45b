"""What stands in for a method of a module: it records calls, captures them and runs the programs."""

import functools
import hashlib
import json
import math
import shutil
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from perfuse.bridge.calls import Answer, Call, Shapes, Tree
from perfuse.bridge.guards import Guards
from perfuse.bridge.neutral import Neutral, as_array, neutral_of
from perfuse.bridge.recorded import Axes, component_of, precision_of
from perfuse.bridge.rewriting import rewritten
from perfuse.bridge.state import Weights, described, fingerprint, obstacle
from perfuse.capture import capture, hearing
from perfuse.contract.backend import Program
from perfuse.contract.component import Component
from perfuse.contract.target import Target
from perfuse.errors import ExecutionError, PerfuseError, UnsupportedError
from perfuse.plugins import host
from perfuse.run.export import exported
from perfuse.run.graphs import kept_graph
from perfuse.run.per_size import PerSize
from perfuse.run.preparing import prepare, runs
from perfuse.run.transforms import Chosen, find_transforms
from perfuse.sources.plain import from_plain, to_plain
from perfuse.sources.store import ArtifactStore

__all__ = ["Settings", "StandIn", "Tally"]

#: How far an engine's first answer may be from PyTorch's where no transform changes it.
_TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}
#: Graphs of one way to call a method that are kept; more sizes than this replace the oldest.
_KEPT = 8
_GUARDS = "guards.json"
_AXES = "axes"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a component's calls are run."""

    name: str
    target: Target
    #: ``None`` for that of the module's weights.
    precision: str | None
    store: ArtifactStore
    #: Whether a call that cannot run on the target is an error; otherwise it stays on torch.
    strict: bool
    #: The transforms to apply where they fit, as a user writes them.
    transforms: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Tally:
    """What was run where."""

    calls: int = 0
    seconds: float = 0.0
    torch_calls: int = 0
    torch_seconds: float = 0.0
    graphs: int = 0
    #: Those of perfuse's own network, which take every size.
    own_graphs: int = 0
    #: The largest difference of a graph's first answer from PyTorch's, relative to its largest number.
    difference: float = 0.0
    #: What was computed in float32 because the target has nothing for the weights' own precision.
    widened: str = ""
    #: The transforms that rewrote a graph.
    transforms: list[str] = field(default_factory=list)
    #: Why calls stayed on torch, in the order in which that was found.
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Graph:
    program: Program
    component: Component
    guards: Guards
    answer: Answer
    #: The precision of the module's weights, which PyTorch's answers have.
    own: str
    #: For a graph of perfuse's own network: how a call becomes its inputs.
    neutral: Neutral | None = None
    #: What rewrote it.
    transforms: tuple[Chosen, ...] = ()
    #: Whether it is for a size at which one for several sizes failed.
    alone: bool = False

    @property
    def several(self) -> bool:
        """Whether it is of the module's own code, and for more than one size."""
        return self.neutral is None and bool(self.component.signature.dims)

    @property
    def tolerance(self) -> float:
        """How far its first answer may be from PyTorch's, relative to the largest number in it."""
        if any(chosen.transform.is_approximate(chosen.options) for chosen in self.transforms):
            return math.inf
        return max(_TOLERANCE[self.own], _TOLERANCE[self.component.precision])


class StandIn:
    """Takes the place of a method of one module, as an attribute of the instance.

    The module keeps its class, config, dtype, processors and adapters; the original method is found
    on its class.
    """

    stands_in = True

    def __init__(self, module: nn.Module, entry: str, settings: Settings) -> None:
        self._module, self.entry, self._settings = module, entry, settings
        functools.update_wrapper(self, self.original)  # pipelines ask for its signature
        self.tally = Tally()
        self._transforms = find_transforms(settings.transforms)
        self._graphs: dict[Any, list[_Graph]] = {}
        self._first: dict[Any, Call] = {}
        #: For each way to call, the sizes that each axis of each tensor had.
        self._sizes: dict[Any, dict[tuple[int, int], set[int]]] = {}
        self._refused: dict[Any, str] = {}
        #: Numbers among the arguments that change from call to call, and became inputs; and those
        #: that a graph could not be made with.
        self._promoted: dict[Tree, frozenset[int]] = {}
        self._fixed: dict[Tree, frozenset[int]] = {}
        self._fingerprint = ""
        self._description = ""
        self._weights: Weights | None = None
        #: Whether all weights are read at the next call: a pipeline begins anew.
        self.suspect = False
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """The component's name; with the method where it is not ``forward``."""
        name = self._settings.name
        return name if self.entry == "forward" else f"{name}_{self.entry}"

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def module(self) -> nn.Module:
        return self._module

    def attach(self) -> None:
        """Stand in for the method, unless something of the user's own does."""
        if isinstance(vars(self._module).get(self.entry, self), StandIn):
            setattr(self._module, self.entry, self)

    @property
    def target(self) -> Target:
        return self._settings.target

    @property
    def original(self) -> MethodType:
        """The method that this stands in for, as its class has it now."""
        return MethodType(getattr(type(self._module), self.entry), self._module)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of the module is not accelerated: its method is its class's.
        copied = memo.get(id(self._module))
        assert copied is not None, "a stand-in is copied with its module"
        return MethodType(getattr(type(self._module), self.entry), copied)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.original(*args, **kwargs)
        with self._lock:
            return self._called(args, kwargs)

    def _called(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        try:
            self._look()
            call = self._call(args, kwargs)
            graph = self._graph(call)
            began = time.perf_counter()
            graph, tensors = self._run(graph, call)
        except PerfuseError as exc:
            if self._settings.strict:
                raise UnsupportedError(
                    f"{self.name} was to run on {self.target}; {exc}. Leave strict out to run it "
                    "on torch."
                ) from exc
            return self._on_torch(str(exc), args, kwargs)
        self.tally.calls += 1
        self.tally.seconds += time.perf_counter() - began
        return graph.answer.filled(tensors)

    def _run(self, graph: _Graph, call: Call) -> tuple[_Graph, list[Tensor]]:
        """Run a graph; where an engine fails at one of several sizes, one for this size alone.

        Raises:
            PerfuseError: it could not run, or what it returned is no number.
        """
        try:
            try:
                return graph, _finite(graph, call)
            except PerfuseError:
                if not graph.several:
                    raise
                graph = self._made(call, alone=True)
                return graph, _finite(graph, call)
        except PerfuseError as exc:
            self._refused[call.key, call.shapes] = str(exc)
            raise

    def _on_torch(self, reason: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if reason not in self.tally.reasons:
            self.tally.reasons.append(reason)
        began = time.perf_counter()
        answer = self.original(*args, **kwargs)
        self.tally.torch_calls += 1
        self.tally.torch_seconds += time.perf_counter() - began
        return answer

    def _call(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
        """The call taken apart; a number that changes from call to call becomes a tensor.

        Raises:
            UnsupportedError: it cannot run outside of torch.
        """
        call = Call.of(self.original, args, kwargs, promoted=self._promoted)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
            raise UnsupportedError("gradients were asked for")
        if any(torch.is_autocast_enabled(kind) for kind in {t.device.type for t in call.tensors}):
            raise UnsupportedError("torch.autocast was on")
        first = self._first.setdefault(call.structure, call.hollow)
        changed = first.changed_numbers(call) - self._fixed.get(call.tree, frozenset())
        if changed:
            self._promoted[call.tree] = self._promoted.get(call.tree, frozenset()) | changed
            call = Call.of(self.original, args, kwargs, promoted=self._promoted)
            self._first.setdefault(call.structure, call.hollow)
            try:
                self._graph(call)
            except PerfuseError:  # a graph needs their values: one for each
                self._fixed[call.tree] = self._promoted.pop(call.tree)
                call = Call.of(self.original, args, kwargs)
        return call

    def _graph(self, call: Call) -> _Graph:
        """The graph for a call: one that is there, or a new one.

        Raises:
            PerfuseError: there can be none.
        """
        refused = self._refused.get((call.key, call.shapes))
        if refused is not None:
            raise UnsupportedError(refused)
        for graph in sorted(self._graphs.get(call.key, ()), key=lambda graph: not graph.alone):
            if graph.guards.fit(call.shapes):
                return graph
        try:
            return self._made(call)
        except PerfuseError as exc:
            self._refused[call.key, call.shapes] = str(exc)
            raise

    def _look(self) -> None:
        """Forget every graph if the module is not what it was, and refuse one that cannot be run.

        What stands in the way may go again, as a guider's hooks do: until then the graphs are kept.
        """
        description = described(self._module)
        if description != self._description:
            in_the_way = obstacle(self._module)
            if in_the_way is not None:
                self.suspect = True
                raise UnsupportedError(in_the_way)
            self._description = description
            self._remember()
        elif self._weights is None or self._weights.changed(self._module, thorough=self.suspect):
            self._remember()
        self.suspect = False

    def _remember(self) -> None:
        """Begin anew with the module as it is."""
        self.forget()
        self._fingerprint = ""
        self._weights = Weights(self._module)

    def forget(self) -> None:
        """Release every graph."""
        for graphs in self._graphs.values():
            for graph in graphs:
                graph.program.close()
        self._graphs.clear()
        self._first.clear()
        self._sizes.clear()
        self._refused.clear()

    def copy_graphs(self, store: ArtifactStore) -> None:
        """Copy the files of every graph into another store, where they are found by their content."""
        for graph in (one for graphs in self._graphs.values() for one in graphs):
            target = self._settings.target
            for format in host().backends()[target.backend].formats[:1]:
                found = kept_graph(graph.component, format, self._settings.store)
                if found is None:
                    found = exported(graph.component, format, self._settings.store)
                self._copy(found, store)
            if graph.several:
                self._copy(_guards_folder(graph.component, (), self._settings.store), store)
                self._copy(self._settings.store.root / _AXES, store)

    def _copy(self, path: Path, store: ArtifactStore) -> None:
        own = self._settings.store.root
        name = path.relative_to(own).parts[0]
        shutil.copytree(own / name, store.root / name, dirs_exist_ok=True)

    def _made(self, call: Call, *, alone: bool = False) -> _Graph:
        """A new graph, whose first answer is compared with PyTorch's.

        The first graph is for one size; a second size opens the axes that differ, and a graph that
        took fewer sizes is released.

        Args:
            call: The call to make it for.
            alone: Whether it is for this size alone, of the module's own code.
        """
        try:
            if alone:
                raise UnsupportedError("a graph for one size was asked for")
            graph, difference = self._own(call)
        except PerfuseError:  # perfuse has none, or it does not fit: Diffusers' own network
            answer = self._answer(call)
            if not self._fingerprint:
                self._fingerprint = fingerprint(self._module)
            graph, difference = self._recorded(call, answer, alone)
        kept = self._graphs.setdefault(call.key, [])
        for one in list(kept):
            served = graph.guards.fit(_shapes(one)) and not one.alone
            if served or len(kept) >= _KEPT:
                kept.remove(one)
                one.program.close()
        kept.append(graph)
        self.tally.graphs += 1
        self.tally.own_graphs += graph.neutral is not None
        if self._settings.precision is None and graph.component.precision != graph.own:
            self.tally.widened = graph.own
        texts = [chosen.text for chosen in graph.transforms]
        self.tally.transforms += [text for text in texts if text not in self.tally.transforms]
        self.tally.difference = max(self.tally.difference, difference)
        return graph

    def _answer(self, call: Call) -> Answer:
        """PyTorch's answer to a call."""
        with torch.no_grad():
            args, kwargs = call.arguments(call.tensors)
            answer = Answer.of(self.original(*args, **kwargs))
        # Tables that the module makes at its first call are no change of the user's.
        self._description = described(self._module)
        return answer

    def _checked(self, graph: _Graph, call: Call, answer: Answer) -> tuple[_Graph, float]:
        """A graph whose first answer is PyTorch's, and how far it is from it.

        Raises:
            PerfuseError: it could not run.
            ExecutionError: its answer is another one.
        """
        try:
            difference = _difference(_run(graph, call), answer.tensors)
        except PerfuseError:
            graph.program.close()
            raise
        if not difference <= graph.tolerance:
            graph.program.close()
            raise ExecutionError(
                f"its first answer in {graph.component.precision} differed from PyTorch's by "
                f"{difference:.1e} of the largest number"
            )
        return graph, difference

    def _own(self, call: Call) -> tuple[_Graph, float]:
        """A graph of perfuse's own network, and how far its first answer is from PyTorch's.

        Where one program takes every size, a smaller call is compared: the whole one takes PyTorch as
        long as the first step.

        Raises:
            PerfuseError: it has none for the module, the call is not a usual one, or it could not run.
            ExecutionError: its answer is another one.
        """
        settings, own = self._settings, precision_of(self._module)
        found = neutral_of(
            self._module,
            self.entry,
            call,
            name=settings.name,
            precision=settings.precision or own,
        )
        if found is None or not found.guards.fit(call.shapes):
            raise UnsupportedError(f"perfuse has no network of its own for {self.name}")
        component, transforms = rewritten(self._fitting(found.component), self._transforms)
        program = prepare(component, settings.target, settings.store, usual={}, model=settings.name)
        tried = call if isinstance(program, PerSize) else found.smaller(call)
        answer = self._answer(tried)
        try:
            neutral = found.answering(answer)
        except UnsupportedError:
            program.close()
            raise
        graph = _Graph(
            program=program,
            component=component,
            guards=found.guards,
            answer=answer.hollow,
            own=own,
            neutral=neutral,
            transforms=transforms,
        )
        return self._checked(graph, tried, answer)

    def _recorded(self, call: Call, answer: Answer, alone: bool) -> tuple[_Graph, float]:
        """A graph of the module's own code, and how far its first answer is from PyTorch's.

        One for several sizes may be beyond capture or an engine where one for a size is not.

        Raises:
            PerfuseError: it could not be captured, lowered or run, or its answer is another one.
        """
        free = self._free(call)
        if free and not alone:
            try:
                found = self._checked(self._captured(call, answer, free), call, answer)
            except PerfuseError:
                pass
            else:
                self._note_axes(call, free)
                return found
        graph = replace(self._captured(call, answer, {}), alone=bool(free))
        return self._checked(graph, call, answer)

    def _free(self, call: Call) -> Axes:
        """The axes of a call's tensors that had another size before, each with a size to capture it.

        A size of 1 always has a graph of its own: what is broadcast is captured in another way.
        """
        seen = self._sizes.setdefault(call.structure, {})
        known = self._known_axes(call)
        free: Axes = {}
        for which, shape in enumerate(call.shapes):
            for axis, size in enumerate(shape):
                sizes = seen.setdefault((which, axis), set())
                sizes.add(size)
                if size > 1 and (len(sizes - {1}) > 1 or (which, axis) in known):
                    free[which, axis] = known.get((which, axis), size)
        return free

    def _axes_file(self, call: Call, store: ArtifactStore) -> Path | None:
        """Where the axes are written down that a graph was made with, for the next start."""
        folder = store.shared(_AXES)
        text = f"{self.name} {call.tree} {call.names} {call.leaves} {self._fingerprint}"
        return folder and folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"

    def _known_axes(self, call: Call) -> Axes:
        file = self._axes_file(call, self._settings.store)
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file is not None else []
            return {(int(which), int(axis)): int(size) for which, axis, size in found}
        except (OSError, ValueError, TypeError):
            return {}  # none yet; a damaged note costs a capture

    def _note_axes(self, call: Call, free: Axes) -> None:
        file = self._axes_file(call, self._settings.store)
        if file is not None and free != self._known_axes(call):
            partial = file.with_suffix(f".{uuid.uuid4().hex[:8]}")
            rows = [(which, axis, size) for (which, axis), size in sorted(free.items())]
            partial.write_text(json.dumps(rows), encoding="utf-8")
            partial.replace(file)

    def _captured(self, call: Call, answer: Answer, free: Axes) -> _Graph:
        settings, own = self._settings, precision_of(self._module)
        component = component_of(
            self._module,
            self.entry,
            call.hollow,
            answer,
            name=self.name,
            precision=settings.precision or own,
            free=free,
            fingerprint=self._fingerprint,
        )
        component, transforms = rewritten(self._fitting(component), self._transforms)
        heard: list[Guards] = []
        with torch.no_grad(), hearing(lambda program: heard.append(Guards.of(program))):
            program = prepare(
                component, settings.target, settings.store, usual={}, model=settings.name
            )
        guards = Guards.exactly(call.shapes)
        if component.signature.dims:
            guards = _remembered(component, heard, settings.store)
            if not guards.fit(call.shapes):
                program.close()
                raise UnsupportedError("its graph does not take the sizes that it was made for")
        return _Graph(
            program=program,
            component=component,
            guards=guards,
            answer=answer.hollow,
            own=own,
            transforms=transforms,
        )

    def _fitting(self, component: Component) -> Component:
        """A component in float32, where no precision was asked for and the target lacks the weights' own.

        Float32 holds every number of bfloat16 and float16.
        """
        settings = self._settings
        if settings.precision is not None or runs(component, settings.target):
            return component
        wider = replace(component, precision="float32")
        return wider if runs(wider, settings.target) else component


def _run(graph: _Graph, call: Call) -> list[Tensor]:
    """Run a graph with a call's tensors; the answer has the dtypes and devices that PyTorch's had."""
    if graph.neutral is not None:
        inputs, back = graph.neutral.asked(call)
        arrays = back(graph.program(**inputs))
    else:
        inputs = {n: as_array(one) for n, one in zip(call.names, call.tensors, strict=True)}
        given = graph.program(**inputs)
        arrays = [given[name] for name in graph.component.signature.output_names]
    answer = graph.answer
    return [
        torch.as_tensor(array).to(device, was.dtype)
        for array, was, device in zip(arrays, answer.tensors, answer.devices, strict=True)
    ]


def _finite(graph: _Graph, call: Call) -> list[Tensor]:
    """Run a graph.

    Raises:
        ExecutionError: it returned NaN or infinity.
    """
    tensors = _run(graph, call)
    if not all(bool(one.isfinite().all()) for one in tensors):
        raise ExecutionError("it returned NaN or infinity")
    return tensors


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest number expected.

    NaN if shapes differ, or something is not a number.
    """
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return float("nan")
        if one.numel():
            scale = max(float(other.abs().max()), 1e-6) if other.is_floating_point() else 1.0
            difference = float((one.double() - other.double()).abs().max()) / scale
            if math.isnan(difference):  # which is no larger than any number, for max
                return difference
            worst = max(worst, difference)
    return worst


def _shapes(graph: _Graph) -> Shapes:
    """The sizes of a graph for one size; none for one that takes several."""
    sizes = graph.guards.shapes
    if any(isinstance(size, str) for shape in sizes for size in shape):
        return ()
    return tuple(tuple(int(size) for size in shape) for shape in sizes)


def _guards_folder(component: Component, heard: Sequence[Guards], store: ArtifactStore) -> Path:
    """Where the guards of a graph are: those just heard, or those of an earlier capture."""
    key = {
        "component": to_plain(component.spec),
        "precision": component.precision,
        "fingerprint": component.fingerprint,
        "torch": torch.__version__,
    }

    def write(folder: Path) -> None:
        guards = heard[-1] if heard else Guards.of(capture(component))
        text = json.dumps(to_plain(guards), indent=1)
        (folder / _GUARDS).write_text(text, encoding="utf-8")

    return store.get_or_make(f"{component.name}-guards", key, write)


def _remembered(component: Component, heard: Sequence[Guards], store: ArtifactStore) -> Guards:
    """The guards of a graph.

    Raises:
        ExecutionError: those in the cache are damaged.
    """
    folder = _guards_folder(component, heard, store)
    try:
        data = json.loads((folder / _GUARDS).read_text(encoding="utf-8"))
        return from_plain(Guards, data)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ExecutionError(
            f"{folder} in the cache is damaged: {exc}. Run: perfuse cache clear"
        ) from exc
