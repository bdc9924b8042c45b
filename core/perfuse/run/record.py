"""Attaches metadata to generated pictures: all that is needed to generate them again."""

import dataclasses
import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import perfuse
from perfuse.arrays.metadata import Metadata, Ran, Value, attach
from perfuse.contract.steps import REQUIRED, Event, Task

if TYPE_CHECKING:
    from perfuse.run.parts import Parts
    from perfuse.schedulers import Scheduler

__all__ = ["recorded"]

#: Inputs that do not change the picture, or are recorded as its seeds.
_APART = ("seed", "generator", "output_type")


def recorded(
    pipe: "Parts", task: Task, given: Mapping[str, Any], events: Iterable[Event]
) -> Iterator[Event]:
    """Pass on the events of a call, with metadata attached to the PIL pictures in them.

    Args:
        pipe: The pipeline.
        task: The task that it runs.
        given: The inputs of the call.
        events: The events of the task.
    """
    for event in events:
        if "images" in event.state:
            _attach(pipe, task, given, event.state)
        yield event


def _attach(pipe: "Parts", task: Task, given: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    images = state["images"]
    if not isinstance(images, list):
        return  # arrays cannot carry metadata
    metadata = _metadata(pipe, task, given, state)
    for index, image in enumerate(images):
        size = (image.height, image.width)
        attach(image, dataclasses.replace(metadata, picture=index, size=size))


def _metadata(
    pipe: "Parts", task: Task, given: Mapping[str, Any], state: Mapping[str, Any]
) -> Metadata:
    """The metadata that all pictures of a call share; ``_attach`` adds the index and the size."""
    inputs, unrecorded = _inputs(task, given)
    scheduler, lost = _scheduler(pipe.scheduler)
    source, images = pipe.source, state["images"]
    loras, lost_loras = _loras(pipe)
    tiled = ("vae_tiling",) if pipe.asks("vae_tiling", "use_tiling") else ()
    return Metadata(
        model=_model(source),
        revision=source.revision,
        variant=getattr(source, "variant", None),
        task=task.name,
        inputs=inputs,
        seeds=tuple(None if seed is None else int(seed) for seed in state.get("seeds", ())),
        picture=0,
        pictures=len(images),
        size=(0, 0),
        scheduler=scheduler,
        backend=str(pipe.placement),
        precision=pipe.precision,
        options=dict(pipe.options),
        transforms=pipe.transforms,
        approximate=pipe.approximate,
        components=_components(pipe),
        loras=loras,
        unrecorded=(*unrecorded, *lost, *lost_loras, *tiled),
        replaced=pipe.replaced,
        versions={
            "perfuse": perfuse.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def _loras(pipe: "Parts") -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """The adapters that count, and the names of those that no file and one number tell of."""
    found = pipe.loras.recorded(pipe.lora_factor)
    told = [one for one in found if one["file"] is not None and one["weight"] is not None]
    lost = tuple(f"the LoRA {one['name']}" for one in found if one not in told)
    return tuple({n: v for n, v in one.items() if n != "name"} for one in told), lost


def _scheduler(scheduler: "Scheduler") -> tuple[dict[str, Value], tuple[str, ...]]:
    """Its config, and the names of non-default settings that JSON cannot hold."""
    config = {"_class_name": type(scheduler).__name__}
    plain = {name: _plain(value) for name, value in scheduler.config.items()}
    written = {
        n: value for n, value in plain.items() if value is not None or scheduler.config[n] is None
    }
    usual = {field.name: field.default for field in dataclasses.fields(scheduler.Settings)}
    lost = [n for n, value in usual.items() if n not in written and scheduler.config[n] != value]
    return {**written, **config}, tuple(f"the scheduler's {name}" for name in lost)


def _model(source: Any) -> str:
    """The name to open the source with again; a bundled model's is no folder's."""
    from perfuse.shapes import BUNDLED

    named = BUNDLED.get(source.model)
    other = named is not None and getattr(source, "path", None) != named.folder
    return f"./{source.model}" if other else str(source.model)


def _components(pipe: "Parts") -> dict[str, Ran]:
    found = {}
    for name, program in pipe.programs().items():
        report = program.report()
        found[name] = Ran(
            target=str(pipe.target(name)),
            device=report.device,
            precision=report.precision,
            engine=report.engine,
        )
    return found


def _inputs(task: Task, given: Mapping[str, Any]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The inputs with defaults filled in, and the names of those that JSON cannot hold."""
    values: dict[str, Value] = {}
    unrecorded = []
    defaults = {name: one.default for name, one in task.inputs.items()}
    for name, value in {**defaults, **given}.items():
        if value is None or value is REQUIRED or name in _APART:
            continue
        plain = _plain(value)
        if plain is None:
            unrecorded.append(name)
        else:
            values[name] = plain
    if given.get("generator") is not None:
        unrecorded.append("generator")
    return values, tuple(unrecorded)


def _plain(value: Any) -> Value:
    """A string, a number or a list of them as JSON has it; ``None`` for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.size <= 1000:
        value = value.tolist()
    if isinstance(value, list | tuple):
        found = [_plain(one) for one in value]
        return None if any(one is None or isinstance(one, list) for one in found) else found
    return None
