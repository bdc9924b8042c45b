"""Records a golden bundle: the reference's inputs, truth and own errors, for every probe and draw."""

import datetime
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perfuse.backend import PRECISIONS, Request, Target
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.run import DiffusionPipeline
from perfuse.sources import (
    ArtifactStore,
    atomic_folder,
    locked,
    to_plain,
    tool_versions,
)
from perfuse.spec import PipelineSpec
from perfuse_conformance import SUITE_VERSION
from perfuse_conformance.cases.bundle import Bundle, write_bundle
from perfuse_conformance.cases.catalogue import LEVELS, runs_in
from perfuse_conformance.cases.draws import Draw, drawn_of, draws_of
from perfuse_conformance.cases.opening import open_pipeline, open_source
from perfuse_conformance.cases.probes import Arrays, Probe, probes_of
from perfuse_conformance.cases.trials import trial_id, trials_of
from perfuse_conformance.reference.asking import (
    REFERENCE,
    ask,
    ask_draw,
    ask_trial,
    errors_of,
    keep,
    probe_index,
)
from perfuse_conformance.reference.pipeline import ReferencePipeline
from perfuse_conformance.reference.quality import caption_verdicts, has_captions

__all__ = ["bundle_for", "record"]

#: Increased with every change of what is recorded, so that cached bundles are made anew.
_RECORDED = 5

Watch = Callable[[str], None]


