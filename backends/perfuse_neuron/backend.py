"""Loads programs compiled for AWS Neuron onto the NeuronCores of this machine.

Never executed: no instance was at hand. ``runtime`` and ``perfuse_exporters.neuron.sdk`` hold every
call that only an instance can answer.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from perfuse.backend import (
    PRECISIONS,
    Backend,
    Component,
    Device,
    Options,
    Program,
    Request,
    Support,
    SupportLevel,
    Target,
)
from perfuse.errors import (
    ArtifactError,
    DeviceNotFoundError,
    EngineMissingError,
    ExecutionError,
    InputError,
)
from perfuse.run import exported
from perfuse.sources import ArtifactStore
from perfuse.spec import ComponentSpec
from perfuse_exporters.neuron import sdk
from perfuse_exporters.neuron.exporter import OPTIONS, settings_of
from perfuse_exporters.neuron.layout import CONFIG
from perfuse_neuron import runtime
from perfuse_neuron.program import NeuronProgram
from perfuse_neuron.trust import check_trust

__all__ = ["Neuron"]

_OWN: Options = {
    #: Whether both halves of a guided batch run on one core, or each on a core of its own.
    "guidance": ("batch", "split"),
    #: SHA-256 sums of files that no manifest vouches for, with commas between them.
    "trust": None,
    #: A checkpoint whose weights to put in, where a file was compiled with its weights apart.
    "weights": None,
}


class Neuron(Backend):
    """NeuronCores. A device is a core's number, as this process counts them."""

    name: ClassVar[str] = "neuron"
    #: Its own options, and the exporter's for components that have to be exported first.
    options: ClassVar[Options] = {**_OWN, **OPTIONS}

    def devices(self) -> Sequence[Device]:
        """The cores that this process may use.

        Raises:
            EngineMissingError: the SDK is there in part.
        """
        missing = sdk.runtime_missing()
        if missing is not None:
            raise EngineMissingError(f"NeuronCores were looked for; {missing}")
        return [
            Device(name=str(core), description=f"NeuronCore {core}", precisions=PRECISIONS)
            for core in range(sdk.cores())
        ]

    def supports(self, request: Request) -> Support:
        """Every component at one size, in float32 with products in the precision asked for."""
        if request.precision not in PRECISIONS:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"it computes in {', '.join(PRECISIONS)}.",
            )
        if request.sizes or request.any_size:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason="a Neuron program takes one size; fix it when the model is exported: perfuse "
                "export --to neuron --height H --width W.",
            )
        return Support(level=SupportLevel.FULL)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Compile the component if it is not a file yet, load it, and run it once.

        Options: ``guidance=batch`` runs a denoiser's two halves as one batch on one core,
        ``guidance=split`` each on a core of its own; ``trust=SHA256`` loads a file that no manifest
        vouches for; ``weights=CHECKPOINT`` puts other weights in. A checkpoint takes the
        exporter's options, too.

        Raises:
            EngineMissingError: the SDK is there in part.
            DeviceNotFoundError: there is no such core.
            UnsupportedError: what ``supports`` says no to.
            InputError: an option is unknown, or cannot be used with this file.
            ArtifactError: nobody vouches for the file, or it is damaged.
            ExportError: the component could not be compiled.
            ExecutionError: it could not be loaded or run.
        """
        options = self.switches(target)
        if component.build is None:
            component.with_options({n: v for n, v in options.items() if n in OPTIONS})
        core = self._core(target.device)
        self.check(component, target)
        on = self._cores(component, core, options.get("guidance", "batch"))
        if component.build is not None:
            component, path = _export(component, options, len(on), store)
        else:
            path = exported(component, self.name, store)
            check_trust(path, _trusted(options.get("trust", "")))
        neuron = _neuron_config(path)
        program = NeuronProgram(
            _on_all(component, len(on)), _load(path, on), path=path, neuron=neuron, on=on
        )
        if "weights" in options:
            program.replace_weights(_weights(component, options["weights"]))
        return program

    def _core(self, asked: str | None) -> int:
        """A core's number.

        Raises:
            DeviceNotFoundError: there is no such core.
        """
        names = [device.name for device in self.devices()]
        if not names:
            raise DeviceNotFoundError(
                "A NeuronCore was asked for; the driver shows none to this process. Use an inf2 or "
                "trn instance with aws-neuronx-dkms installed, and see NEURON_RT_VISIBLE_CORES."
            )
        name = names[0] if asked is None else asked
        if name not in names:
            raise DeviceNotFoundError(
                f"NeuronCore {name} was asked for; this process may use {', '.join(names)}. Name one "
                "of these; guidance=split takes two that follow each other."
            )
        return int(name)

    def _cores(self, component: Component, core: int, guidance: str) -> tuple[int, ...]:
        """The cores for a component: two for a guided denoiser that is split."""
        batch = component.static.get("batch", 1)
        guided = component.spec.branches == 2 and (component.build is None or batch % 2 == 0)
        if guidance == "batch" or not guided:
            return (core,)
        self._core(str(core + 1))
        return core, core + 1


def _export(
    component: Component, options: Mapping[str, str], cores: int, store: ArtifactStore
) -> tuple[Component, Path]:
    """A checkpoint's component as one core runs it, and its file."""
    switches = {name: value for name, value in options.items() if name in OPTIONS}
    static = dict(component.static)
    if cores > 1:
        static["batch"] //= cores
    component = dataclasses.replace(component, static=static, options=switches)
    settings_of(component)  # says at once what is wrong with an option
    return component, exported(component, Neuron.name, store)


