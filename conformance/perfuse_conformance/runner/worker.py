"""Runs a backend in a process of its own: takes requests, one line each, and answers them.

Nothing is judged here, because what runs here may be wrong in any way: it may write to the arrays
that it is given, print, end the process, or hang. Requests and answers are JSON; arrays are files. The
answers go through a descriptor of their own, so that what a plugin prints is only printed.
"""

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from perfuse import Source
from perfuse.arrays import is_torch
from perfuse.backend import PRECISIONS, Backend, Component, Program, Request, Support, Target
from perfuse.errors import InputError, PerfuseError, PluginError
from perfuse.plugins import host
from perfuse.run import DiffusionPipeline
from perfuse.sources import ArtifactStore
from perfuse_conformance.cases.bundle import Bundle
from perfuse_conformance.cases.draws import Draw, drawn_of, draws_of
from perfuse_conformance.cases.opening import open_pipeline, open_source
from perfuse_conformance.cases.probes import Arrays, made_for, probes_of, sizes_of
from perfuse_conformance.judge.metrics import rmse
from perfuse_conformance.reference.draws import run_draw
from perfuse_conformance.reference.loras import OwnLora, truth
from perfuse_conformance.reference.other_weights import with_other_weights
from perfuse_conformance.reference.quality import caption_verdicts
from perfuse_conformance.runner.layouts import LAYOUTS
from perfuse_conformance.runner.soak import drawn_inputs, interleaved, prepared_again, soak
from perfuse_conformance.runner.watch import GlobalState, TorchWatch

__all__ = ["main"]

#: Seconds that a request may continue after its caller has stopped waiting.
_GRACE = 5.0

#: How much a LoRA counts, in turns: on, off, and another scale.
_SCALES = (1.0, 0.0, 0.5)
#: How often each; and where a program takes no other weights, and is prepared anew each time.
_ROUNDS, _PREPARED = 10, 3

#: How an engine that is PyTorch begins its name.
_TORCH = ("torch", "pytorch")


class _WatchedStore(ArtifactStore):
    """The export cache, with a record of cache misses."""

    def get_or_make(
        self, label: str, key: Mapping[str, object], make: Callable[[Path], None]
    ) -> Path:
        def noted(folder: Path) -> None:
            self.__dict__.setdefault("made", []).append(label)
            make(folder)

        return super().get_or_make(label, key, noted)

    def taken(self) -> list[str]:
        """The labels of exports made since the last call of this method."""
        made: list[str] = self.__dict__.pop("made", [])
        return made


