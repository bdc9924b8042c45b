"""Runs the suite: sends cases to a worker, judges each answer, and derives the level."""

import datetime
import hashlib
import platform
import shlex
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from perfuse import Source
from perfuse.backend import PRECISIONS, Target
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.run import DiffusionPipeline
from perfuse.sources import ExportedComponent, scratch_folder, tool_versions, undone
from perfuse.spec import PipelineSpec
from perfuse_conformance import SUITE_VERSION
from perfuse_conformance.cases.bundle import Bundle
from perfuse_conformance.cases.catalogue import (
    ADAPTERS,
    LEVELS,
    OTHER_WEIGHTS,
    Capabilities,
    Capability,
    Case,
    cases_of,
    mode_of,
    runs_in,
)
from perfuse_conformance.cases.draws import Draw, drawn_of, draws_of
from perfuse_conformance.cases.models import path_of, transforms_of
from perfuse_conformance.cases.opening import open_pipeline, open_source
from perfuse_conformance.cases.probes import Arrays, made_for
from perfuse_conformance.cases.trials import (
    Trial,
    probe_for,
    recorded_trials,
    trial_id,
    trials_of,
)
from perfuse_conformance.judge.levels import claim_of
from perfuse_conformance.judge.results import Result, Run, Status
from perfuse_conformance.judge.tolerances import Tolerances
from perfuse_conformance.judge.verdicts import (
    begin,
    fail,
)
from perfuse_conformance.reference.record import bundle_for
from perfuse_conformance.reference.trials import TrialReference
from perfuse_conformance.runner.host_cases import judge_host
from perfuse_conformance.runner.picture_cases import (
    Drawn,
    judge_drawing,
    judge_quality,
    judge_repeat,
)
from perfuse_conformance.runner.process import Answer, Crash, Failure, WorkerProcess
from perfuse_conformance.runner.program_cases import (
    judge_component,
    judge_contract,
    judge_refusal,
)
from perfuse_conformance.runner.trial_cases import judge_trial

__all__ = ["Session", "open_session", "run_conformance", "run_of"]

Watch = Callable[[Result], None]


#: What a worker is asked that needs a bundle.
_BY_BUNDLE = frozenset(
    ("prepare", "call", "closed", "soak", "again", "many_programs", "two_programs", "order")
    + ("other_weights", "adapters", "draw")
)
#: By kind of case, what judges it.
_JUDGES: Mapping[str, Callable[[Case, Result, "Session"], Result]] = {
    "host": judge_host,
    "component": judge_component,
    "forced": judge_component,
    "trial": judge_trial,
    "contract": judge_contract,
    "refusal": judge_refusal,
    "draw": judge_drawing,
    "repeat": judge_repeat,
    "quality": judge_quality,
}
#: How many pictures are drawn; with ``--thorough``.
_PICTURES = (1, 6)