def _on_all(component: Component, cores: int) -> Component:
    """The component with the batch of all cores together."""
    if cores == 1:
        return component
    static = {**component.static, "batch": component.static["batch"] * cores}
    return dataclasses.replace(component, static=static)


def _trusted(text: str) -> frozenset[str]:
    """SHA-256 sums.

    Raises:
        InputError: one is none.
    """
    sums = [part.strip().lower() for part in text.split(",") if part.strip()]
    for one in sums:
        if not re.fullmatch("[0-9a-f]{64}", one):
            raise InputError(
                f"The option trust was given {one!r}; it takes the SHA-256 sums of files, 64 "
                "hexadecimal digits each, with commas between them."
            )
    return frozenset(sums)


def _neuron_config(path: Path) -> Mapping[str, Any]:
    """``config.json["neuron"]`` beside a file.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    file = path.with_name(CONFIG)
    try:
        neuron = json.loads(file.read_text(encoding="utf-8"))["neuron"]
        if not isinstance(neuron, dict):
            raise TypeError(f"an object was expected, not {neuron!r}")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ArtifactError(
            f"{file} was to say what {path.name} was compiled for; {type(exc).__name__}: {exc}. "
            "Export the model again."
        ) from exc
    return neuron


def _load(path: Path, on: Sequence[int]) -> Any:
    try:
        return runtime.load(path, on)
    except Exception as exc:
        raise ExecutionError(
            f"{path} was to be loaded onto neuron:{','.join(map(str, on))}; torch-neuronx said: "
            f"{runtime.said(exc)}. Compile it again with the SDK of this machine, or free the core."
        ) from exc


def _weights(component: Component, model: str) -> Any:
    """The weights of a checkpoint's component, as the compiled module names them.

    Raises:
        InputError: the checkpoint's component is another one.
        CheckpointError: it cannot be read.
    """
    from perfuse.sources import Checkpoint
    from perfuse_exporters.neuron.exporter import traced

    other = Checkpoint.open(model)
    spec = other.spec.components.get(component.name)
    if spec is None or _architecture(spec) != _architecture(component.spec):
        raise InputError(
            f"The weights of {component.name} were to come from {model}; that one has "
            f"{'another' if spec is not None else 'no'} {component.name}. Name a checkpoint of the "
            "same architecture."
        )
    return traced(other.component(component.name)).state_dict()


def _architecture(spec: ComponentSpec) -> tuple[str, dict[str, Any]]:
    """What two components must share to run on one program: all of a config but its history."""
    history = ("dtype", "torch_dtype", "transformers_version", "architectures")
    config = {k: v for k, v in spec.config.items() if not k.startswith("_") and k not in history}
    return spec.class_name, config