class Worker:
    """One backend and one model; a program is kept until a different one is needed."""

    def __init__(
        self, target: Target, model: str | None, out: Path, transforms: Sequence[str] = ()
    ) -> None:
        self.target = target
        self._model = model
        self._transforms = tuple(transforms)
        self._out = out
        self._bundles: dict[str, Bundle] = {}
        self._source: Source | None = None
        self._backend: Backend | None = None
        self._program: tuple[str, Program] | None = None
        self._pipes: dict[str, DiffusionPipeline] = {}
        self._store = _WatchedStore(ArtifactStore.default().root)
        #: For sizes that are asked for once.
        self._scratch = ArtifactStore(out.parent / "exports")
        self._prepared_s = 0.0

    def _opened(self, folder: str) -> Bundle:
        if folder not in self._bundles:
            self._bundles[folder] = Bundle.open(Path(folder))
        return self._bundles[folder]

    @property
    def source(self) -> Source:
        if self._source is None:
            self._source = open_source(self._model, self._transforms)
        return self._source

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            self._backend = host().backend(self.target.backend)
        return self._backend

    # Requests

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run a request. Errors are those of the backend or of perfuse."""
        do: Callable[..., dict[str, Any]] = getattr(self, f"do_{request['do']}")
        return do(**{name: value for name, value in request.items() if name != "do"})

    def do_devices(self) -> dict[str, Any]:
        """What the backend lists, as plain data."""
        return {
            "devices": [
                {
                    "name": device.name,
                    "description": device.description,
                    "precisions": list(device.precisions),
                }
                for device in self.backend.devices()
            ]
        }

    def do_supports(self) -> dict[str, Any]:
        """What ``supports`` answers for every component, precision and way of sizes."""
        answers: dict[str, dict[str, str]] = {}
        for component in self.source.spec.components.values():
            usual = sizes_of(self.source.spec, component)["usual"]
            for precision in PRECISIONS:
                for mode, static in (("static", usual), ("symbolic", {})):
                    support: object = self.backend.supports(
                        Request(
                            component=component,
                            precision=precision,
                            device=self.target.device,
                            static=static,
                        )
                    )
                    if not isinstance(support, Support):
                        raise PluginError(f"supports() answers {support!r}, which is no Support.")
                    answers[f"{component.name}/{precision}/{mode}"] = {
                        "level": support.level.value,
                        "reason": str(support.reason),
                    }
        return {"supports": answers}

    def do_prepare_odd(
        self, device: str | None, options: dict[str, str], precision: str
    ) -> dict[str, Any]:
        """Prepare the smallest component with something that no backend has."""
        name = next(iter(self.source.spec.components))
        component = self.source.component(name)
        if self.source.format is None:
            static = sizes_of(self.source.spec, component.spec)["usual"]
            component = replace(component, static=static)
        if precision != "float32":
            component = replace(component, precision=precision)
        target = Target(
            backend=self.target.backend,
            device=device if device is not None else self.target.device,
            options=options,
        )
        program = self.backend.prepare(component, target, self._store)
        return {"prepared": type(program).__name__}

    def do_prepare(self, bundle: str, probe: str, precision: str, static: bool) -> dict[str, Any]:
        """Make the program of a probe, if it is not there."""
        meta = self._opened(bundle).index["probes"][probe]
        name, dims = meta["component"], meta["dims"] if static else {}
        usual = sizes_of(self.source.spec, self.source.spec.components[name]).values()
        once = "trial" in meta and dims and dims not in usual
        self._ready(name, precision, dims, self._scratch if once else None)
        return {"prepare_s": self._prepared_s}

    def do_call(self, bundle: str, probe: str, precision: str, static: bool) -> dict[str, Any]:
        """Run the calls of a probe, and write their results to the file."""
        opened = self._opened(bundle)
        meta = opened.index["probes"][probe]
        name = meta["component"]
        program = self._ready(name, precision, meta["dims"] if static else {})
        calls = [opened.inputs(probe, i) for i in range(meta["calls"])]
        manner = str(meta.get("manner", "separate"))
        notes: list[str] = []
        outputs: list[Any] = []
        held: list[Any] = []
        others: list[Program] = []
        is_torch = self._is_torch(program)
        began = time.perf_counter()
        with _watching(not is_torch) as torch_watch:
            for i, given in enumerate(_arranged(calls, manner)):
                before = {key: array.copy() for key, array in given.items()}
                if manner == "held" and i > 0:  # another program of the same component
                    program = self._another(name, precision, meta["dims"] if static else {})
                    others.append(program)
                returned = program(**given)
                tensors = program.torch_device is not None
                if manner in ("held", "kept"):
                    held.append(returned)
                else:
                    outputs.append(_taken(returned, tensors, i, notes))
                for key, array in given.items():
                    if not np.array_equal(array, before[key], equal_nan=True):
                        notes.append(f"inputs-overwritten: call {i + 1} wrote to {key}")
                    if manner == "scribbled":
                        array[...] = 0 if array.dtype.kind == "i" else np.nan
        outputs += [_taken(returned, tensors, i, notes) for i, returned in enumerate(held)]
        spent = time.perf_counter() - began
        _save(outputs, self._out)
        report = _report(program)
        for other in others:
            other.close()
        return {
            "notes": notes,
            "report": report,
            "run_s": spent,
            "is_torch": is_torch,
            "torch_operators": torch_watch.operators if torch_watch is not None else {},
        }

    def do_closed(
        self, bundle: str, component: str, precision: str, static: bool
    ) -> dict[str, Any]:
        """Close a program twice, then call it."""
        opened = self._opened(bundle)
        probe, dims = self._fitting(opened, component, precision)
        self.release()
        threads = set(threading.enumerate())
        program = self._ready(component, precision, dims if static else {})
        program(**opened.inputs(probe, 0))
        self._program = None
        program.close()
        program.close()
        left = [
            thread.name
            for thread in threading.enumerate()
            if thread not in threads and not thread.daemon
        ]
        try:
            program(**opened.inputs(probe, 0))
        except PerfuseError as exc:
            return {"refused": str(exc), "threads": left}
        return {"refused": None, "threads": left}

    def do_soak(
        self,
        bundle: str,
        component: str,
        precision: str,
        static: bool,
        seed: int,
        thorough: bool,
    ) -> dict[str, Any]:
        """Call one program many times with drawn inputs; some answers are left in the file."""
        inputs = self._drawn_inputs(bundle, component, precision, static, seed)
        program = self._ready(
            component, precision, self._dims(bundle, component, precision, static)
        )
        taken = _taker(program)
        soaked, kept = soak(program, inputs, seed, taken, thorough=thorough)
        _save(kept, self._out)
        return soaked.to_dict()

    def do_again(
        self,
        bundle: str,
        component: str,
        precision: str,
        static: bool,
        seed: int,
        numbers: list[int],
    ) -> dict[str, Any]:
        """Answer to some of the drawn inputs, the last one first; leave the answers in the file."""
        inputs = self._drawn_inputs(bundle, component, precision, static, seed)
        program = self._ready(
            component, precision, self._dims(bundle, component, precision, static)
        )
        taken = _taker(program)
        answers = [taken(program(**inputs(number))) for number in reversed(numbers)]
        _save(answers[::-1], self._out)
        return {}

    def do_many_programs(
        self, bundle: str, component: str, precision: str, static: bool, thorough: bool
    ) -> dict[str, Any]:
        """Prepare, call and close again and again."""
        probe, _ = self._fitting(self._opened(bundle), component, precision)
        dims = self._dims(bundle, component, precision, static)
        self.release()
        count, left = prepared_again(
            lambda: self._another(component, precision, dims),
            self._opened(bundle).inputs(probe, 0),
            thorough=thorough,
        )
        return {"programs": count, "left": left}

    def do_two_programs(
        self, bundle: str, component: str, precision: str, static: bool, seed: int
    ) -> dict[str, Any]:
        """Two programs of a component at once."""
        inputs = self._drawn_inputs(bundle, component, precision, static, seed)
        dims = self._dims(bundle, component, precision, static)
        program = self._ready(component, precision, dims)
        other = self._another(component, precision, dims)
        given = [inputs(number) for number in range(6)]
        misses = interleaved((program, other), given, seed, _taker(program))
        other.close()
        return {"misses": misses}

    def do_order(
        self, bundle: str, precision: str, modes: Mapping[str, bool], order: list[str]
    ) -> dict[str, Any]:
        """Prepare components in an order, then call each; answers in the order of ``modes``."""
        opened = self._opened(bundle)
        self.release()
        programs: dict[str, Program] = {}
        answers: dict[str, Arrays] = {}
        for name in order:
            dims = self._dims(bundle, name, precision, modes[name])
            programs[name] = self._another(name, precision, dims)
        for name in order:
            probe, _ = self._fitting(opened, name, precision)
            answers[name] = _taker(programs[name])(programs[name](**opened.inputs(probe, 0)))
        for program in programs.values():
            program.close()
        _save([answers[name] for name in modes], self._out)
        return {}

    def do_supports_sizes(
        self, component: str, precision: str, sizes: list[dict[str, int]]
    ) -> dict[str, Any]:
        """Which of some fixed sizes the backend says yes to."""
        spec, device = self.source.spec.components[component], self.target.device
        requests = [
            Request(component=spec, precision=precision, device=device, static=static)
            for static in sizes
        ]
        return {"works": [self.backend.supports(request).works for request in requests]}

    def _fitting(
        self, opened: Bundle, component: str, precision: str
    ) -> tuple[str, Mapping[str, int]]:
        """A probe with sizes that a component was made for, and the sizes.

        Raises:
            InputError: there is none.
        """
        made = self.source.component(component, precision=precision)
        for id, meta in opened.index["probes"].items():
            if meta["component"] == component and made_for(made, meta["dims"]):
                return id, meta["dims"]
        raise InputError(
            f"{component} is fixed to {dict(made.static)}, which nothing is asked with."
        )

    def _dims(self, bundle: str, component: str, precision: str, static: bool) -> Mapping[str, int]:
        return self._fitting(self._opened(bundle), component, precision)[1] if static else {}

    def _drawn_inputs(
        self, bundle: str, component: str, precision: str, static: bool, seed: int
    ) -> Callable[[int], Arrays]:
        """Makes the inputs of a number, of sizes that a program takes."""
        spec, dims = self.source.spec, self._dims(bundle, component, precision, static)
        probes = [
            probe
            for probe in probes_of(spec).values()
            if probe.component == component and (not static or probe.dims == dims)
        ]
        return lambda number: drawn_inputs(spec, spec.components[component], probes, seed, number)

    def do_other_weights(
        self, bundle: str, component: str, precision: str, static: bool
    ) -> dict[str, Any]:
        """Run a component, the same with other weights, and both again.

        ``misses`` has for each run how far it is from what is right, over the distance between what
        is right with the first weights and with the others.
        """
        dims, inputs = self._usual_call(bundle, component, static)
        made = self._component(component, precision, dims)
        each = [made, with_other_weights(made)]
        return self._switched(each, [truth(one, inputs) for one in each], inputs, rounds=2)

    def do_adapters(
        self, bundle: str, component: str, precision: str, static: bool, lora: str | None
    ) -> dict[str, Any]:
        """Run a component with a LoRA, without it, and with half of it, again and again.

        The LoRA is the file that is named, where it changes the component, or the suite's own.
        """
        dims, inputs = self._usual_call(bundle, component, static)
        pipe = self._opened_pipe(precision)
        plain = pipe.component(component, static=dims)
        each, own = [plain], None
        if lora is not None:
            pipe.load_lora_weights(lora, adapter_name="lora")
            each = _at_scales(pipe, component, dims)
        if each[0].changes is None:
            own = OwnLora(component=plain.spec, shapes=pipe.weight_shapes(plain))
            pipe.load_lora_weights(own.tensors(), adapter_name="lora", hotswap=lora is not None)
            each = _at_scales(pipe, component, dims)
            right = [truth(plain, inputs, own, scale) for scale in _SCALES]
        else:
            right = [truth(one, inputs) for one in each]
        pipe.close()
        return self._switched(each, right, inputs, rounds=_ROUNDS)

    def _switched(
        self, each: Sequence[Component], right: Sequence[Arrays], inputs: Arrays, rounds: int
    ) -> dict[str, Any]:
        """Run components that differ in their weights, in turns, as a pipeline would switch them.

        Returns:
            ``misses``, by run: how far it is from what is right, over the distance between what is
            right with the first two; and ``drift``, how far the last runs are from the first of the
            same weights, over that distance.
        """
        name = each[0].spec.signature.output_names[0]
        apart = rmse(right[0][name], right[1][name])
        self.release()
        program: Program | None = None
        misses, notes, firsts, drift = [], list[str](), dict[int, Any](), 0.0
        for number in range(rounds * len(each)):
            i = number % len(each)
            if program is None or not program.rebind(each[i]):
                if number >= _PREPARED * len(each):  # in programs that are new, nothing adds up
                    break
                if program is not None:
                    program.close()
                program = self.backend.prepare(each[i], self.target, self._store)
            output = _taken(program(**inputs), program.torch_device is not None, 0, notes)[name]
            misses.append(rmse(output, right[i][name]) / apart)
            drift = max(drift, rmse(output, firsts.setdefault(i, output)) / apart)
        if program is not None:
            program.close()
        return {"misses": misses, "drift": drift}

    def _usual_call(
        self, bundle: str, component: str, static: bool
    ) -> tuple[Mapping[str, int], Arrays]:
        """The sizes to fix for a component's first probe, and its inputs."""
        opened = self._opened(bundle)
        probes = opened.index["probes"]
        probe = next(id for id, meta in probes.items() if meta["component"] == component)
        return probes[probe]["dims"] if static else {}, opened.inputs(probe, 0)

    def do_draw(self, bundle: str, draw: str, precision: str) -> dict[str, Any]:
        """Draw, and leave latents and pictures in the file."""
        pipe = self._pipe(precision)
        self._store.taken()
        began = time.perf_counter()
        drawn = run_draw(pipe, _draw_of(pipe, self._opened(bundle).seed, draw))
        spent = time.perf_counter() - began
        _save([drawn], self._out)
        reports = {name: _report(program) for name, program in pipe.programs().items()}
        return {
            "notes": [],
            "report": reports[pipe.spec.denoiser.name],
            "fallbacks": sorted({text for r in reports.values() for text in r["fallbacks"]}),
            "run_s": spent,
            "exported": self._store.taken(),
        }

    def do_quality(self, precision: str) -> dict[str, Any]:
        """The checker's verdict on every held-out caption."""
        return {"verdicts": caption_verdicts(self._pipe(precision))}

    # Parts

    def _ready(
        self,
        name: str,
        precision: str,
        static: Mapping[str, int],
        store: ArtifactStore | None = None,
    ) -> Program:
        component = self._component(name, precision, static)
        sizes = [dict(component.static), *map(dict, component.sizes)]
        key = json.dumps([name, precision, sizes], sort_keys=True)
        if self._program is None or self._program[0] != key:
            self.release()
            began = time.perf_counter()
            self._program = key, self.backend.prepare(component, self.target, store or self._store)
            self._prepared_s = time.perf_counter() - began
        else:
            self._prepared_s = 0.0
        return self._program[1]

    def _another(self, name: str, precision: str, static: Mapping[str, int]) -> Program:
        component = self._component(name, precision, static)
        return self.backend.prepare(component, self.target, self._store)

    def _component(self, name: str, precision: str, static: Mapping[str, int]) -> Component:
        """A component for a size, or with those that it was exported for."""
        if self.source.format is not None:
            return self.source.component(name, precision=precision)
        return self.source.component(name, precision=precision, static=dict(static))

    def _is_torch(self, program: Program) -> bool:
        """Whether PyTorch may compute the result: it is the engine, or an interpreter uses it."""
        manifest = host().backends()[self.target.backend]
        if manifest.interprets and "torch" in manifest.requires:
            return True
        return program.report().engine.lower().startswith(_TORCH)

    def release(self) -> None:
        """Close the program."""
        if self._program is not None:
            _, program = self._program
            self._program = None
            program.close()

    def _pipe(self, precision: str) -> DiffusionPipeline:
        if precision not in self._pipes:
            self.release()
            for other in self._pipes.values():
                other.close()
            self._pipes = {precision: self._opened_pipe(precision)}
        return self._pipes[precision]

    def _opened_pipe(self, precision: str) -> DiffusionPipeline:
        return open_pipeline(
            DiffusionPipeline,
            self._model,
            backend=str(self.target),
            precision=precision,
            options=self.target.options,
            transforms=self._transforms,
            store=self._store,
        )