def record(
    model: str | None,
    folder: Path,
    *,
    target: str = REFERENCE,
    level: str = "L2",
    seed: int = 0,
    transforms: Sequence[str] = (),
    watch: Watch = lambda message: None,
) -> Bundle:
    """Run the reference and write a bundle.

    Args:
        model: A checkpoint's folder or Hub id; the bundled ``shapes`` without one.
        folder: Where; it must not exist or be empty, and is complete or absent afterwards.
        target: The torch device to run on: ``"torch:cuda"``.
        level: ``"L1"`` leaves out the pictures.
        seed: Another one gives every probe and draw other inputs.
        transforms: To put on.
        watch: Is told what is being done.

    Raises:
        InputError: the folder holds something, or the target is not one of torch.
        CheckpointError: the model cannot be read.
        BackendError: the device is not there.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} was to be written; it is not empty. Name a new folder.")
    with locked(folder), atomic_folder(folder) as partial:
        _record(model, partial, Target.parse(target), level, seed, watch, transforms, drawn=True)
    return Bundle.open(folder)


def bundle_for(
    model: str | None,
    *,
    target: str = REFERENCE,
    level: str = "L2",
    seed: int = 0,
    transforms: Sequence[str] = (),
    watch: Watch = lambda message: None,
) -> Bundle:
    """The bundle of a model in the cache, recorded on first use; that of a higher level has all of it."""
    source = open_source(model, transforms)
    prints = {name: source.component(name).fingerprint for name in source.spec.components}
    key = {
        "suite": SUITE_VERSION,
        "recorded": _RECORDED,
        "model": prints,
        "spec": to_plain(source.spec),
        "target": target,
        "level": level,
        "seed": seed,
        "transforms": list(transforms),
        "asked": repr([*probes_of(source.spec).values(), *draws_of(source.spec).values()]),
        "tools": tool_versions(("perfuse", "torch")),
    }

    def make(partial: Path) -> None:
        _record(model, partial, Target.parse(target), level, seed, watch, transforms)

    store = ArtifactStore.default()
    for higher in LEVELS[LEVELS.index(level) + 1 :]:
        folder = store.folder("reference", {**key, "level": higher})
        if folder.is_dir():
            return Bundle.open(folder)
    return Bundle.open(store.get_or_make("reference", key, make))


def _record(
    model: str | None,
    folder: Path,
    target: Target,
    level: str,
    seed: int,
    watch: Watch,
    transforms: Sequence[str] = (),
    *,
    drawn: bool = False,
) -> None:
    """Write a bundle; ``drawn`` for one that nothing can be asked of later."""
    device = target.device or "cpu"
    source = open_source(model, transforms)
    spec = source.spec
    placement = f"{target.backend}:{device}"
    truth = open_pipeline(ReferencePipeline, model, backend=placement, transforms=transforms)
    # A reference must support float32, or the error says why it does not.
    own = {
        precision: open_pipeline(
            DiffusionPipeline,
            model,
            backend=placement,
            precision=precision,
            transforms=transforms,
        )
        for precision in PRECISIONS
        if precision == "float32" or _supported(spec, target, precision)
    }
    own["float32"].program(spec.denoiser.name)  # says at once that a device is not there
    tensors: dict[str, dict[str, Any]] = {}
    probes = _record_probes(spec, truth, own, tensors, seed, watch)
    draws: dict[str, Any] = {}
    if LEVELS.index(level) >= LEVELS.index("L2"):
        draws = _record_draws(spec, truth, own, tensors, probes, seed, watch)
        if drawn:
            _record_drawn(spec, truth, own, tensors, probes, draws, seed, watch)
    quality = None
    if level == "L3" and has_captions(spec, model):
        watch("captions")
        quality = caption_verdicts(own["float32"])
    report = own["float32"].program(spec.denoiser.name).report()
    for pipe in (truth, *own.values()):
        pipe.close()
    write_bundle(
        folder,
        {
            "suite": SUITE_VERSION,
            "model": str(model) if model is not None else "shapes",
            "seed": seed,
            "level": level,
            "reference": {
                "target": placement,
                "engine": report.engine,
                "device": report.device,
                "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "host": f"{platform.system()} {platform.machine()}",
                "python": platform.python_version(),
            },
            "spec": to_plain(spec),
            "probes": probes,
            "draws": draws,
            "quality": quality,
        },
        tensors,
    )


def _supported(spec: PipelineSpec, target: Target, precision: str) -> bool:
    """Whether the reference supports a precision, so that its own error can be measured."""
    backend = host().backend(target.backend)
    devices = {device.name: device for device in backend.devices()}
    device = devices.get(target.device or "cpu")
    if device is not None and precision not in device.precisions:
        return False
    request = Request(component=spec.denoiser, precision=precision, device=target.device)
    return backend.supports(request).works


def _record_probes(
    spec: PipelineSpec,
    truth: ReferencePipeline,
    own: Mapping[str, DiffusionPipeline],
    tensors: dict[str, dict[str, Any]],
    seed: int,
    watch: Watch,
) -> dict[str, Any]:
    probes: dict[str, Any] = {}
    for probe in probes_of(spec).values():
        watch(probe.id)
        component = spec.components[probe.component]
        wanted = {
            precision: pipe
            for precision, pipe in own.items()
            if runs_in(component, precision) and (precision == "float32" or probe.halves)
        }
        calls, exact, probes[probe.id] = ask(component, probe, truth, wanted, seed)
        keep(tensors.setdefault(probe.component, {}), probe.id, calls, exact)
    return probes


def _record_draws(
    spec: PipelineSpec,
    truth: ReferencePipeline,
    own: Mapping[str, DiffusionPipeline],
    tensors: dict[str, dict[str, Any]],
    probes: dict[str, Any],
    seed: int,
    watch: Watch,
) -> dict[str, Any]:
    draws: dict[str, Any] = {}
    kept = tensors.setdefault("draws", {})
    denoiser = spec.denoiser.name
    for draw in draws_of(spec, seed=seed).values():
        watch(f"draw {draw.id}")
        precisions = [p for p in own if p == "float32" or draw.halves]
        drawn, calls, draws[draw.id] = ask_draw(draw, truth, {p: own[p] for p in precisions})
        kept.update({f"draw/{draw.id}/{name}": array for name, array in drawn.items()})
        if draw.forced:
            _record_forced(draw, denoiser, calls, own, tensors, probes)
    return draws


def _record_drawn(
    spec: PipelineSpec,
    truth: ReferencePipeline,
    own: Mapping[str, DiffusionPipeline],
    tensors: dict[str, dict[str, Any]],
    probes: dict[str, Any],
    draws: dict[str, Any],
    seed: int,
    watch: Watch,
) -> None:
    """The trials and the picture that a seed draws, in every precision."""
    for id, trials in trials_of(spec, seed).items():
        watch(id)
        name = id.split("/")[1]
        wanted = {p: pipe for p, pipe in own.items() if runs_in(spec.components[name], p)}
        for number, trial in enumerate(trials):
            probe = trial_id(id, number)
            _, calls, exact, probes[probe] = ask_trial(trial, name, probe, truth, wanted)
            keep(tensors[name], probe, calls, exact)
    for draw in drawn_of(spec, seed).values():
        watch(f"draw {draw.id}")
        drawn, _, draws[draw.id] = ask_draw(draw, truth, own)
        tensors["draws"] |= {f"draw/{draw.id}/{name}": array for name, array in drawn.items()}


def _record_forced(
    draw: Draw,
    denoiser: str,
    calls: list[tuple[Arrays, Arrays]],
    own: Mapping[str, DiffusionPipeline],
    tensors: dict[str, dict[str, Any]],
    probes: dict[str, Any],
) -> None:
    """The denoiser's calls of a draw as a probe of their own: those of the sizes that most have.

    Sizes differ where guidance ends before the last step.
    """
    id = f"forced/{draw.id}"
    sizes = [_dims(own["float32"].spec, given) for given, _ in calls]
    dims = max(sizes, key=sizes.count)
    alike = [call for call, size in zip(calls, sizes, strict=True) if size == dims]
    inputs = [given for given, _ in alike]
    exact = [outputs for _, outputs in alike]
    probe = Probe(
        id=id,
        component=denoiser,
        dims=dims,
        calls=tuple(float(given["timestep"].flat[0]) for given in inputs),
    )
    probes[id] = probe_index(probe, inputs) | {
        "errors": {
            precision: errors_of(pipe, denoiser, inputs, exact)
            for precision, pipe in own.items()
            if precision == "float32" or draw.halves
        },
    }
    keep(tensors["draws"], id, inputs, exact)


def _dims(spec: PipelineSpec, inputs: Arrays) -> dict[str, int]:
    return spec.denoiser.signature.bind(inputs, component=spec.denoiser.name)
