"""What ``perfuse inspect``, ``perfuse backends`` and ``perfuse doctor`` print."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfuse.arrays.metadata import Metadata
    from perfuse.contract.source import Source
    from perfuse.report.portability import Finding

__all__ = [
    "print_backends",
    "print_examined",
    "print_findings",
    "print_metadata",
    "print_spec",
    "printable",
]


def print_backends(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows of ``perfuse backends`` for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("target", "state", "here", "from"):
        table.add_column(heading, no_wrap=heading != "here", overflow="fold")
    table.add_column("what")
    for row in rows:
        cells = (row["state"], _here(row), _origin(row))
        for device in row["devices"]:
            what = f"{device['description']} ({', '.join(device['precisions'])})"
            table.add_row(device["target"], *cells, escape(what))
        if not row["devices"]:
            table.add_row(row["backend"], *cells, escape(_why(row) or row["summary"]))
    Console().print(table)


def _here(row: Mapping[str, Any]) -> str:
    """What can be done on this machine: three words for three things."""
    words = ["exported"] if row["exports"] else []
    if row["interpreters"] or (row["interprets"] and row["state"] == "available"):
        words.append("interpreted")
    if row["state"] == "available" and not row["interprets"]:
        words.append("executed")
    return ", ".join(words)


def print_examined(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows of ``perfuse doctor`` for a person."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    for row in rows:
        seconds = f"  {row['seconds']:.1f} s" if "seconds" in row else ""
        console.print(f"[bold]{row['backend']}[/]  {row['state']}  {_origin(row)}{seconds}")
        engines = [f"{name} {version}" for name, version in row.get("engines", {}).items()]
        lines = [", ".join(engines), _why(row)]
        for target, answers in row.get("supports", {}).items():
            levels = ", ".join(f"{precision} {level}" for precision, level in answers.items())
            lines.append(f"{target}: {levels}")
        lines += [f"│ {line}" for line in row.get("output", ())]
        for line in lines:
            if line:
                console.print(f"  {escape(line)}")


_MARKS = {"fits": "", "changed": "*", "refused": "no", "unknown": "?"}


def print_findings(model: str, target: str, findings: "Sequence[Finding]", executed: str) -> None:
    """What ``perfuse inspect --for`` found, for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from perfuse.report.portability import TOGETHER, verdicts

    console = Console(highlight=False, soft_wrap=True)
    seen = f"executed on {executed}" if executed else "not executed by perfuse so far"
    console.print(f"[bold]{escape(model)}[/] for [bold]{target}[/], {seen}")
    for name, verdict in verdicts(findings).items():
        console.print(f"\n[bold]{name}[/]" + ("" if name == TOGETHER else f"  {verdict}"))
        table = Table.grid(padding=(0, 2), pad_edge=True)
        for row in findings:
            if row.component == name:
                text = escape(f"{row.found}: {row.action}" if row.action else row.found)
                table.add_row(f"  {row.topic}", _MARKS[row.standing], text)
        Console(highlight=False).print(table)
    console.print("\n* perfuse does something about it   ? only running tells")


def _origin(row: Mapping[str, Any]) -> str:
    return f"{row['distribution']} {row['version']}"


def _why(row: Mapping[str, Any]) -> str:
    return f"{row['reason']}. {row['remedy']}" if row["reason"] else ""


def print_spec(source: "Source") -> None:
    """A pipeline's spec for a person."""
    from rich.console import Console
    from rich.markup import escape

    spec, console = source.spec, Console(highlight=False, soft_wrap=True)
    height, width = spec.default_size
    console.print(f"[bold]{spec.class_name}[/]  {escape(source.model)}")
    console.print(f"tasks      {', '.join(spec.tasks)}")
    console.print(f"pictures   {width}×{height}, or other multiples of {spec.size_multiple}")
    scheduler = spec.scheduler.get("_class_name", "none named; give --scheduler-from")
    console.print(f"schedule   {scheduler}{_schedule(spec.scheduler)}")
    if spec.latents.downscale > 1:
        latents = spec.latents
        factor = getattr(latents, "scaling_factor", None)
        scaled = f", scaled by {factor:g}" if factor is not None else ""
        console.print(
            f"latents    {latents.channels} channels, 1/{latents.downscale} of the picture{scaled}"
        )
    if spec.tokenizers:
        console.print(f"tokenizers {', '.join(spec.tokenizers)}")
    sizes, exported_as = source.weight_bytes(), source.exported()
    for name, component in spec.components.items():
        signature, how = component.signature, ""
        if name in exported_as:
            exported = exported_as[name]
            signature, how = exported.signature, f"  {exported.format} {exported.precision}"
        count = sizes.get(name, sizes.get(component.folder))
        size = f"{count / 1e6:.1f} MB" if count is not None else ""
        console.print(f"\n[bold]{name}[/]  {component.class_name}{how}  {size}")
        for arrow, tensors in (("in ", signature.inputs), ("out", signature.outputs)):
            for tensor in tensors:
                shape = ", ".join(str(size) for size in tensor.shape)
                console.print(f"  {arrow} {tensor.name:26} {tensor.dtype:8} \\[{shape}]")


def _schedule(config: Any) -> str:
    shown = ("prediction_type", "beta_schedule", "num_train_timesteps", "timestep_spacing")
    return "".join(f"  {name}={config[name]}" for name in shown if name in config)


def printable(text: str) -> str:
    """A text from a file that may be anybody's, without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_metadata(path: str, metadata: "Metadata") -> None:
    """What a picture was drawn from and with, for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    height, width = metadata.size
    model = [metadata.model, metadata.revision, metadata.variant]
    scheduler = str(metadata.scheduler.get("_class_name"))
    rows = [
        ("model", " ".join(part for part in model if part is not None)),
        ("task", metadata.task),
        ("size", f"{width}×{height}"),
        ("seed", ", ".join(map(str, metadata.seeds))),
        *((name, str(value)) for name, value in metadata.inputs.items()),
        ("scheduler", f"{scheduler}{_schedule(metadata.scheduler)}"),
        ("backend", metadata.backend),
        ("precision", metadata.precision or ""),
        ("options", ", ".join(f"{name}={value}" for name, value in metadata.options.items())),
        ("transforms", ", ".join(metadata.transforms)),
        *(
            (name, f"{ran.target} ({ran.device}, {ran.precision}, {ran.engine})")
            for name, ran in metadata.components.items()
        ),
        ("unrecorded", ", ".join(metadata.unrecorded)),
        ("replaced", ", ".join(metadata.replaced)),
        ("versions", ", ".join(f"{name} {v}" for name, v in metadata.versions.items())),
    ]
    if metadata.pictures > 1:
        rows.insert(3, ("picture", f"{metadata.picture + 1} of {metadata.pictures}"))
    table = Table.grid(padding=(0, 2), pad_edge=False)
    for name, value in rows:
        if value:
            table.add_row(escape(printable(name)), escape(printable(value)))
    console = Console(highlight=False)
    console.print(f"[bold]{escape(path)}[/]")
    console.print(table)
