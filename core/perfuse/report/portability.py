"""Compares what a model needs with what a target supports; needs neither target nor engine.

A backend says what its devices take in a ``Limits``, which its manifest names; ``report`` reads it,
captures each component's graph and says of each what fits, what perfuse changes, and what does not
run. Only running says that something runs: this says what would stop it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Any

from perfuse.contract.component import Component
from perfuse.contract.exporter import Exporter
from perfuse.contract.hooks import BackendManifest
from perfuse.contract.limits import Limits
from perfuse.contract.source import Source
from perfuse.contract.target import Placement, Target
from perfuse.errors import (
    BackendNotFoundError,
    DeviceNotFoundError,
    ExportError,
    PluginError,
)
from perfuse.plugins.host import host, missing_modules, resolve, said
from perfuse.plugins.importing import guarded

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


__all__ = ["Finding", "examine", "limits_of", "report", "verdicts"]

#: The component of a finding about all components together.
TOGETHER = "together"
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check of one component."""

    component: str
    #: ``precision``, ``dtypes``, ``operators``, ``rank``, ``elements``, ``sizes``, ``batch``,
    #: ``weights``, ``format`` or ``note``.
    topic: str
    #: ``fits``, ``changed`` (perfuse does something about it), ``refused`` or ``unknown``.
    standing: str
    #: What the model has.
    found: str
    #: What perfuse does about it, or what the user can do.
    action: str = ""
    #: The document that gives the limit.
    source: str = ""


def limits_of(target: Target) -> tuple[str, Limits | None]:
    """A target's full name, and the limits of its device if the backend declares any.

    A target without a device stands for the first that the backend's limits name.

    Raises:
        BackendNotFoundError: no plugin offers the backend.
        DeviceNotFoundError: the limits name no such device.
        PluginError: the manifest's ``limits`` cannot be imported, or are not limits by device.
    """
    manifest = _manifest(target.backend)
    if not manifest.limits:
        return str(target), None
    with guarded(
        lambda why: PluginError(
            f"Backend {target.backend!r} names {manifest.limits} for what its devices take; "
            f"loading that raised {why}. Update or uninstall its plugin."
        )
    ):
        known = dict(resolve(manifest.limits))  # type: ignore[call-overload]
    if not known or not all(isinstance(one, Limits) for one in known.values()):
        raise PluginError(
            f"Backend {target.backend!r} names {manifest.limits} for what its devices take, which "
            "is not a dict of device to perfuse.Limits. Update or uninstall its plugin."
        )
    if target.device is None:
        pattern, limits = next(iter(known.items()))
        return f"{target.backend}:{pattern.rstrip('*')}".rstrip(":"), limits
    for pattern, limits in known.items():
        if fnmatchcase(target.device.lower(), pattern.lower()):
            return str(target), limits
    raise DeviceNotFoundError(
        f"Device {target.device!r} of {target.backend} was asked about; what is known is of "
        f"{', '.join(pattern.rstrip('*') for pattern in known)}. Name one of these."
    )


def _manifest(backend: str) -> BackendManifest:
    backends = host().backends()
    if backend not in backends:
        raise BackendNotFoundError(
            f"Backend {backend!r} was asked about; known: {', '.join(sorted(backends))}. "
            "`perfuse backends` lists the plugins that cannot be used."
        )
    return backends[backend]


def report(
    source: Source,
    target: Target,
    *,
    precision: str | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int | None = None,
    memory: int | None = None,
) -> list[Finding]:
    """Check each component of a model against a target. Weights are mapped, but not read.

    Args:
        source: A checkpoint or an exported folder.
        target: It need not be there, nor its engine installed.
        precision: As for ``perfuse generate``.
        height: In pixels, to fix every size.
        width: In pixels, likewise.
        batch: The batch to fix.
        memory: The device's, in bytes.

    Raises:
        BackendNotFoundError: no plugin offers the backend.
        DeviceNotFoundError: the backend declares no limits for such a device.
        PluginError: the plugin's limits cannot be imported.
        InputError: the model cannot take a size or the precision.
    """
    from perfuse.run.pipeline import DiffusionPipeline

    _, limits = limits_of(target)
    pipe = DiffusionPipeline.of(source, placement=Placement(default=target), precision=precision)
    static = pipe.fixed_dims(height, width, batch)
    stored = source.weight_bytes()
    findings: list[Finding] = []
    sizes: dict[str, int] = {}
    for name, spec in pipe.spec.components.items():
        component = pipe.component(name, static=static[name])
        usual = {**pipe.usual_sizes(name), "batch": spec.branches}
        # If the target fixes sizes anyway, capture with fixed sizes, which is far faster.
        fixed = limits is not None and limits.fixed_sizes
        sized = {dim: usual[dim] for dim in spec.signature.dims} if fixed else {}
        graph = _captured(replace(component, static={**sized, **component.static}), limits)
        # Without a graph, what is stored: of a folder, which two components may share.
        key = name if graph.weights is not None or name in stored else spec.folder
        sizes[key] = graph.weights if graph.weights is not None else stored[key]
        findings += _examined(component, target, limits, graph, usual)
        if precision is not None and precision != component.precision:
            findings.append(_kept(component, precision))
        findings += _weights(name, sizes[key], limits, memory)
    findings += _weights(TOGETHER, sum(sizes.values()), limits, memory)
    if limits is not None:
        findings += [_finding(TOGETHER, "note", "fits", text) for text in limits.notes]
        findings += [_finding(TOGETHER, "note", "unknown", text) for text in limits.unknown]
    return findings


