"""Compiles a component for AWS Neuron: ``model.neuron`` and ``config.json``, as optimum-neuron does.

Inputs, outputs and weights are float32 in the file whatever the precision; the precision is what
neuronx-cc casts the operands of matrix products to. That is how optimum-neuron compiles Stable
Diffusion (``--auto_cast matmul --auto_cast_type bf16``).
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from perfuse.backend import PRECISIONS, Component, Exporter, Options
from perfuse.errors import ExportError
from perfuse.models import latents_of
from perfuse.progress import say
from perfuse.sources import ArtifactStore
from perfuse_exporters.neuron import sdk
from perfuse_exporters.neuron.layout import CONFIG, MODEL, input_names, neuron_config, treated_as

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

__all__ = ["OPTIONS", "NeuronExporter", "settings_of", "traced"]

OPTIONS: Mapping[str, tuple[str, ...]] = {
    #: Which float32 operations are cast: none, those of the matrix engine, all.
    "auto_cast": ("none", "matmult", "all"),
    "auto_cast_type": ("bf16", "fp16", "tf32", "fp8_e4m3"),
    #: The instance type to compile for; by default this machine's, if it has Neuron devices.
    "instance_type": ("inf2", "trn1", "trn1n", "trn2"),
    #: Weights that are not part of the program can be replaced without compiling again.
    "inline_weights_to_neff": ("true", "false"),
    "optlevel": ("1", "2", "3"),
}
_CASTS = {
    "float32": {"auto_cast": "none", "auto_cast_type": "bf16"},
    "float16": {"auto_cast": "matmult", "auto_cast_type": "fp16"},
    "bfloat16": {"auto_cast": "matmult", "auto_cast_type": "bf16"},
}
_LINES = 8  # of the compiler's output, in a message
_RECORD, _LOGS = "compiled.json", "neuronx-cc-logs"


def settings_of(component: Component) -> dict[str, str]:
    """All options of the exporter for a component; ``instance_type`` only if it was given.

    Raises:
        ExportError: its precision is none that the compiler can cast to.
    """
    if component.precision not in _CASTS:
        raise ExportError(
            f"{component.name} was to be exported to Neuron in {component.precision}; "
            f"choose one of {', '.join(PRECISIONS)}."
        )
    defaults = {**_CASTS[component.precision], "inline_weights_to_neff": "true", "optlevel": "2"}
    return {**defaults, **component.options}


def traced(component: Component) -> "nn.Module":
    """The module to compile, in float32: a copy that shares the weights.

    Tracing moves parameters to another device and back, and the module may be the user's own.
    """
    import torch

    from perfuse.capture import build, replace_tensors
    from perfuse_exporters.neuron.graph import Traced

    module = replace_tensors(
        build(component), lambda t: t.to(torch.float32) if t.is_floating_point() else t
    )
    return Traced(module, component).eval()


class NeuronExporter(Exporter):
    """Writes files that optimum-neuron and perfuse load on Inferentia and Trainium.

    A compiled graph is kept in the cache under its graph, sizes and options and the compiler's
    version, and under its weights where these are part of it: the text encoders of a second size,
    or of weights kept apart, are not compiled again.
    """

    format: ClassVar[str] = "neuron"
    fixed: ClassVar[bool] = True
    options: ClassVar[Options] = OPTIONS
    indexed: ClassVar[bool] = True

    def export(self, component: Component, folder: Path) -> Path:
        settings = settings_of(component)
        _check_sizes(component)
        target = settings.get("instance_type")
        if target is None and not sdk.cores():
            raise ExportError(
                f"{component.name} was to be compiled for Neuron; this machine has no Neuron device "
                "that says for which. Name it: --option instance_type=inf2 "
                f"(or {', '.join(OPTIONS['instance_type'][1:])})."
            )
        missing = sdk.compiler_missing(target)
        if missing is not None:
            raise ExportError(f"{component.name} was to be compiled for Neuron; {missing}")
        path = folder / MODEL
        _compiled(component, settings, path)
        config = neuron_config(component, settings, sdk.compiler_version())
        _write_json(folder / CONFIG, config)
        return path

    def arrange(
        self,
        folder: Path,
        components: Mapping[str, Component],
        files: Mapping[str, Path],
        *,
        model: str,
    ) -> Mapping[str, Path]:
        """What of a component's config another one knows: the size of a latent in pixels."""
        halves = [
            one for one in components.values() if treated_as(one.spec.class_name) == "autoencoder"
        ]
        for name, component in components.items():
            if halves and treated_as(component.spec.class_name) == "unet":
                config = json.loads((folder / name / CONFIG).read_text(encoding="utf-8"))
                scale = latents_of({one.name: one.spec for one in halves}).downscale
                config["neuron"]["static_vae_scale_factor"] = scale
                _write_json(folder / name / CONFIG, config)
        return files

    def unsupported(self, program: "ExportedProgram", component: Component) -> Mapping[str, str]:
        """Operators that the compiler documents as unsupported; see ``lint.lint`` for changed ones.

        That every size must be fixed is ``fixed``, and no finding about one operator.
        """
        from perfuse_exporters.neuron.lint import lint

        return {
            f"{one.what} at {one.where}" if one.where else one.what: one.reason
            for one in lint(program, component)
            if one.stops and one.what.startswith("aten.")
        }


