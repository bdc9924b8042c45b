"""``accelerate``: a Diffusers pipeline, or one module, with its calls run by a backend."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from perfuse.contract.target import Placement
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.sources.store import ArtifactStore, atomic_folder, locked

if TYPE_CHECKING:
    from torch import nn

    from perfuse.bridge.stand_in import StandIn, Tally

__all__ = [
    "RECORD",
    "Acceleration",
    "EntryReport",
    "accelerate",
    "diffusers_pipeline",
    "load_accelerated",
    "loaded",
    "watch",
]

_T = TypeVar("_T")
#: What ``save_perfuse`` writes beside the pipeline.
_GRAPHS, RECORD = "perfuse-graphs", "perfuse-accelerated.json"
#: What Diffusers writes for a modular pipeline in place of ``model_index.json``.
_MODULAR = "modular_model_index.json"
#: The methods of modules that pipelines call.
_ENTRIES = ("forward", "encode", "decode", "get_text_features", "get_image_features")


@dataclass(frozen=True, kw_only=True)
class EntryReport:
    """What one method of a component did so far."""

    #: ``unet``; ``vae_decode`` for another method than ``forward``.
    name: str
    #: Its class.
    class_name: str
    #: Where it was asked to run.
    target: str
    #: Calls, and seconds in them, that ran there.
    calls: int
    seconds: float
    #: The same for calls that stayed on torch.
    torch_calls: int
    torch_seconds: float
    #: How many graphs were made, and how many of them of perfuse's own network, which take every size.
    graphs: int
    own_graphs: int
    #: The largest difference of a graph's first answer from PyTorch's, relative.
    difference: float
    #: Why calls stayed on torch.
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        where = f"{self.target}: {self.calls} calls, {self.seconds:.2f} s, {self.graphs} graphs"
        if self.own_graphs:
            where += ", perfuse's own" if self.own_graphs == self.graphs else ", some perfuse's own"
        text = f"{self.name} ({self.class_name}): "
        if self.calls:
            text += f"{where}, within {self.difference:.1e}"
        if self.torch_calls:
            text += f"{'; ' if self.calls else ''}torch: {self.torch_calls} calls, "
            text += f"{self.torch_seconds:.2f} s, because {'; '.join(self.reasons)}"
        return text


class Acceleration:
    """What ``pipe.perfuse`` is: how a pipeline's components are run, and what they did."""

    #: It is an attribute of a module, too, and no part of what that computes.
    stands_in = True

    def __init__(
        self, placement: Placement, precision: str | None, store: ArtifactStore, *, strict: bool
    ) -> None:
        self.placement, self.precision, self.strict = placement, precision, strict
        self.store = store
        self._stand_ins: dict[str, list[StandIn]] = {}

    def put(self, name: str, module: "nn.Module") -> None:
        """Run a component's calls on its target. One that is to run on torch is left as it is."""
        from perfuse.bridge.stand_in import Settings, StandIn

        self.take(name)
        settings = Settings(
            name=name,
            target=self.placement[name],
            precision=self.precision,
            store=self.store,
            strict=self.strict,
        )
        if not host().backends()[settings.target.backend].formats:
            return  # PyTorch itself
        made = []
        for entry in _ENTRIES:
            if callable(getattr(type(module), entry, None)):
                stand_in = vars(module).get(entry)  # of another pipeline that has this module
                if not isinstance(stand_in, StandIn) or stand_in.settings != settings:
                    stand_in = StandIn(module, entry, settings)
                    setattr(module, entry, stand_in)
                made.append(stand_in)
        self._stand_ins[name] = made

    def take(self, name: str) -> None:
        """Give a component's calls back to torch, and release its programs."""
        for stand_in in self._stand_ins.pop(name, ()):
            if vars(stand_in.module).get(stand_in.entry) is stand_in:
                delattr(stand_in.module, stand_in.entry)
            stand_in.forget()

    def begin(self) -> None:
        """A run of the pipeline begins: read all weights again before they are relied on.

        Another pipeline that has the same module may have put its own stand-in there, or taken it away.
        """
        for stand_in in self._all():
            stand_in.attach()
            stand_in.suspect = True

    def restore(self) -> None:
        """Give every component's calls back to torch."""
        for name in list(self._stand_ins):
            self.take(name)

    def report(self) -> tuple[EntryReport, ...]:
        """What ran where so far: one row for every method that was called."""
        return tuple(_row(one) for one in self._all() if _used(one.tally))

    def save(self, folder: Path) -> None:
        """Write the graphs that were made so far, and how they are run, into a folder."""
        store = ArtifactStore(folder / _GRAPHS)
        store.root.mkdir(parents=True, exist_ok=True)
        for stand_in in self._all():
            stand_in.copy_graphs(store)
        record = {"backend": str(self.placement), "precision": self.precision}
        (folder / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")

    def _all(self) -> "Iterator[StandIn]":
        for stand_ins in self._stand_ins.values():
            yield from stand_ins

    def __str__(self) -> str:
        return "\n".join(map(str, self.report())) or "Nothing ran so far."

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _used(tally: "Tally") -> bool:
    return bool(tally.calls or tally.torch_calls)


def _row(one: "StandIn") -> EntryReport:
    tally = one.tally
    return EntryReport(
        name=one.name,
        class_name=type(one.module).__name__,
        target=str(one.target),
        calls=tally.calls,
        seconds=tally.seconds,
        torch_calls=tally.torch_calls,
        torch_seconds=tally.torch_seconds,
        graphs=tally.graphs,
        own_graphs=tally.own_graphs,
        difference=tally.difference,
        reasons=tuple(tally.reasons),
    )


def accelerate(
    pipe: _T,
    backend: str,
    *,
    precision: str | None = None,
    store: ArtifactStore | None = None,
    strict: bool = False,
) -> _T:
    """Run the modules of a Diffusers pipeline on a backend. The pipeline is changed, and returned.

    It stays what it is: the same class, the same call, the same schedulers, callbacks and adapters.
    What a call of a module computes comes from a program of the backend, made at the first call of its
    kind. What cannot be captured or lowered stays on torch; ``pipe.perfuse.report()`` says which, and
    why. A module that is changed later (a LoRA loaded, another attention processor, weights written to)
    is noticed at its next call, and captured again.

    Args:
        pipe: A ``diffusers.DiffusionPipeline``, from the library, the community or your own code; or
            one ``torch.nn.Module``.
        backend: ``"openvino"``, ``"unet=openvino:GPU,vae=torch"``: a target for everything, or for one
            component by its name in the pipeline; others stay on torch.
        precision: ``"float32"``, ``"float16"`` or ``"bfloat16"``; by default that of the weights.
        store: The cache for exports; the user's by default.
        strict: Make it an error if a call cannot run on the backend.

    Returns:
        ``pipe``. It has an attribute ``perfuse``: ``report()`` and ``restore()``.

    Raises:
        InputError: ``pipe`` is neither a pipeline nor a module, or a component that was named is none.
        BackendError: a backend is unknown, or its engine is not installed.
        UnsupportedError: raised by later calls if ``strict``.
    """
    placement = Placement.parse(backend, default="torch")
    modules = _modules(pipe)
    unknown = [name for name in placement.components if name not in (modules | _missing(pipe))]
    if unknown:
        raise InputError(
            f"A target was given for {', '.join(unknown)}; {type(pipe).__name__} has the modules "
            f"{', '.join(modules)}. Give it for one of these."
        )
    for target in (*placement.components.values(), placement.default):
        host().backend(target.backend)  # raises if its engine is not installed
    former = getattr(pipe, "perfuse", None)
    if isinstance(former, Acceleration):
        former.restore()
    done = Acceleration(
        placement, precision, ArtifactStore.default() if store is None else store, strict=strict
    )
    for name, module in modules.items():
        done.put(name, module)
    return watch(pipe, done)


def watch(pipe: _T, acceleration: Acceleration) -> _T:
    """Notice when components of an accelerated pipeline are replaced, and let it say what ran."""
    if not _is_module(pipe):
        pipe.__class__ = _watching(type(pipe))
    object.__setattr__(pipe, "perfuse", acceleration)
    return pipe


def load_accelerated(
    folder: "str | os.PathLike[str]",
    *,
    backend: str | None = None,
    pipeline: Any = None,
    strict: bool = False,
    **components: Any,
) -> Any:
    """Open what ``pipe.save_perfuse(folder)`` wrote. Needs Diffusers, and captures nothing anew.

    Args:
        folder: The folder.
        backend: Other targets than those that it was saved with.
        pipeline: The pipeline's class, where it is not Diffusers': ``MyPipeline``.
        strict: As for ``accelerate``.
        **components: Components instead of those that are there, as for Diffusers' ``from_pretrained``.

    Raises:
        InputError: the folder is not one that ``save_perfuse`` wrote, or Diffusers is not installed.
        BackendError: a backend is unknown, or its engine is not installed.
    """
    opening = None if pipeline is None else pipeline.from_pretrained
    return loaded(Path(folder), opening, backend=backend, strict=strict, **components)


def loaded(
    path: Path,
    opening: Callable[..., Any] | None,
    *,
    backend: str | None,
    strict: bool,
    **components: Any,
) -> Any:
    """``load_accelerated``, with the ``from_pretrained`` to call in place of its class."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        saved, precision = str(record["backend"]), record["precision"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(
            f"{path} was to be opened as an accelerated pipeline; its {RECORD} cannot be read: {exc}. "
            "Name a folder that pipe.save_perfuse(folder) wrote."
        ) from exc
    pipe = (opening or _opening(path))(path, use_safetensors=True, **components)
    store = ArtifactStore(path.absolute() / _GRAPHS)
    return accelerate(
        pipe,
        saved if backend is None else backend,
        precision=precision,
        store=store,
        strict=strict,
    )


def _opening(path: Path) -> Callable[..., Any]:
    """What opens a folder by Diffusers; a modular pipeline has its components at once."""
    if not (path / _MODULAR).exists():
        opening: Callable[..., Any] = diffusers_pipeline().from_pretrained
        return opening

    def modular(path: Path, *, use_safetensors: bool, **components: Any) -> Any:
        from diffusers import ModularPipeline

        pipe = ModularPipeline.from_pretrained(os.fspath(path))
        pipe.update_components(**components)
        pipe.load_components(
            [name for name in pipe.null_component_names if (path / name).is_dir()],
            pretrained_model_name_or_path=os.fspath(path),
            use_safetensors=use_safetensors,
        )
        return pipe

    return modular


def diffusers_pipeline() -> Any:
    """Diffusers' ``DiffusionPipeline``.

    Raises:
        InputError: Diffusers is not installed.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError as exc:
        raise InputError(
            "A pipeline of Diffusers was to be opened, which is not installed. Install it: "
            "pip install diffusers transformers."
        ) from exc
    return DiffusionPipeline


def _is_module(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)


def _modules(pipe: Any) -> "dict[str, nn.Module]":
    if _is_module(pipe):
        return {"module": pipe}
    components = getattr(pipe, "components", None)
    if not isinstance(components, dict):
        raise InputError(
            f"A {type(pipe).__name__} was to be accelerated; it is neither a Diffusers pipeline nor "
            "a torch.nn.Module. Give one of these."
        )
    return {name: one for name, one in components.items() if _is_module(one)}


def _missing(pipe: Any) -> dict[str, None]:
    """The components that a pipeline does not have yet: a modular one loads them when it is asked to."""
    components = {} if _is_module(pipe) else pipe.components
    return {name: None for name, one in components.items() if one is None}


class _Watched:
    """The base that notices when a component of an accelerated pipeline is replaced."""

    perfuse: Acceleration

    def save_perfuse(self, folder: "str | os.PathLike[str]") -> None:
        """Write the pipeline with the graphs that were made so far.

        ``perfuse.load_accelerated`` opens it where Diffusers and the engine are, and captures nothing.

        Args:
            folder: A new or an empty folder.

        Raises:
            InputError: the folder holds something, or is a file.
        """
        final = Path(folder).absolute()
        with locked(final), atomic_folder(final) as partial:
            self.save_pretrained(os.fspath(partial))  # type: ignore[attr-defined]
            _point_to(final, partial)
            self.perfuse.save(partial)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "perfuse" in vars(self) and _is_module(value):
            self.perfuse.put(name, value)
        elif "perfuse" in vars(self) and value is None:
            self.perfuse.take(name)


def _point_to(final: Path, partial: Path) -> None:
    """Let a modular pipeline's index say where its components will be; it holds whole paths."""
    index = partial / _MODULAR
    if index.exists():
        was, now = (json.dumps(os.fspath(path))[1:-1] for path in (partial, final))
        index.write_text(index.read_text(encoding="utf-8").replace(was, now), encoding="utf-8")


_WATCHING: dict[type, type] = {}


def _watching(kind: type) -> type:
    """A subclass of a pipeline's class, of the same name, that notices replaced components."""
    if issubclass(kind, _Watched):
        return kind
    if kind not in _WATCHING:

        @functools.wraps(kind.__call__)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.perfuse.begin()
            return kind.__call__(self, *args, **kwargs)

        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__call__": call}
        _WATCHING[kind] = type(kind.__name__, (_Watched, kind), names)
    return _WATCHING[kind]