def examine(
    component: Component,
    target: Target,
    *,
    usual: Mapping[str, int],
    memory: int | None = None,
) -> list[Finding]:
    """Check one component against a target.

    Args:
        component: With the dimensions to fix, its precision, and its module or its files.
        target: It need not be there.
        usual: A size for each of its dimensions, to count elements with.
        memory: The device's, in bytes.

    Raises:
        BackendNotFoundError: no plugin offers the backend.
        DeviceNotFoundError: the backend declares no limits for such a device.
        PluginError: the plugin's limits cannot be imported.
    """
    _, limits = limits_of(target)
    graph = _captured(component, limits)
    return [
        *_examined(component, target, limits, graph, usual),
        *_weights(component.name, graph.weights, limits, memory),
    ]


def verdicts(findings: Iterable[Finding]) -> dict[str, str]:
    """Component to ``runs``, ``runs with changes``, ``does not run`` or ``unknown``."""
    each: dict[str, list[Finding]] = {}
    for finding in findings:
        each.setdefault(finding.component, []).append(finding)
    return {name: _verdict(found) for name, found in each.items()}


def _verdict(findings: Sequence[Finding]) -> str:
    standings = {finding.standing for finding in findings}
    if "refused" in standings:
        return "does not run"
    if any(finding.topic == "limits" for finding in findings):
        return "unknown"
    return "runs with changes" if "changed" in standings else "runs"


def _finding(
    component: str, topic: str, standing: str, found: str, action: str = "", source: str = ""
) -> Finding:
    return Finding(
        component=component,
        topic=topic,
        standing=standing,
        found=found,
        action=action,
        source=source,
    )


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A component's captured graph, or the reason why there is none."""

    program: "ExportedProgram | None" = None
    failure: str = ""
    #: Whether it cannot be exported either.
    refused: bool = False
    #: Bytes of its weights in the component's precision, if known.
    weights: int | None = None


def _captured(component: Component, limits: Limits | None) -> _Graph:
    if component.build is None:
        return _Graph(failure="its graph is the exported file")
    if missing_modules(("torch",)):
        return _Graph(failure="no graph was captured, as torch is not installed")
    import torch

    from perfuse.capture import build, replace_tensors, trace

    # If the target lacks the precision, the other checks are made in float32.
    known = limits is None or component.precision in limits.precisions
    dtype: torch.dtype = getattr(torch, component.precision if known else "float32")

    def stand_in(tensor: "torch.Tensor") -> "torch.Tensor":
        # Memory that is never touched is never allocated.
        return torch.empty(tensor.shape, dtype=dtype) if tensor.is_floating_point() else tensor

    hollow = replace_tensors(build(component), stand_in)
    tensors = {id(t): t for t in (*hollow.parameters(), *hollow.buffers())}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    try:
        return _Graph(program=trace(component, hollow, dtype), weights=weights)
    except ExportError as exc:
        return _Graph(failure=str(exc), refused=True, weights=weights)


def _examined(
    component: Component,
    target: Target,
    limits: Limits | None,
    graph: _Graph,
    usual: Mapping[str, int],
) -> Iterator[Finding]:
    manifest = _manifest(target.backend)
    if component.build is None:
        yield _format(component, manifest)
    else:
        yield from _operators(component, manifest, graph)
    if limits is None:
        why = f"{target.backend} does not say what its devices take"
        yield _finding(component.name, "limits", "unknown", why, "run it to see")
        return
    yield from _precision(component, limits)
    yield from _tensors(component, limits, graph, {**usual, **component.static})
    yield _sizes(component, target, limits)
    yield from _batch(component, limits)