def _check_sizes(component: Component) -> None:
    if component.sizes:
        raise ExportError(
            f"{component.name} was to be exported for {len(component.sizes)} sizes; a Neuron program "
            "takes one. Export it once for each: --height H --width W."
        )
    free = component.signature.dims
    if free:
        raise ExportError(
            f"{component.name} was to be exported to Neuron with {', '.join(free)} open; a Neuron "
            "program takes one size. Fix it: --height H --width W --batch B."
        )


def _compiled(component: Component, settings: Mapping[str, str], path: Path) -> None:
    """Write the compiled component to a path: from the cache, or compiled now and cached."""
    apart = settings["inline_weights_to_neff"] == "false"
    module = traced(component)
    inputs = _inputs(component)
    arguments = _arguments(component, settings)
    weights = _digest_of_weights(module)
    key = {
        "graph": _digest_of_graph(component, module, inputs),
        "arguments": arguments,
        "machine": None if "instance_type" in settings else sdk.machine(),
        "weights": None if apart else weights,
        "compiler": sdk.compiler_version(),
        "runtime": sdk.runtime_version(),
    }

    store, label = ArtifactStore.default(), f"{component.name}-neuronx-cc"
    # Outside of what is made, so that it is there when nothing was; and where the cache is cleared.
    log = store.root / _LOGS / f"{store.folder(label, key).name}.log"

    def make(partial: Path) -> None:
        say(f"Compiling {component.name} for Neuron; what the compiler says is in {log}")
        log.parent.mkdir(parents=True, exist_ok=True)
        program = _compile(component, module, inputs, arguments, log, apart=apart)
        sdk.save(program, partial / MODEL)
        _write_json(partial / _RECORD, {"weights": weights})

    kept = store.get_or_make(label, key, make)
    held = json.loads((kept / _RECORD).read_text(encoding="utf-8"))["weights"]
    if held == weights:
        shutil.copyfile(kept / MODEL, path)
        return
    say(f"Putting the weights of {component.name} into a program that is compiled already")
    program = sdk.read(kept / MODEL)
    sdk.replace_weights(program, module.state_dict())
    sdk.save(program, path)


def _inputs(component: Component) -> "tuple[Tensor, ...]":
    """Example inputs in the file's order."""
    import torch

    from perfuse.capture import example_inputs

    examples = example_inputs(component, torch.float32)
    named = dict(zip(component.spec.signature.input_names, examples, strict=True))
    return tuple(named[name] for name in input_names(component.spec))


def _compile(
    component: Component,
    module: "nn.Module",
    inputs: "tuple[Tensor, ...]",
    arguments: list[str],
    log: Path,
    *,
    apart: bool,
) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return sdk.compile_component(
                module,
                inputs,
                arguments=arguments,
                folder=Path(folder),
                inline_weights=not apart,
                log=log,
            )
        except Exception as exc:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise ExportError(
                f"{component.name} was to be compiled by neuronx-cc {sdk.compiler_version()} "
                f"with {' '.join(arguments)}; it failed: {exc}\n"
                + "\n".join(f"  {line}" for line in said[-_LINES:])
                + f"\nAll that it said is in {log}. `perfuse inspect --for neuron` names what its "
                "documentation refuses."
            ) from exc


def _arguments(component: Component, settings: Mapping[str, str]) -> list[str]:
    """neuronx-cc's arguments, as optimum-neuron's, without those that only speed up loading."""
    arguments = ["--auto-cast", settings["auto_cast"]]
    if settings["auto_cast"] != "none":
        arguments += ["--auto-cast-type", settings["auto_cast_type"]]
    arguments += ["--optlevel", settings["optlevel"]]
    if "instance_type" in settings:
        arguments += ["--target", settings["instance_type"]]
    model = {"text": "transformer", "unet": "unet-inference"}.get(
        treated_as(component.spec.class_name)
    )
    return [*arguments, "--model-type", model] if model is not None else arguments


def _digest_of_graph(
    component: Component, module: "nn.Module", inputs: "tuple[Tensor, ...]"
) -> str:
    """Of operators, their arguments, sizes and types, and of constants; not of weights.

    Raises:
        ExportError: torch.export cannot capture the module.
    """
    import torch

    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs, strict=False)
    except Exception as exc:
        raise ExportError(
            f"{component.name} ({component.spec.class_name}) was to be captured; torch.export said: "
            f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
        ) from exc
    digest = hashlib.sha256()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        made = value if isinstance(value, tuple | list) else (value,)
        shapes = [(str(t.dtype), tuple(t.shape)) for t in made if isinstance(t, torch.Tensor)]
        digest.update(
            repr((node.name, node.op, str(node.target), node.args, node.kwargs, shapes)).encode()
        )
    for name, constant in sorted(program.constants.items()):
        if isinstance(constant, torch.Tensor):
            digest.update(name.encode())
            digest.update(_bytes(constant))
    return digest.hexdigest()


def _digest_of_weights(module: "nn.Module") -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: "Tensor") -> bytes:
    return tensor.detach().numpy().tobytes()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