@dataclass(kw_only=True)
class Session:
    """One backend, one model, one bundle; its worker lives as long as it is well."""

    target: Target
    #: A checkpoint's or an exported folder, a Hub id, or ``None`` for the bundled one.
    model: str | None
    #: What the results call it.
    name: str
    level: str
    #: A bundle to judge by; without one the reference runs here, once, when it is needed.
    golden: Path | None = None
    #: Those to ask in; all that the device declares by default. The others' profiles stay open.
    precisions: tuple[str, ...] = ()
    #: Transforms to apply, to the reference as well.
    transforms: tuple[str, ...] = ()
    seed: int = 0
    #: A LoRA for the cases of adapters; without one, and where it changes nothing, the suite's own.
    lora: Path | None = None
    #: Draws trials, a picture, the soak and the order of the cases.
    draw_seed: int = 0
    #: Draws more, and larger ones; calls every component many times.
    thorough: bool = False
    #: Seconds that a case may take; preparing its program comes on top.
    timeout: float = 60.0
    prepare_timeout: float = 600.0
    drawn: list[Drawn] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InputError(f"Level {self.level!r} was asked for; there are {', '.join(LEVELS)}.")
        if unknown := set(self.precisions) - set(PRECISIONS):
            raise InputError(
                f"Precision {min(unknown)!r} was asked for; there are {', '.join(PRECISIONS)}."
            )
        with ExitStack() as opened:
            folder = opened.enter_context(scratch_folder("perfuse-conformance-"))
            self._source: Source = open_source(self.model, self.transforms)
            if self.lora is not None:  # whether it is one, and one of this model's
                open_pipeline(DiffusionPipeline, self.model).load_lora_weights(self.lora)
            self.tolerances = Tolerances.load()
            self._worker = self._new_worker(folder / "worker", opened)
            self._other = self._new_worker(folder / "other", opened)
            self._opened = opened.pop_all()
        self._lost: dict[tuple[Any, ...], Result] = {}
        self.first: dict[tuple[str | None, str | None], Arrays] = {}
        self._reference = TrialReference(self.model, self.transforms, folder)
        self.device: Mapping[str, Any] = {}
        self.engine = ""
        self.capabilities: dict[tuple[str, str, str], Capability] = {}

    def _new_worker(self, folder: Path, opened: ExitStack) -> WorkerProcess:
        folder.mkdir()
        worker = WorkerProcess(self.target, self.model, folder, self.transforms)
        opened.callback(worker.close)
        opened.enter_context(undone(worker.close))
        return worker

    @property
    def spec(self) -> PipelineSpec:
        """The model's spec."""
        return self._source.spec

    @property
    def out(self) -> Path:
        """Where the worker leaves arrays."""
        return self._worker.out

    @cached_property
    def bundle(self) -> Bundle:
        """What is right.

        Raises:
            BundleError: the golden bundle is damaged, or of another model.
        """
        if self.golden is not None:
            bundle = Bundle.open(self.golden)
        else:
            level = max(self.level, "L1")
            bundle = bundle_for(self.model, level=level, seed=self.seed, transforms=self.transforms)
        bundle.check_model(self.spec)
        return bundle

    def close(self) -> None:
        """End the processes, remove what they wrote, and free the models."""
        self._opened.close()
        self._reference.close()

    def identity(self) -> dict[str, str]:
        """Who was measured, as far as is known."""
        row = host().brought_by(self.target.backend)
        interprets = host().backends()[self.target.backend].interprets
        return {
            "target": f"{self.target.backend}:{self.device.get('name', self.target.device or '?')}",
            "distribution": row.distribution if row is not None else "?",
            "version": row.version if row is not None else "?",
            "engine": self.engine,
            "device": str(self.device.get("name", "")),
            "description": str(self.device.get("description", "")),
            "interprets": interprets,
        }

    # What is asked

    def cases(self) -> list[Case]:
        """The cases for what the backend declares; asks the backend on first use."""
        precisions = self._declared()
        if not self.device:  # nothing can be executed; the host's cases say why
            return cases_of(self.spec, {}, precisions, "L0")
        if self._source.format is not None:
            cases = self._exported_cases()
        else:
            cases = self._cases(self.capabilities, precisions)
        asked = (None, *(self.precisions or PRECISIONS))
        order = _Order(self.drawn_with)
        return sorted((case for case in cases if case.precision in asked), key=order)

    def _cases(self, capabilities: Capabilities, precisions: tuple[str, ...]) -> list[Case]:
        drawn = LEVELS.index(self.level) >= LEVELS.index("L2")
        return cases_of(
            self.spec,
            capabilities,
            precisions,
            self.level,
            trials=self._trials() if drawn else {},
            drawn=self._drawn_pictures() if drawn else (),
            thorough=self.thorough,
        )

    def _trials(self) -> dict[str, tuple[Trial, ...]]:
        """What a seed draws, or a golden bundle holds of it."""
        if self.golden is not None:
            return recorded_trials(self.bundle.index["probes"])
        return trials_of(self.spec, self.draw_seed, thorough=self.thorough)

    @property
    def drawn_with(self) -> int:
        """The seed of all that is drawn: a golden bundle holds the trials of its own."""
        return self.bundle.seed if self.golden is not None else self.draw_seed

    def _drawn_pictures(self) -> dict[str, Draw]:
        return drawn_of(self.spec, self.drawn_with, _PICTURES[self.thorough])

    def _declared(self) -> tuple[str, ...]:
        """The device's precisions, widest first; asks for devices and capabilities."""
        if not self.capabilities:
            self._ask_device()
            try:
                answer = self._worker.ask({"do": "supports"}, self.timeout)
            except Failure:
                answer = Answer(value=None)
            for key, said in (answer.value or {"supports": {}})["supports"].items():
                component, precision, mode = key.split("/")
                self.capabilities[component, precision, mode] = Capability(**said)
        listed = tuple(self.device.get("precisions", ()))
        ordered = tuple(precision for precision in PRECISIONS if precision in listed)
        return ordered or ("float32",)

    def _ask_device(self) -> None:
        try:
            answer = self._worker.ask({"do": "devices"}, self.timeout)
        except Failure:
            return
        devices = (answer.value or {"devices": []})["devices"]
        wanted = self.target.device
        for device in devices:
            if wanted is None or device["name"] == wanted:
                self.device = device
                return
        same = [d for d in devices if wanted and d["name"].split(":")[0] == wanted.split(":")[0]]
        self.device = same[0] if same else {}

    def _exported_cases(self) -> list[Case]:
        """The cases that an exported folder has the files for: one precision and way of sizes each."""
        held = self._source.exported()
        capabilities = {
            (name, precision, mode): said
            for (name, precision, mode), said in self.capabilities.items()
            if precision == held[name].precision
            and mode == ("static" if held[name].static else "symbolic")
        }
        precisions = (held[self.spec.denoiser.name].precision,)
        cases = self._cases(capabilities, precisions)
        fitting = [case for case in cases if case.kind != "refusal" and self._fits(case, held)]
        others = (OTHER_WEIGHTS, ADAPTERS)  # it has its own weights alone
        return [case for case in fitting if case.subject not in others]

    def _fits(self, case: Case, held: Mapping[str, ExportedComponent]) -> bool:
        """Whether a case asks for sizes that the model was exported for."""
        if case.kind in ("component", "forced", "contract"):
            component = held[str(case.component)]
            probes = self.bundle.index["probes"]
            if case.kind == "contract":  # asked with whatever fits
                metas = [m for m in probes.values() if m["component"] == case.component]
            else:
                metas = [probes[case.subject]] if case.subject in probes else []
            sizes = [meta["dims"] for meta in metas] or [component.static]
            return any(made_for(component, dims) for dims in sizes)
        if case.kind == "trial":
            spec = self.spec.components[str(case.component)]
            asked = [probe_for(self.spec, spec, one, "").dims for one in case.trials]
            return all(made_for(held[spec.name], dims) for dims in asked)
        if case.kind in ("draw", "repeat"):
            height, width = self.spec.default_size
            inputs = (draws_of(self.spec) | self._drawn_pictures())[str(case.subject)].inputs
            height, width = inputs.get("height", height), inputs.get("width", width)
            dims = self.spec.latents.dims(height, width)
            return made_for(held[self.spec.denoiser.name], dims)
        return True

    # Running

    def run(self) -> Iterator[Result]:
        """Judge case after case. A worker that is lost costs its case, and those that would lose it
        again: the others with the same program."""
        for case in self.cases():
            yield self.judge(case)

    def judge(self, case: Case) -> Result:
        """The result of one case."""
        result = begin(case, self.bundle if case.kind != "host" else None)
        if not self._recorded(case):
            return fail(
                result,
                Status.ENV_MISSING,
                "not-recorded",
                f"{self.bundle.path} holds nothing of {case.subject} in {case.precision}; record it "
                "again with this suite, the level and the precisions that are to be judged",
            )
        program = _program_of(case)
        if program in self._lost:
            before = self._lost[program]
            return fail(
                result,
                Status.NOT_RUN,
                "lost",
                f"{before.id} took this program down: {before.reason}",
            )
        try:
            return _JUDGES[case.kind](case, result, self)
        except Failure as lost:
            crashed = isinstance(lost, Crash)
            status = Status.FAIL_CRASH if crashed else Status.FAIL_TIMEOUT
            code = "crashed" if crashed else "timed-out"
            result = replace(fail(result, status, code, lost.reason), log=lost.log)
            if program is not None:
                self._lost[program] = result
            return result

    def _recorded(self, case: Case) -> bool:
        """Whether the bundle has the reference results of a case, with the reference's error."""
        if case.kind in ("host", "contract", "quality"):
            return True
        if self.golden is None and (case.kind == "trial" or case.subject in self._drawn_pictures()):
            return True  # asked when it is needed
        table = "draws" if case.kind in ("draw", "repeat") else "probes"
        meta = self.bundle.index[table].get(case.subject)
        return meta is not None and (case.kind == "refusal" or case.precision in meta["errors"])

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        prepares: bool = False,
        bundle: Bundle | None = None,
        worker: WorkerProcess | None = None,
    ) -> Answer:
        """Ask the worker.

        Args:
            request: ``do`` and its arguments.
            prepares: Whether it makes a program, which may take long.
            bundle: What it is asked by; that of the session by default.
            worker: Another one.

        Raises:
            Failure: it is gone.
        """
        limit = self.timeout + (self.prepare_timeout if prepares else 0.0)
        if request["do"] in _BY_BUNDLE:
            request = {**request, "bundle": str((bundle or self.bundle).path)}
        return (worker or self._worker).ask(request, limit)

    @property
    def other(self) -> WorkerProcess:
        """A process beside the worker's, which has done little so far; starts it."""
        self._other.start()
        return self._other

    def modes(self, precision: str) -> dict[str, bool]:
        """The components that run in a precision, each with whether its sizes are fixed."""
        return {
            name: mode == "static"
            for name, component in self.spec.components.items()
            if (mode := mode_of(name, precision, self.capabilities)) is not None
            and runs_in(component, precision)
        }

    @property
    def can_ask_more(self) -> bool:
        """Whether the reference is at hand, for what nobody thought of before."""
        return self.golden is None

    def right_of(self, case: Case, trial: Trial) -> tuple[Case, Trial, Bundle]:
        """A trial as the reference was asked it, with the probe's id, and what is right."""
        if self.golden is not None:
            id = trial_id(str(case.subject), case.trials.index(trial))
            return replace(case, subject=id), trial, self.bundle
        component, precision = str(case.component), str(case.precision)
        trial, bundle = self._reference.trial(trial, component, str(case.subject), precision)
        return case, trial, bundle

    def right_picture(self, case: Case) -> tuple[Bundle, str]:
        """What is right of a picture, and the command that asks for it again if it is drawn now."""
        drawn = self.golden is None and self._drawn_pictures().get(str(case.subject))
        if not drawn:
            return self.bundle, ""
        bundle = self._reference.draw(drawn, str(case.precision), self.drawn_with)
        return bundle, self.command(case.id)

    def change_process(self) -> None:
        """Go on in the process beside the worker's, and end that."""
        self._worker.close()
        self._worker, self._other = self._other, self._worker

    def command(self, id: str) -> str:
        """The command that asks one case again."""
        words = ["perfuse", "conformance", "--backend", str(self.target)]
        words += ["--model", self.name] if self.name != "shapes" else []
        for name, values in {
            "--option": [f"{key}={value}" for key, value in self.target.options.items()],
            "--transform": self.transforms,
            "--precision": self.precisions,
            "--lora": [] if self.lora is None else [str(self.lora)],
        }.items():
            words += [word for value in values for word in (name, value)]
        words += ["--level", self.level] if self.level != "L2" else []
        words += ["--thorough"] if self.thorough else []
        words += [] if ":" in id else ["--seed", str(self.drawn_with)]
        return shlex.join([*words, "--case", id])

    def called(self, case: Case, bundle: Bundle) -> Answer:
        """Prepare a probe's program, which may take long, and make its calls, which may not."""
        what = {
            "probe": case.subject,
            "precision": case.precision,
            "static": case.mode == "static",
        }
        prepared = self.ask({"do": "prepare", **what}, prepares=True, bundle=bundle)
        if prepared.value is None:
            return prepared
        answer = self.ask({"do": "call", **what}, bundle=bundle)
        if answer.value is None:
            return answer
        return replace(
            answer,
            value={**answer.value, **prepared.value},
            printed=prepared.printed + answer.printed,
            changed=(*prepared.changed, *answer.changed),
        )


