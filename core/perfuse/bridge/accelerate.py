"""``accelerate``: a Diffusers pipeline, or one module, with its calls run by a backend."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from perfuse.contract.frozen import FrozenDict
from perfuse.contract.guider import Guider
from perfuse.contract.target import Placement, Target
from perfuse.errors import CheckpointError, InputError
from perfuse.plugins import host
from perfuse.run.options import check_scopes, options_for
from perfuse.run.transforms import find_transforms
from perfuse.sources.files import read_json
from perfuse.sources.model_index import MODULAR
from perfuse.sources.store import ArtifactStore, atomic_folder, locked

if TYPE_CHECKING:
    from torch import nn

    from perfuse.bridge.stand_in import StandIn, Tally

__all__ = [
    "RECORD",
    "Acceleration",
    "EntryReport",
    "Manner",
    "accelerate",
    "accelerate_like",
    "check_filled",
    "diffusers_pipeline",
    "fitting",
    "load_accelerated",
    "loaded",
]

_T = TypeVar("_T")
#: What ``save_perfuse`` writes beside the pipeline.
_GRAPHS, RECORD = "perfuse-graphs", "perfuse-accelerated.json"
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
    #: The precision of weights that were computed with in float32, because the target lacks it; else empty.
    widened: str
    #: The transforms that rewrote a graph.
    transforms: tuple[str, ...]
    #: Why calls stayed on torch.
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        where = f"{self.target}: {self.calls} calls, {self.seconds:.2f} s, {self.graphs} graphs"
        if self.own_graphs:
            where += ", perfuse's own" if self.own_graphs == self.graphs else ", some perfuse's own"
        text = f"{self.name} ({self.class_name}): "
        if self.calls:
            by = f", rewritten by {', '.join(self.transforms)}" if self.transforms else ""
            wide = f", in float32 for want of {self.widened}" if self.widened else ""
            text += f"{where}{wide}{by}, within {self.difference:.1e}"
        if self.torch_calls:
            text += f"{'; ' if self.calls else ''}torch: {self.torch_calls} calls, "
            text += f"{self.torch_seconds:.2f} s, because {'; '.join(self.reasons)}"
        elif self.reasons and not self.calls:
            text += f"torch, because {'; '.join(self.reasons)}"
        return text


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How the calls of accelerated modules are run, besides where; as ``accelerate`` takes it."""

    precision: str | None = None
    store: ArtifactStore = field(default_factory=ArtifactStore.default)
    strict: bool = False
    options: Mapping[str, str] = field(default_factory=FrozenDict)
    transforms: tuple[str, ...] = ()


