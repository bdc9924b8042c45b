"""What ``perfuse inspect`` and ``perfuse backends`` print."""

from typing import Any

from perfuse.artifact import Artifact
from perfuse.checkpoint import Checkpoint
from perfuse.plugins import host, missing_modules, said

__all__ = ["backend_rows", "print_backends", "print_spec", "weight_sizes"]


def backend_rows() -> list[dict[str, Any]]:
    """One row a backend, and one a plugin that could not be loaded."""
    rows = []
    host().ask_all()
    for name, manifest in sorted(host().backends().items()):
        row: dict[str, Any] = {"backend": name, "state": "available", "summary": manifest.summary}
        missing = missing_modules(manifest.requires)
        if missing:
            row |= {
                "state": "not installed",
                "reason": f"{', '.join(missing)} not installed",
                "remedy": manifest.install,
                "devices": [],
            }
        else:
            try:
                row["devices"] = [
                    {
                        "target": f"{name}:{device.name}",
                        "description": device.description,
                        "precisions": list(device.precisions),
                    }
                    for device in host().backend(name).devices()
                ]
            except KeyboardInterrupt:
                raise
            except BaseException as exc:  # noqa: BLE001 - an engine may raise anything
                row |= {"state": "broken", "reason": said(exc), "devices": []}
                row["remedy"] = manifest.install or "reinstall its engine"
        rows.append(row)
    for plugin in host().rows:
        if plugin.state != "loaded":
            rows.append(
                {
                    "backend": plugin.name,
                    "state": plugin.state,
                    "summary": f"{plugin.distribution} {plugin.version}",
                    "reason": plugin.reason,
                    "remedy": plugin.remedy,
                    "devices": [],
                }
            )
    return rows


def print_backends(rows: list[dict[str, Any]]) -> None:
    """The rows as a table for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("target", "state", "what"):
        table.add_column(heading)
    for row in rows:
        if not row["devices"]:
            reason = f"{row['reason']}. {row['remedy']}"
            table.add_row(row["backend"], row["state"], escape(reason))
        for device in row["devices"]:
            what = f"{device['description']} ({', '.join(device['precisions'])})"
            table.add_row(device["target"], row["state"], escape(what))
    Console().print(table)


def print_spec(source: Checkpoint | Artifact) -> None:
    """A pipeline's spec for a person."""
    from rich.console import Console
    from rich.markup import escape

    spec, console = source.spec, Console(highlight=False, soft_wrap=True)
    height, width = spec.default_size
    console.print(f"[bold]{spec.class_name}[/]  {escape(source.model)}")
    console.print(f"tasks      {', '.join(spec.tasks)}")
    console.print(f"pictures   {width}×{height}, or other multiples of {spec.size_multiple}")
    console.print(f"schedule   {spec.scheduler.get('_class_name')}{_schedule(spec.scheduler)}")
    if spec.latents is not None:
        latents = spec.latents
        console.print(
            f"latents    {latents.channels} channels, 1/{latents.downscale} of the picture, "
            f"scaled by {latents.scaling_factor:g}"
        )
    if spec.tokenizers:
        console.print(f"tokenizers {', '.join(spec.tokenizers)}")
    sizes = weight_sizes(source)
    for name, component in spec.components.items():
        signature, how = component.signature, ""
        if isinstance(source, Artifact) and name in source.manifest.components:
            exported = source.manifest.components[name]
            signature, how = exported.signature, f"  {exported.format} {exported.precision}"
        size = f"{sizes[component.folder if not how else name] / 1e6:.1f} MB"
        console.print(f"\n[bold]{name}[/]  {component.class_name}{how}  {size}")
        for arrow, tensors in (("in ", signature.inputs), ("out", signature.outputs)):
            for tensor in tensors:
                shape = ", ".join(str(size) for size in tensor.shape)
                console.print(f"  {arrow} {tensor.name:26} {tensor.dtype:8} \\[{shape}]")


def weight_sizes(source: Checkpoint | Artifact) -> dict[str, int]:
    """Bytes of weights: by folder for a checkpoint, from the headers; by component for an export."""
    if isinstance(source, Artifact):
        sizes = dict.fromkeys(source.manifest.components, 0)
        for file, entry in source.manifest.files.items():
            name = file.partition("/")[0]
            if name in sizes:
                sizes[name] += int(entry["size"])
        return sizes
    folders = dict.fromkeys(c.folder for c in source.spec.components.values())
    return {folder: source.weights(folder).total_bytes for folder in folders}


def _schedule(config: Any) -> str:
    shown = ("prediction_type", "beta_schedule", "num_train_timesteps", "timestep_spacing")
    return "".join(f"  {name}={config[name]}" for name in shown if name in config)