def _format(component: Component, manifest: BackendManifest) -> Finding:
    """Whether a backend loads the formats of an exported folder."""
    formats = ", ".join(component.files)
    if set(component.files) & set(manifest.formats):
        return _finding(component.name, "format", "fits", formats)
    takes = ", ".join(manifest.formats) or "checkpoints alone"
    return _finding(
        component.name,
        "format",
        "refused",
        f"the folder holds {formats}; {manifest.name} loads {takes}",
        "look at the checkpoint that was exported",
    )


def _operators(component: Component, manifest: BackendManifest, graph: _Graph) -> Iterator[Finding]:
    name = component.name
    if graph.program is None:
        standing = "refused" if graph.refused and manifest.formats else "unknown"
        yield _finding(name, "operators", standing, graph.failure)
        return
    calls = [node for node in graph.program.graph.nodes if node.op == "call_function"]
    count = f"{len({str(node.target) for node in calls})} operators in {len(calls)} calls"
    if not manifest.formats:
        yield _finding(name, "operators", "fits", f"{count}, run by torch as they are")
        return
    exporter, why = _exporter(manifest.formats)
    if exporter is None:
        yield _finding(name, "operators", "unknown", f"{count}; {why}")
        return
    try:
        wrong = exporter.unsupported(graph.program, component)
    except ImportError as exc:
        yield _finding(name, "operators", "unknown", f"{count}; {exporter.format}: {said(exc)}")
        return
    for operator, reason in wrong.items():
        yield _finding(name, "operators", "refused", f"{operator}: {reason}")
    if not wrong:
        looked = type(exporter).unsupported is not Exporter.unsupported
        standing, end = ("fits", "takes all") if looked else ("unknown", "does not say which")
        yield _finding(name, "operators", standing, f"{count}; {exporter.format} {end}")


def _exporter(formats: Sequence[str]) -> tuple[Exporter | None, str]:
    """The exporter of the first of several formats that has one, with or without its packages."""
    exporters = host().exporters()
    known = [exporters[format] for format in formats if format in exporters]
    if not known:
        return None, f"nothing that is installed exports {' or '.join(formats)}"
    try:
        exporter = resolve(known[0].impl)()
    except (ImportError, AttributeError) as exc:
        return None, f"the exporter to {known[0].format} cannot be asked: {said(exc)}"
    return exporter, ""


def _precision(component: Component, limits: Limits) -> Iterator[Finding]:
    name, precision = component.name, component.precision
    source = limits.sources.get("precisions", "")
    if precision not in limits.precisions:
        others = " or ".join(limits.precisions)
        yield _finding(
            name, "precision", "refused", f"{precision} is not there", f"use {others}", source
        )
        return
    instead = limits.precisions[precision]
    yield _finding(name, "precision", "changed" if instead else "fits", precision, instead, source)
    if precision in limits.conditions:
        yield _finding(
            name,
            "precision",
            "unknown",
            f"{precision} is not on all of these",
            f"it needs {limits.conditions[precision]}",
            limits.sources.get("conditions", source),
        )


def _kept(component: Component, asked: str) -> Finding:
    return _finding(
        component.name,
        "precision",
        "changed",
        f"{asked} overflows in it, says force_upcast in its config",
        f"stays {component.precision}",
    )


def _tensors(
    component: Component, limits: Limits, graph: _Graph, sizes: Mapping[str, int]
) -> Iterator[Finding]:
    """Check dtypes, ranks and element counts of the graph, or without one of the signature."""
    name, signature = component.name, component.spec.signature
    faces = {t.dtype for t in (*signature.inputs, *signature.outputs)}
    dtypes = {component.precision if dtype == "float" else dtype for dtype in faces}
    rank = max(len(tensor.shape) for tensor in (*signature.inputs, *signature.outputs))
    if graph.program is not None:
        values = list(_values(graph.program))
        dtypes |= {str(value.dtype).removeprefix("torch.") for value in values}
        rank = max(len(value.shape) for value in values)
    for dtype in sorted(dtypes & set(limits.dtypes)):
        instead = limits.dtypes[dtype]
        standing = "changed" if instead else "refused"
        source = limits.sources.get("dtypes", "")
        action = instead or "compute it on the host, or in another dtype"
        yield _finding(name, "dtypes", standing, dtype, action, source)
    if limits.max_rank is not None:
        found = f"tensors of up to {rank} axes, of at most {limits.max_rank}"
        standing = "refused" if rank > limits.max_rank else "fits"
        yield _finding(name, "rank", standing, found, source=limits.sources.get("max_rank", ""))
    if limits.max_elements is not None and graph.program is not None:
        yield from _elements(component, limits, limits.max_elements, graph.program, sizes)