class Acceleration:
    """What ``pipe.perfuse`` is: how a pipeline's components are run, and what they did."""

    #: It is an attribute of a module, too, and no part of what that computes.
    stands_in = True

    def __init__(self, placement: Placement, manner: Manner) -> None:
        self.placement, self.manner = placement, manner
        self._stand_ins: dict[str, list[StandIn]] = {}
        #: Modules with methods that are left to torch, because something else is in their place.
        self._left: dict[str, tuple[nn.Module, list[EntryReport]]] = {}

    def put(self, name: str, module: "nn.Module") -> None:
        """Run a component's calls on its target. One that is to run on torch is left as it is.

        Raises:
            InputError: an option does not fit the target; or the calls cannot be stood in for, and that
                is to be an error.
        """
        from perfuse.bridge.stand_in import Settings, StandIn

        self.take(name)
        manner, target = self.manner, self._equipped(name)
        settings = Settings(
            name=name,
            target=target,
            precision=manner.precision,
            store=manner.store,
            strict=manner.strict,
            transforms=manner.transforms,
        )
        if not host().backends()[target.backend].formats:
            return  # PyTorch itself
        made, left = [], []
        for entry in (one for one in _ENTRIES if callable(getattr(type(module), one, None))):
            if _is_replaced(module, entry):
                left.append(self._leave(name, module, entry, target))
                continue
            there = vars(module).get(entry)
            # That of another pipeline which has this module serves both.
            if not isinstance(there, StandIn) or there.settings != settings:
                there = StandIn(module, entry, settings)
                setattr(module, entry, there)
            made.append(there)
        self._stand_ins[name] = made
        if left:
            self._left[name] = (module, left)

    def _equipped(self, name: str) -> Target:
        """The target that a component runs on, with its options."""
        target = self.placement[name]
        used = {self.placement.default.backend} if not self.placement.components else set()
        used |= {one.backend for one in self.placement.components.values()}
        options = options_for(
            target,
            self.manner.options,
            host().backend(target.backend),
            len(used) > 1,
            component=name,
        )
        return replace(target, options=options)

    def _leave(self, name: str, module: "nn.Module", entry: str, target: Target) -> EntryReport:
        """The row of a method that the user, or a library, has replaced on the object."""
        from perfuse.bridge.state import obstacle

        found = obstacle(module)
        why = f"its {entry} was replaced on the object before; what that does is not captured"
        why = found if found is not None else why
        if self.manner.strict:
            raise InputError(f"{name} was to run on {target}; {why}. Leave strict out.")
        return EntryReport(
            name=name if entry == "forward" else f"{name}_{entry}",
            class_name=type(module).__name__,
            target=str(target),
            calls=0,
            seconds=0.0,
            torch_calls=0,
            torch_seconds=0.0,
            graphs=0,
            own_graphs=0,
            difference=0.0,
            widened="",
            transforms=(),
            reasons=(why,),
        )

    def take(self, name: str) -> None:
        """Give a component's calls back to torch, and release its programs."""
        self._left.pop(name, None)
        for stand_in in self._stand_ins.pop(name, ()):
            if vars(stand_in.module).get(stand_in.entry) is stand_in:
                delattr(stand_in.module, stand_in.entry)
            stand_in.forget()

    def begin(self) -> None:
        """A run of the pipeline begins: read all weights again before they are relied on.

        Another pipeline that has the same module may have put its own stand-in there, or taken it away.
        """
        for name, (module, _) in list(self._left.items()):
            if not any(_is_replaced(module, entry) for entry in _ENTRIES):  # what was there is gone
                self.put(name, module)
        for stand_in in self._all():
            stand_in.attach()
            stand_in.suspect = True

    def restore(self) -> None:
        """Give every component's calls back to torch."""
        for name in list(self._stand_ins):
            self.take(name)

    def report(self) -> tuple[EntryReport, ...]:
        """What ran where so far: one row for every method that was called, or never can be."""
        left = [row for _, rows in self._left.values() for row in rows]
        return (*(_row(one) for one in self._all() if _used(one.tally)), *left)

    def save(self, folder: Path) -> None:
        """Write the graphs that were made so far, and how they are run, into a folder."""
        store = ArtifactStore(folder / _GRAPHS)
        store.root.mkdir(parents=True, exist_ok=True)
        for stand_in in self._all():
            stand_in.copy_graphs(store)
        manner = self.manner
        record = {
            "backend": str(self.placement),
            "precision": manner.precision,
            "options": dict(manner.options),
            "transforms": list(manner.transforms),
        }
        (folder / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")

    def _all(self) -> "Iterator[StandIn]":
        for stand_ins in self._stand_ins.values():
            yield from stand_ins

    def __str__(self) -> str:
        rows = self.report()
        if not rows:
            return "Nothing ran so far."
        used = {text for row in rows for text in row.transforms}
        idle = [
            f"{text}: it rewrote nothing so far"
            for text in self.manner.transforms
            if text not in used
        ]
        return "\n".join([*map(str, rows), *idle])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _is_replaced(module: "nn.Module", entry: str) -> bool:
    """Whether the user, or a library, has put another method on the object than the class's."""
    from perfuse.bridge.stand_in import StandIn
    from perfuse.bridge.state import is_of_class

    there = vars(module).get(entry)
    usual = isinstance(there, StandIn) or is_of_class(module, entry, there)
    return there is not None and not usual


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
        widened=tally.widened,
        transforms=tuple(tally.transforms),
        reasons=tuple(tally.reasons),
    )


