"""The catalogue of cases: probes of components, and the cases made of them and of the draws.

A probe is a few calls of one component with inputs that follow from its name; a draw is a whole
pipeline run; a trial is a call that a seed draws. All are plain data: the reference records what is
right, a worker what a backend says. The cases follow from the model's spec and from what the backend declares; there is no list to skip.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from perfuse.backend import PRECISIONS
from perfuse.spec import ComponentSpec, PipelineSpec, Role
from perfuse_conformance.cases.draws import draws_of
from perfuse_conformance.cases.probes import Probe, probes_of
from perfuse_conformance.cases.trials import SIZED, Trial

__all__ = [
    "ADAPTERS",
    "LEVELS",
    "MANY_PROGRAMS",
    "ORDER",
    "OTHER_WEIGHTS",
    "PROFILES",
    "SOAK",
    "TWO_PROGRAMS",
    "Capabilities",
    "Capability",
    "Case",
    "cases_of",
    "mode_of",
    "runs_in",
]

LEVELS = ("L0", "L1", "L2", "L3")
#: Suffix of a claimed level to its meaning.
PROFILES: Mapping[str, str] = MappingProxyType(
    {
        "dyn": "one program takes any batch and size",
        "fp16": "components and pictures in float16",
        "bf16": "components and pictures in bfloat16",
        "bridged": "Diffusers' own pipeline, with its modules on the backend",
    }
)
_PROFILE_OF = {"float16": ("fp16",), "bfloat16": ("bf16",)}


@dataclass(frozen=True, kw_only=True)
class Capability:
    """What ``supports`` answered: a level's value, and the reason."""

    level: str
    reason: str

    @property
    def works(self) -> bool:
        return self.level in ("full", "conditional", "unknown")


#: ``(component, precision, "static" | "symbolic")`` to the backend's answer.
Capabilities = Mapping[tuple[str, str, str], Capability]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test case, and the level that it counts for."""

    id: str
    level: str
    #: ``"host"``, ``"component"``, ``"contract"``, ``"refusal"``, ``"trial"``, ``"forced"``,
    #: ``"draw"``, ``"repeat"``, ``"quality"``.
    kind: str
    profiles: tuple[str, ...] = ()
    component: str | None = None
    precision: str | None = None
    #: ``"static"`` or ``"symbolic"``.
    mode: str | None = None
    #: The probe, the trial or the draw.
    subject: str | None = None
    #: Of a trial: what to ask. Of several, the first that the backend does not decline.
    trials: tuple[Trial, ...] = ()
    #: The backend declares that it does not support the case.
    declined: str | None = None


# Cases

#: The case of a component whose weights change while its graph does not, and of one whose adapters
#: are switched to and fro.
OTHER_WEIGHTS, ADAPTERS = "other-weights", "adapters"
#: Many calls of one program, and what they leave behind; many programs, one after the other; two at
#: once; and all components, prepared in one order and in the other.
SOAK, MANY_PROGRAMS, TWO_PROGRAMS, ORDER = "many-calls", "many-programs", "two-programs", "order"
#: The first word of the ids of contracts that are of level L2.
_WORDS = {OTHER_WEIGHTS: "weights", ADAPTERS: "weights"}
_WORDS |= dict.fromkeys((SOAK, MANY_PROGRAMS, TWO_PROGRAMS, ORDER), "soak")


def cases_of(
    spec: PipelineSpec,
    capabilities: Capabilities,
    precisions: tuple[str, ...],
    level: str,
    *,
    trials: Mapping[str, tuple[Trial, ...]] = MappingProxyType({}),
    drawn: Iterable[str] = (),
    thorough: bool = False,
) -> list[Case]:
    """The cases up to a level, for the devices and precisions that a backend declares.

    Args:
        spec: The model.
        capabilities: What ``supports`` answered; the ones that are missing count as unsupported.
        precisions: Those that the device lists, widest first.
        level: ``"L2"`` selects L0, L1 and L2.
        trials: By ``"trial/COMPONENT/NAME"``, as ``trials_of`` draws them.
        drawn: The pictures that a seed draws, by ``Draw.id``.
        thorough: Whether every component is called many times, not the denoiser alone.
    """
    cases = [*_host_cases()]
    for component in spec.components.values():
        cases += _component_cases(spec, component, capabilities, precisions, thorough=thorough)
        cases += _trial_cases(component, capabilities, precisions[0], trials)
    cases += _draw_cases(spec, capabilities, precisions, drawn)
    wanted = LEVELS[: LEVELS.index(level) + 1]
    return [case for case in cases if case.level in wanted]


HOST_CASES = (
    "manifest",
    "import-light",
    "devices",
    "supports",
    "unknown-device",
    "unknown-option",
    "unknown-precision",
)


def _host_cases() -> Iterator[Case]:
    for name in HOST_CASES:
        yield Case(id=f"host/{name}", level="L0", kind="host", subject=name)


def runs_in(component: ComponentSpec, precision: str) -> bool:
    """Whether a pipeline of this precision runs the component in it."""
    return not (precision == "float16" and component.upcast)


def _component_cases(
    spec: PipelineSpec,
    component: ComponentSpec,
    capabilities: Capabilities,
    precisions: tuple[str, ...],
    *,
    thorough: bool,
) -> Iterator[Case]:
    name = component.name
    probes = [probe for probe in probes_of(spec).values() if probe.component == name]
    first = precisions[0]
    for precision in PRECISIONS:
        for mode in ("static", "symbolic"):
            declared = capabilities.get((name, precision, mode))
            where = f"{name}/{precision}/{mode}"
            if declared is None or not declared.works:
                yield Case(
                    id=f"refusal/{where}",
                    level="L1",
                    kind="refusal",
                    component=name,
                    precision=precision,
                    mode=mode,
                    subject=next(
                        probe.id
                        for probe in probes
                        if probe.halves and probe.symbolic_only == (mode == "symbolic")
                    ),
                    declined=declared.reason if declared is not None else "",
                )
                continue
            if not runs_in(component, precision):
                continue
            for probe in probes:
                case = _probe_case(probe, precision, mode, first, capabilities)
                if case is not None:
                    yield case
    own = mode_of(name, first, capabilities)
    if own is None:
        return
    contracts = {"closed": "L1"}
    if name == spec.denoiser.name or thorough:
        contracts |= dict.fromkeys((SOAK, MANY_PROGRAMS, TWO_PROGRAMS), "L2")
    if name == spec.denoiser.name:
        contracts |= {ORDER: "L2"}
        contracts |= {OTHER_WEIGHTS: "L2"}  # where graphs are not known apart, it exports again
    if component.role in (Role.DENOISER, Role.TEXT_ENCODER) and component.entry_of is None:
        contracts |= {ADAPTERS: "L2"}
    any_size = capabilities.get((name, first, "symbolic"))
    for subject, level in contracts.items():
        # Of many calls no two need have the same size, where one program takes any.
        varies = subject == SOAK and any_size is not None and any_size.works
        yield Case(
            id=f"{_WORDS.get(subject, 'contract')}/{name}/{subject}",
            level=level,
            kind="contract",
            component=name,
            precision=first,
            mode="symbolic" if varies else own,
            subject=subject,
        )


def _trial_cases(
    component: ComponentSpec,
    capabilities: Capabilities,
    precision: str,
    trials: Mapping[str, tuple[Trial, ...]],
) -> Iterator[Case]:
    """A component's trials, in the widest precision. Other sizes are asked of a program that takes
    any; where there are programs of fixed sizes too, ``any-size`` is asked of one."""
    base = mode_of(component.name, precision, capabilities)
    if base is None or not runs_in(component, precision):
        return
    any_size = capabilities.get((component.name, precision, "symbolic"))
    has_any_size = any_size is not None and any_size.works
    for id, drawn in trials.items():
        _, name, about = id.split("/")
        if name != component.name:
            continue
        subject = about.rstrip("-0123456789")
        mode, profiles = base, tuple[str, ...]()
        if subject in SIZED and subject != "any-size" and has_any_size and base == "static":
            mode, profiles = "symbolic", ("dyn",)
        elif subject == "any-size" and base == "symbolic":
            continue
        yield Case(
            id=f"trial/{name}/{precision}/{mode}/{about}",
            level="L2",
            kind="trial",
            profiles=profiles,
            component=name,
            precision=precision,
            mode=mode,
            subject=id,
            trials=drawn,
        )


def mode_of(component: str, precision: str, capabilities: Capabilities) -> str | None:
    """How a backend's own level is judged: with fixed sizes where it can have them."""
    for mode in ("static", "symbolic"):
        declared = capabilities.get((component, precision, mode))
        if declared is not None and declared.works:
            return mode
    return None


