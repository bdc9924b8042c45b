"""The output of ``perfuse inspect``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perfuse.contract.quantized import SCHEMES
from perfuse.memory import most_memory
from perfuse.report.console import console, safe

if TYPE_CHECKING:
    from perfuse.arrays.metadata import Metadata
    from perfuse.contract.source import Source
    from perfuse.report.portability import Finding

__all__ = ["print_bridged", "print_findings", "print_memory", "print_metadata", "print_spec"]


_MARKS = {"fits": "", "changed": "*", "refused": "no", "unknown": "?"}


def print_findings(model: str, target: str, findings: "Sequence[Finding]", executed: str) -> None:
    """Print the findings of ``perfuse inspect --for`` as text."""
    from rich.table import Table
    from rich.text import Text

    from perfuse.report.portability import TOGETHER, verdicts

    to, table_to = console(), console(wrap=True)
    seen = f", executed on {executed}" if executed else ", not executed by perfuse so far"
    to.print(Text.assemble((safe(model), "bold"), " for ", (safe(target), "bold"), safe(seen)))
    for name, verdict in verdicts(findings).items():
        after = "" if name == TOGETHER else f"  {verdict}"
        to.print(Text.assemble("\n", (safe(name), "bold"), safe(after)))
        table = Table.grid(padding=(0, 2), pad_edge=True)
        for row in findings:
            if row.component == name:
                text = f"{row.found}: {row.action}" if row.action else row.found
                table.add_row(f"  {safe(row.topic)}", _MARKS[row.standing], safe(text))
        table_to.print(table)
    to.print("\n* perfuse does something about it   ? only running tells")


def print_spec(source: "Source") -> None:
    """Print a pipeline's spec as text."""
    from rich.text import Text

    from perfuse.sources.configs_alone import ConfigsAlone

    spec, to = source.spec, console()
    counted = source.parameters() if isinstance(source, ConfigsAlone) else {}
    height, width = spec.default_size
    to.print(Text.assemble((safe(spec.class_name), "bold"), f"  {safe(source.model)}  native"))
    if source.layout is not None:
        to.print(f"layout     {safe(source.layout)}, recognised by its tensors")
    to.print(f"tasks      {safe(', '.join(spec.tasks))}")
    to.print(f"pictures   {width}×{height}, or other multiples of {spec.size_multiple}")
    scheduler = spec.scheduler.get("_class_name", "none named; give --scheduler-from")
    to.print(f"schedule   {safe(scheduler)}{safe(_schedule(spec.scheduler))}")
    if spec.latents.downscale > 1:
        latents = spec.latents
        factor = getattr(latents, "scaling_factor", None)
        scaled = f", scaled by {factor:g}" if factor is not None else ""
        to.print(
            f"latents    {latents.channels} channels, 1/{latents.downscale} of the picture{scaled}"
        )
    if spec.tokenizers:
        to.print(f"tokenizers {safe(', '.join(spec.tokenizers))}")
    if counted:
        to.print("weights    not there; counted from the configs")
    sizes, exported_as = source.weight_bytes(), source.exported()
    for name, component in spec.components.items():
        signature, how = component.signature, ""
        if name in exported_as:
            exported = exported_as[name]
            signature, how = exported.signature, f"  {exported.format} {exported.precision}"
        count = sizes.get(name, sizes.get(component.folder))
        size = f"  {count / 1e6:.1f} MB" if count is not None else ""
        if component.folder in counted:
            size = f"  {_parameters(counted[component.folder])} parameters"
        after = f"  {component.class_name}{how}{size}"
        to.print(Text.assemble("\n", (safe(name), "bold"), safe(after)))
        for arrow, tensors in (("in ", signature.inputs), ("out", signature.outputs)):
            for tensor in tensors:
                shape = ", ".join(str(size) for size in tensor.shape)
                to.print(safe(f"  {arrow} {tensor.name:26} {tensor.dtype:8} [{shape}]"))

    if counted:
        _print_counted(counted, most_memory())