def _at_scales(pipe: DiffusionPipeline, component: str, dims: Mapping[str, int]) -> list[Component]:
    """A component with a pipeline's LoRA, at each scale."""
    found = []
    for scale in _SCALES:
        if scale:
            pipe.enable_lora()
            pipe.set_adapters("lora", scale)
        else:
            pipe.disable_lora()
        found.append(pipe.component(component, static=dims))
    return found


def _arranged(calls: list[Arrays], manner: str) -> Iterator[Arrays]:
    """Each call's arrays, in new memory or in the same memory each time."""
    layout = LAYOUTS.get("fortran" if manner == "views" else manner)
    if layout is not None:  # the same numbers, laid out otherwise
        yield from ({name: layout(array) for name, array in call.items()} for call in calls)
        return
    if manner != "reused":
        yield from calls
        return
    memory = {name: array.copy() for name, array in calls[0].items()}
    for call in calls:
        for name, array in call.items():
            memory[name][...] = array
        yield memory


def _taken(returned: Any, torch: bool, call: int, notes: list[str]) -> Arrays:
    """A copy of a call's results; unexpected ones become notes.

    Tensors are for programs that say on which device arrays may stay.
    """
    if not isinstance(returned, Mapping):
        notes.append(f"not-a-mapping: call {call + 1} returned {type(returned).__name__}")
        return {}
    taken: Arrays = {}
    for name, value in returned.items():
        array = value.detach().cpu().numpy() if torch and is_torch(value) else value
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            notes.append(f"not-an-array: call {call + 1} returned {name} as {type(value).__name__}")
            continue
        taken[str(name)] = np.array(array)
    return taken