class _Order:
    """Sorts cases by level and kind. Within these their order is drawn, program by program."""

    KINDS: ClassVar[Sequence[str]] = (
        *("host", "refusal", "component", "contract"),
        *("trial", "forced", "draw", "repeat", "quality"),
    )

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _drawn(self, what: object) -> str:
        return hashlib.sha256(f"{self._seed} {what}".encode()).hexdigest()

    def __call__(self, case: Case) -> tuple[Any, ...]:
        program = self._drawn((case.component, case.precision, case.mode))
        return case.level, self.KINDS.index(case.kind), program, self._drawn(case.id)


def _program_of(case: Case) -> tuple[Any, ...] | None:
    """What a case prepares; ``None`` where no two share it."""
    if case.kind in ("component", "contract", "forced", "trial"):
        return case.component, case.precision, case.mode
    if case.kind in ("draw", "repeat", "quality"):
        return "pipeline", case.precision
    return None


def run_conformance(
    target: str,
    *,
    command: str = "",
    watch: Watch = lambda result: None,
    **settings: Any,
) -> tuple[Run, list[Drawn]]:
    """Measure a backend.

    Args:
        target: ``"openvino:CPU"``.
        command: The command line, for the record.
        watch: Is told each result as it comes.
        **settings: Those of ``open_session``.

    Returns:
        The run, and the pictures that were drawn.
    """
    session = open_session(target, **settings)
    try:
        results = []
        for result in session.run():
            watch(result)
            results.append(result)
        results.sort(key=lambda result: (result.level, result.id))
        return run_of(session, results, command), session.drawn
    finally:
        session.close()