def accelerate(
    pipe: _T,
    backend: str,
    *,
    precision: str | None = None,
    store: ArtifactStore | None = None,
    strict: bool = False,
    options: Mapping[str, str] | None = None,
    transforms: Sequence[str] = (),
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
        precision: ``"float32"``, ``"float16"`` or ``"bfloat16"``; by default that of the weights, or
            float32 where the target has nothing for that.
        store: The cache for exports; the user's by default.
        strict: Make it an error if a call cannot run on the backend.
        options: Of the backend: ``{"threads": "4"}``; for one of several, or for one component, with its
            name before: ``"openvino.threads"``, ``"unet.threads"``.
        transforms: Rewritings of the graphs, ``"NAME:key=value"``, each where it fits: one for perfuse's
            own networks is for modules that run as these. ``pipe.perfuse`` says which they rewrote.

    Returns:
        ``pipe``. It has an attribute ``perfuse``: ``report()`` and ``restore()``.

    Raises:
        InputError: ``pipe`` is neither a pipeline nor a module, a component that was named is none, or
            an option or a transform is unknown.
        BackendError: a backend is unknown, or its engine is not installed.
        UnsupportedError: raised by later calls if ``strict``.
    """
    given = options if options is not None else {}
    texts = (transforms,) if isinstance(transforms, str) else tuple(transforms)
    find_transforms(texts)  # raises if there is none of a name
    manner = Manner(
        precision=precision,
        store=ArtifactStore.default() if store is None else store,
        strict=strict,
        options=FrozenDict(given),
        transforms=texts,
    )
    return _accelerated(pipe, Placement.parse(backend, default="torch"), manner)


def accelerate_like(former: Acceleration, pipe: _T, **changes: Any) -> _T:
    """Run a pipeline's modules as another's are; modules that both have share their graphs.

    Args:
        former: How the other's are run.
        pipe: The pipeline, or a module.
        **changes: What is to be different in the ``Manner``.
    """
    return _accelerated(pipe, fitting(former.placement, pipe), replace(former.manner, **changes))


def fitting(placement: Placement, pipe: Any) -> Placement:
    """A placement without the components that a pipeline, or a model by itself, does not have."""
    held = getattr(pipe, "components", None)
    names = held if isinstance(held, dict) else ()
    kept = {name: target for name, target in placement.components.items() if name in names}
    return Placement(default=placement.default, components=kept)


def _accelerated(pipe: _T, placement: Placement, manner: Manner) -> _T:
    modules = _modules(pipe)
    unknown = [name for name in placement.components if name not in (modules | _missing(pipe))]
    if unknown:
        raise InputError(
            f"A target was given for {', '.join(unknown)}; {type(pipe).__name__} has the modules "
            f"{', '.join(modules)}. Give it for one of these."
        )
    for target in (*placement.components.values(), placement.default):
        host().backend(target.backend)  # raises if its engine is not installed
    check_scopes(
        manner.options,
        backends={one.backend for one in (*placement.components.values(), placement.default)},
        components=modules,
    )
    former = getattr(pipe, "perfuse", None)
    if isinstance(former, Acceleration):
        former.restore()
    done = Acceleration(placement, manner)
    for name, module in modules.items():
        done.put(name, module)
    if not _is_module(pipe):
        pipe.__class__ = _watching(type(pipe))
    object.__setattr__(pipe, "perfuse", done)
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
        CheckpointError: a file lacks weights.
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
        record = read_json(path / RECORD, error=InputError)
        saved, precision = str(record["backend"]), record["precision"]
        options, transforms = dict(record["options"]), [str(one) for one in record["transforms"]]
    except (ValueError, KeyError, TypeError) as exc:
        raise InputError(
            f"{path} was to be opened as an accelerated pipeline; its {RECORD} cannot be read: {exc}. "
            "Name a folder that pipe.save_perfuse(folder) wrote."
        ) from exc
    pipe = (opening or _opening(path))(path, use_safetensors=True, **components)
    check_filled(pipe, str(path))
    store = ArtifactStore(path.absolute() / _GRAPHS)
    return accelerate(
        pipe,
        saved if backend is None else backend,
        precision=precision,
        store=store,
        strict=strict,
        options=options,
        transforms=transforms,
    )


def check_filled(pipe: Any, model: str) -> None:
    """Refuse a pipeline with weights without content: Diffusers leaves those so that a file lacks.

    Raises:
        CheckpointError: there are such weights.
    """
    for name, part in _modules(pipe).items():
        if empty := [one for one, tensor in part.state_dict().items() if tensor.is_meta]:
            raise CheckpointError(
                f"{model} was opened by Diffusers; {len(empty)} weights of its {name} are in no file, "
                f"{empty[0]} for one. Its config is of another model, or the checkpoint is "
                "incomplete: download or save it again."
            )


def _opening(path: Path) -> Callable[..., Any]:
    """What opens a folder by Diffusers; a modular pipeline has its components at once."""
    if not (path / MODULAR).exists():
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
            InputError: the folder holds something, or is a file; or a LoRA is loaded, whose weights
                Diffusers writes in a way that it does not read.
        """
        held = _modules(self).items()
        if adapted := [name for name, one in held if getattr(one, "peft_config", None)]:
            raise InputError(
                f"The pipeline was to be saved; a LoRA is loaded into its {', '.join(adapted)}, which "
                "Diffusers cannot save with the rest. Make it part of the weights, pipe.fuse_lora() and "
                "pipe.unload_lora_weights(), and draw once for the graphs; then save."
            )
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
    index = partial / MODULAR
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

        names: dict[str, Any] = {"__module__": kind.__module__, "__call__": call}
        names["__qualname__"] = kind.__qualname__
        if hasattr(kind, "update_components"):
            names["update_components"] = _updating(kind)
        _WATCHING[kind] = type(kind.__name__, (_Watched, kind), names)
    return _WATCHING[kind]


def _updating(kind: Any) -> Callable[..., None]:
    """A modular pipeline's ``update_components``, which takes perfuse's guiders as well."""
    from perfuse.bridge.guiders import of_diffusers

    @functools.wraps(kind.update_components)
    def update(self: Any, **components: Any) -> None:
        given = {
            name: of_diffusers(one) if isinstance(one, Guider) else one
            for name, one in components.items()
        }
        kind.update_components(self, **given)

    return update