def _taker(program: Program) -> Callable[[Any], Arrays]:
    """Copies what a program returned."""
    return lambda returned: _taken(returned, program.torch_device is not None, 0, [])


def _draw_of(pipe: DiffusionPipeline, seed: int, id: str) -> Draw:
    if id in (draws := draws_of(pipe.spec, seed=seed)):
        return draws[id]
    return drawn_of(pipe.spec, seed, count=int(id.partition("-")[2] or 1))[id]


def _watching(watch: bool) -> Any:
    return TorchWatch() if watch and "torch" in sys.modules else contextlib.nullcontext()


def _report(program: Program) -> dict[str, Any]:
    report = program.report()
    return {
        "device": str(report.device),
        "precision": str(report.precision),
        "engine": str(report.engine),
        "fallbacks": [str(text) for text in report.fallbacks],
    }


def _save(outputs: list[Arrays], path: Path) -> None:
    arrays: dict[str, Any] = {}
    for i, call in enumerate(outputs):
        for name, array in call.items():
            arrays[f"{i}/{name}"] = np.ascontiguousarray(array)
    np.savez(path, **arrays)


def _said(exc: BaseException) -> dict[str, Any]:
    """An exception as plain data: the names of its class and bases, and its message."""
    return {
        "type": type(exc).__name__,
        "bases": [base.__name__ for base in type(exc).__mro__],
        "ours": isinstance(exc, PerfuseError),
        "message": _message(exc),
    }


