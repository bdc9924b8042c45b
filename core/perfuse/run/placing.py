"""Which backend runs what: the natural one of a source, and whether a placement can be."""

from perfuse.contract.source import Source
from perfuse.contract.spec import PipelineSpec
from perfuse.contract.target import Placement, Target
from perfuse.errors import BackendError, InputError
from perfuse.plugins import host

__all__ = ["check_placement", "natural_backend", "target_of"]


def natural_backend(source: Source) -> str:
    """The backend that runs a model as it is.

    Raises:
        BackendError: none that is known does.
    """
    wanted = source.format
    fitting = [
        (name, manifest.interprets)
        for name, manifest in host().backends().items()
        if (wanted in manifest.formats if wanted is not None else not manifest.formats)
    ]
    for name, interprets in fitting:
        if not interprets:  # whoever wants an engine's files interpreted says so
            return name
    hint = f" To interpret it: --backend {fitting[0][0]}." if fitting else ""
    raise BackendError(
        f"{source.model} holds {wanted or 'a checkpoint'}; no plugin that is installed runs that as "
        f"it is. Install one that does; `perfuse backends` lists those that are there.{hint}"
    )


def target_of(placement: Placement, spec: PipelineSpec, component: str) -> Target:
    """Where a component runs; another entry of one runs where that does."""
    described = spec.components[component]
    return placement[described.entry_of if described.entry_of is not None else component]


def check_placement(source: Source, spec: PipelineSpec, placement: Placement) -> None:
    """Say before any work that a component or a backend is unknown, or an engine missing.

    Raises:
        InputError: a target is for a component that the pipeline has not.
        BackendError: a backend is unknown, its engine missing, or not one for what an export holds.
    """
    unknown = set(placement.components) - set(spec.components)
    if unknown:
        raise InputError(
            f"A target was given for {', '.join(sorted(unknown))}; this pipeline has "
            f"{', '.join(spec.components)}."
        )
    for name in dict.fromkeys(target_of(placement, spec, n).backend for n in spec.components):
        host().backend(name)
        if source.format is not None:
            _check_format(source, name)


def _check_format(source: Source, backend: str) -> None:
    """Raise ``BackendError`` where a backend does not load what an exported folder holds."""
    backends = host().backends()
    formats = backends[backend].formats
    if source.format not in formats:
        fitting = [n for n, m in backends.items() if source.format in m.formats]
        fitting.sort(key=lambda name: bool(backends[name].interprets))
        raise BackendError(
            f"Backend {backend!r} was asked for; {source.model} holds {source.format}, and it "
            f"loads {', '.join(formats) or 'checkpoints alone'}. Use "
            + (f"--backend {fitting[0]}, or " if fitting else "")
            + "the checkpoint that was exported."
        )