def _print_counted(counted: Mapping[str, int], most: int | None) -> None:
    """Print what weights would take in each precision, and whether so many bytes hold them."""
    bits = {
        "float32": 32,
        "bfloat16": 16,
        **{name: SCHEMES[name].bits for name in ("int8", "int4")},
    }
    together = sum(counted.values())
    rows = [
        [safe(name), _parameters(count), *(_gb(count * each // 8) for each in bits.values())]
        for name, count in {**counted, "together": together}.items()
    ]
    rows.insert(0, ["weights would take", "", *bits])
    if most is not None:
        fits = {True: "fits", False: "in turns"}
        largest = max(counted.values())
        found = [
            fits[together * each // 8 <= most] if largest * each // 8 <= most else "no"
            for each in bits.values()
        ]
        rows.append([f"of {_gb(most)} here", "", *found])
    width, to = max(len(row[0]) for row in rows), console()
    to.print()
    for row in rows:
        to.print(f"{row[0]:{width}}" + "".join(f"{cell:>10}" for cell in row[1:]))
    if "in turns" in rows[-1]:
        to.print("in turns: the largest fits alone; --memory says what is there at which time")


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def print_memory(
    model: str, whole: int, least: int, budget: int, plan: Sequence[Mapping[str, Any]]
) -> None:
    """Print which components' weights are in memory at which time of a draw."""
    to = console()
    to.print(safe(f"{model}: weights of {_gb(whole)}; it needs {_gb(least)} at least"))
    to.print(
        f"{_gb(budget)} for weights as they are loaded, the rest for what lies between layers:"
    )
    for row in plan:
        runs, there = ", ".join(row["runs"]), ", ".join(row["in_memory"])
        to.print(safe(f"  {runs:<24} {_gb(row['bytes']):>9}  in memory: {there}"))
        for name, room in row["in_pieces"].items():
            to.print(safe(f"{'':37} {name} in pieces, {_gb(room)} of its weights at a time"))


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_bridged(found: Mapping[str, Any]) -> None:
    """Print a model that runs through Diffusers: its class and its components."""
    from rich.text import Text

    to = console()
    named = found["class_name"]
    name = named if isinstance(named, str) else ".".join(map(str, named or ["?"]))
    to.print(Text.assemble((safe(name), "bold"), f"  {safe(found['model'])}  bridged"))
    to.print("Diffusers opens it; a backend runs its modules: --backend openvino.\n")
    for component, one in found["components"].items():
        count = one["weight_bytes"]
        size = f"  {count / 1e6:.1f} MB" if count else ""
        after = f"  {one['library']}.{one['class']}{size}"
        to.print(Text.assemble((safe(component), "bold"), safe(after)))


def _schedule(config: Any) -> str:
    shown = ("prediction_type", "beta_schedule", "num_train_timesteps", "timestep_spacing")
    return "".join(f"  {name}={config[name]}" for name in shown if name in config)


def print_metadata(path: str, metadata: "Metadata") -> None:
    """Print a picture's metadata as text."""
    from rich.text import Text

    to, rows = console(), [row for row in _metadata_rows(metadata) if row[1]]
    width = max(len(safe(name)) for name, _ in rows)
    to.print(Text(safe(path), "bold"))
    for name, value in rows:
        to.print(f"{safe(name):{width}}  {safe(value)}")


def _metadata_rows(metadata: "Metadata") -> list[tuple[str, str]]:
    height, width = metadata.size
    model = [metadata.model, metadata.revision, metadata.variant]
    number = f"{metadata.picture + 1} of {metadata.pictures}" if metadata.pictures > 1 else ""
    scheduler = str(metadata.scheduler.get("_class_name"))
    return [
        ("model", " ".join(part for part in model if part is not None)),
        ("task", metadata.task),
        ("picture", number),
        ("size", f"{width}×{height}"),
        ("seed", ", ".join(map(str, metadata.seeds))),
        *((name, str(value)) for name, value in metadata.inputs.items()),
        ("scheduler", f"{scheduler}{_schedule(metadata.scheduler)}"),
        ("backend", metadata.backend),
        ("precision", metadata.precision or ""),
        ("options", ", ".join(f"{name}={value}" for name, value in metadata.options.items())),
        ("transforms", ", ".join(metadata.transforms)),
        ("approximate", ", ".join(metadata.approximate)),
        ("LoRAs", ", ".join(f"{one['file']}:{one['weight']}" for one in metadata.loras)),
        *(
            (name, f"{ran.target} ({ran.device}, {ran.precision}, {ran.engine})")
            for name, ran in metadata.components.items()
        ),
        ("unrecorded", ", ".join(metadata.unrecorded)),
        ("replaced", ", ".join(metadata.replaced)),
        ("versions", ", ".join(f"{name} {v}" for name, v in metadata.versions.items())),
    ]