def _message(exc: BaseException) -> str:
    """On one line, in characters that every file takes; some exceptions cannot even say it."""
    try:
        text = " ".join(str(exc).split())[:2000]
    except Exception as other:  # noqa: BLE001 - a plugin may raise anything
        return f"its message cannot be read: {type(other).__name__}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _requests() -> Iterator[bytes]:
    """The lines of standard input.

    It ends when whoever asks has ended. A request that hangs must not outlive that: the process is
    ended ``_GRACE`` seconds later.
    """
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        with open(0, "rb", buffering=0, closefd=False) as stream:  # no lock that an exit waits for
            for line in stream:
                lines.put(line)
        lines.put(b"")
        time.sleep(_GRACE)
        os._exit(1)

    threading.Thread(target=read, daemon=True, name="requests").start()
    while line := lines.get():
        yield line


def main() -> None:
    """Answer requests until standard input ends. Arguments: one JSON object with the job."""
    job = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    printed = os.open(job["printed"], os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    worker = Worker(
        Target(backend=job["backend"], device=job.get("device"), options=job.get("options", {})),
        job["model"],
        Path(job["out"]),
        job.get("transforms", ()),
    )
    seen = 0
    for line in _requests():
        state = GlobalState.now()
        try:
            answer: dict[str, Any] = {"answer": worker.answer(json.loads(line))}
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - a plugin may raise anything
            answer = {"error": _said(exc)}
        changed = state.changed()
        state.restore(printed)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        size = os.fstat(printed).st_size
        if size > seen:
            answer["printed"] = os.pread(printed, min(size - seen, 500), seen).decode(
                "utf-8", "replace"
            )
            seen = size
        answer["changed"] = changed
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    with contextlib.suppress(Exception):
        worker.release()
    # Threads that a plugin left behind are not waited for.
    answers.close()
    os._exit(0)


if __name__ == "__main__":
    main()