def _probe_case(
    probe: Probe, precision: str, mode: str, first: str, capabilities: Capabilities
) -> Case | None:
    base = mode == mode_of(probe.component, precision, capabilities)
    wider = probe.symbolic_only
    if mode == "static" and wider:
        return None
    if precision != first and not (probe.halves and base):
        return None
    if mode == "symbolic" and not base and not wider and probe.manner != "separate":
        return None
    profiles: tuple[str, ...] = () if precision == first else _PROFILE_OF.get(precision, ())
    if mode == "symbolic" and (wider or not base):
        profiles = (*profiles, "dyn")
    about = probe.id.partition("/")[2]
    return Case(
        id=f"component/{probe.component}/{precision}/{mode}/{about}",
        level="L1",
        kind="component",
        profiles=profiles,
        component=probe.component,
        precision=precision,
        mode=mode,
        subject=probe.id,
    )


def _draw_cases(
    spec: PipelineSpec,
    capabilities: Capabilities,
    precisions: tuple[str, ...],
    drawn: Iterable[str],
) -> Iterator[Case]:
    first = precisions[0]
    draws = list(draws_of(spec).values())
    for precision in precisions:
        parts = [c.name for c in spec.components.values() if runs_in(c, precision)]
        if any(mode_of(part, precision, capabilities) is None for part in parts):
            continue
        profiles = () if precision == first else _PROFILE_OF.get(precision, ())
        mode = mode_of(spec.denoiser.name, precision, capabilities)
        for draw in draws:
            if precision != first and not draw.halves:
                continue
            common: dict[str, Any] = {
                "profiles": profiles,
                "precision": precision,
            }
            if draw.forced:
                yield Case(
                    id=f"forced/{precision}/{draw.id}",
                    level="L2",
                    kind="forced",
                    component=spec.denoiser.name,
                    mode=mode,
                    subject=f"forced/{draw.id}",
                    **common,
                )
            yield Case(
                id=f"draw/{precision}/{draw.id}", level="L2", kind="draw", subject=draw.id, **common
            )
        for id in drawn if precision == first else ():
            yield Case(
                id=f"draw/{precision}/{id}",
                level="L2",
                kind="draw",
                precision=precision,
                subject=id,
            )
    for again in ("same-process", "new-process"):
        yield Case(
            id=f"repeat/{again}",
            level="L2",
            kind="repeat",
            precision=first,
            subject=draws[0].id,
            mode=again,
        )
    yield Case(id="quality/captions", level="L3", kind="quality", precision=first)
