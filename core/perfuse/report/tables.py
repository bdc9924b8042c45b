"""What ``perfuse inspect`` prints."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perfuse.report.console import console, safe

if TYPE_CHECKING:
    from perfuse.report.portability import Finding
    from perfuse.sources.artifact import Artifact
    from perfuse.sources.checkpoint import Checkpoint

__all__ = ["print_findings", "print_spec", "weight_sizes"]


_MARKS = {"fits": "", "changed": "*", "refused": "no", "unknown": "?"}


def print_findings(model: str, target: str, findings: "Sequence[Finding]", executed: str) -> None:
    """What ``perfuse inspect --for`` found, for a person."""
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


def print_spec(source: "Checkpoint | Artifact") -> None:
    """A pipeline's spec for a person."""
    from rich.text import Text

    from perfuse.sources.artifact import Artifact

    spec, to = source.spec, console()
    height, width = spec.default_size
    to.print(Text.assemble((safe(spec.class_name), "bold"), f"  {safe(source.model)}"))
    to.print(f"tasks      {safe(', '.join(spec.tasks))}")
    to.print(f"pictures   {width}×{height}, or other multiples of {spec.size_multiple}")
    scheduler = spec.scheduler.get("_class_name", "none named; give --scheduler-from")
    to.print(f"schedule   {safe(scheduler)}{safe(_schedule(spec.scheduler))}")
    if spec.latents is not None:
        latents = spec.latents
        to.print(
            f"latents    {latents.channels} channels, 1/{latents.downscale} of the picture, "
            f"scaled by {latents.scaling_factor:g}"
        )
    if spec.tokenizers:
        to.print(f"tokenizers {safe(', '.join(spec.tokenizers))}")
    sizes = weight_sizes(source)
    for name, component in spec.components.items():
        signature, how = component.signature, ""
        if isinstance(source, Artifact) and name in source.manifest.components:
            exported = source.manifest.components[name]
            signature, how = exported.signature, f"  {exported.format} {exported.precision}"
        size = f"{sizes[component.folder if not how else name] / 1e6:.1f} MB"
        after = f"  {component.class_name}{how}  {size}"
        to.print(Text.assemble("\n", (safe(name), "bold"), safe(after)))
        for arrow, tensors in (("in ", signature.inputs), ("out", signature.outputs)):
            for tensor in tensors:
                shape = ", ".join(str(size) for size in tensor.shape)
                to.print(safe(f"  {arrow} {tensor.name:26} {tensor.dtype:8} [{shape}]"))


def weight_sizes(source: "Checkpoint | Artifact") -> dict[str, int]:
    """Bytes of weights: by folder for a checkpoint, from the headers; by component for an export."""
    from perfuse.sources.artifact import Artifact

    if isinstance(source, Artifact):
        files = source.manifest.files
        sizes = {}
        for name, component in source.manifest.components.items():
            folder, slash, _ = component.file.partition("/")
            # A dialect may put all components into one folder, and one into two parts.
            prefix = f"{name}/" if slash and folder == name else component.file.split("hunk1")[0]
            sizes[name] = sum(int(e["size"]) for f, e in files.items() if f.startswith(prefix))
        return sizes
    folders = dict.fromkeys(c.folder for c in source.spec.components.values())
    return {folder: source.weights(folder).total_bytes for folder in folders}


def _schedule(config: Any) -> str:
    shown = ("prediction_type", "beta_schedule", "num_train_timesteps", "timestep_spacing")
    return "".join(f"  {name}={config[name]}" for name in shown if name in config)