def _values(program: "ExportedProgram") -> Iterator["torch.Tensor"]:
    """The fake tensors of a captured graph: shape and dtype, without content."""
    import torch

    for node in program.graph.nodes:
        value = node.meta.get("val")
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, torch.Tensor):
                yield one


def _elements(
    component: Component,
    limits: Limits,
    most: int,
    program: "ExportedProgram",
    sizes: Mapping[str, int],
) -> Iterator[Finding]:
    import torch

    number = _numbers(component, program, sizes)
    largest = max(prod(map(number, value.shape)) for value in _values(program))
    scores = 0
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            query, key = (node.args[i].meta["val"].shape for i in (0, 1))
            scores = max(scores, prod(map(number, (*query[:-1], key[-2]))))
    source = limits.sources.get("max_elements", "")
    if max(largest, scores) <= most:
        found = f"tensors of up to {max(largest, scores):.2g} elements, of at most {most:.2g}"
        yield _finding(component.name, "elements", "fits", found, source=source)
        return
    sliced = largest <= most and limits.slices_attention
    what = "attention scores" if largest <= most else "tensors"
    yield _finding(
        component.name,
        "elements",
        "changed" if sliced else "refused",
        f"{what} of {max(largest, scores):.2g} elements, of at most {most:.2g}",
        "attention is computed in slices" if sliced else "draw a smaller picture, or fewer at once",
        source,
    )


def _numbers(
    component: Component, program: "ExportedProgram", sizes: Mapping[str, int]
) -> Callable[[Any], int]:
    """A function from a size in the graph, a number or a symbol, to its value for these sizes."""
    known: dict[Any, int] = {}
    values: dict[Any, int] = {}
    inputs = program.graph_signature.user_inputs
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for tensor, name in zip(component.spec.signature.inputs, inputs, strict=True):
        for dim, size in zip(tensor.shape, placeholders[name].meta["val"].shape, strict=True):
            if not isinstance(size, int):
                expression = size.node.expr
                (symbol,) = expression.free_symbols
                known[symbol] = sizes[str(dim)] // int(expression.coeff(symbol))

    def number(size: Any) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression not in values:
            values[expression] = int(expression.subs(known))
        return values[expression]

    return number


def _sizes(component: Component, target: Target, limits: Limits) -> Finding:
    dims, name = component.signature.dims, component.name
    source = limits.sources.get("fixed_sizes", "")
    if component.sizes or not dims:
        given = component.sizes or (component.static,)
        found = "; ".join(", ".join(f"{d} {n}" for d, n in one.items()) for one in given)
        return _finding(name, "sizes", "fits", f"fixed: {found}", source=source)
    found = f"any {', '.join(dims)}"
    if not limits.fixed_sizes:
        return _finding(name, "sizes", "fits", f"{found}, in one program")
    if component.build is None:
        action = "export the checkpoint again with --height, --width and --batch"
        return _finding(name, "sizes", "refused", f"{found}; {target} fixes sizes", action, source)
    action = f"{target} fixes sizes: one program a size, kept two at a time"
    return _finding(name, "sizes", "changed", found, action, source)


def _batch(component: Component, limits: Limits) -> Iterator[Finding]:
    if limits.pictures is None or "batch" not in component.spec.signature.dims:
        return
    most = limits.pictures * component.spec.branches
    batch = component.static.get("batch")
    if batch is None or batch > most:
        yield _finding(
            component.name,
            "batch",
            "changed",
            f"a batch of {'any size' if batch is None else batch}",
            f"called for {most} at a time",
            limits.sources.get("pictures", ""),
        )


def _weights(
    component: str, size: int | None, limits: Limits | None, memory: int | None
) -> Iterator[Finding]:
    if size is None or limits is None:
        return
    room = memory if memory is not None else limits.memory
    source = limits.sources.get("memory", "") if memory is None else ""
    text = f"{size / 1e6:.1f} MB of weights"
    if room is None:
        if component == TOGETHER:
            yield _finding(component, "weights", "unknown", text, "--memory says of how much")
    elif size > room:
        action = "choose a smaller precision, or place components on several targets"
        found = f"{text}, of {room / 1e6:.1f} MB"
        yield _finding(component, "weights", "refused", found, action, source)
    else:
        yield _finding(component, "weights", "fits", f"{text}, of {room / 1e6:.1f} MB", "", source)