def open_session(
    target: str,
    *,
    model: str | None = None,
    level: str = "L2",
    golden: Path | None = None,
    options: Mapping[str, str] | None = None,
    precisions: Sequence[str] = (),
    transforms: Sequence[str] = (),
    lora: Path | None = None,
    seed: int = 0,
    draw_seed: int | None = None,
    thorough: bool = False,
    timeout: float = 60.0,
    prepare_timeout: float = 600.0,
) -> Session:
    """A session, to judge all cases with or single ones.

    Args:
        target: ``"openvino:CPU"``.
        model: A checkpoint or an exported folder, or one of ``RANDOM_MODELS``; the bundled
            ``shapes`` without one, and ``shapes-flow`` by its name.
        level: ``"L0"`` to ``"L3"``.
        golden: A bundle to judge by; without one the reference runs here, once.
        options: The backend's own switches.
        precisions: Those to ask in; all that the device declares by default.
        transforms: To put on, in the reference as well.
        lora: A file to switch on and off, where it changes a component; the suite has its own.
        seed: Of the reference that runs here; another one asks the fixed cases with other numbers.
        draw_seed: Of what is drawn; ``seed`` by default.
        thorough: Draw more, larger sizes, and call every component many times.
        timeout: Seconds that a case may take, besides preparing its program.
        prepare_timeout: Seconds that preparing a program may take.

    Raises:
        BackendNotFoundError: no plugin offers the backend.
        InputError: a level or a precision is none, or the model is an export that takes no LoRA.
        WeightsError: the LoRA is damaged, or for another model.
    """
    parsed = replace(Target.parse(target), options=dict(options or {}))
    if parsed.backend not in host().backends():
        host().backend(parsed.backend)  # raises, with those that there are
    put_on = (*transforms_of(model), *transforms)
    name, model = model if model is not None else "shapes", path_of(model)
    return Session(
        target=parsed,
        model=model,
        name=name,
        level=level,
        golden=golden,
        precisions=tuple(precisions),
        transforms=put_on,
        lora=lora,
        seed=seed,
        draw_seed=draw_seed if draw_seed is not None else seed,
        thorough=thorough,
        timeout=timeout,
        prepare_timeout=prepare_timeout,
    )


def run_of(session: Session, results: Sequence[Result], command: str) -> Run:
    """The results with all that is to be said of who was measured, how and where."""
    # L0 cases need no reference, which takes long to record.
    judged = any(result.level != "L0" for result in results)
    reference = session.bundle.reference if judged else {"target": "none", "engine": "needed"}
    return Run(
        suite={
            "version": SUITE_VERSION,
            "tolerances": session.tolerances.version,
            "tolerances_sha256": session.tolerances.sha256,
        },
        run={
            "id": uuid.uuid4().hex,
            "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "level": session.level,
            "command": command,
            "model": session.name,
            "draw_seed": str(session.drawn_with),
            "reference": f"{reference['target']} {reference['engine']}",
        },
        host={
            "os": platform.platform(),
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "packages": tool_versions(("perfuse", "torch", "numpy", "onnxruntime", "openvino")),
        },
        backend=session.identity(),
        capabilities={
            "/".join(key): {"level": said.level, "reason": said.reason}
            for key, said in session.capabilities.items()
        },
        claim=claim_of(results, session.capabilities, session.level),
        results=tuple(results),
    )
