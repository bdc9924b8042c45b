"""Where components run: the default backend of a source, and checks of a placement."""

from perfuse.contract.source import Source
from perfuse.contract.spec import PipelineSpec
from perfuse.contract.target import Placement, Target
from perfuse.errors import BackendError, InputError
from perfuse.plugins import host, missing_modules

__all__ = ["check_placement", "natural_backend", "target_of", "torch_device"]


def natural_backend(source: Source) -> str:
    """The default backend: the first that runs a source's files without an export.

    Where its engine is not installed, a checkpoint runs on the first that takes graphs without weights.

    Raises:
        BackendError: no installed plugin has such a backend.
    """
    wanted = source.format
    fitting = [
        (name, manifest.interprets)
        for name, manifest in host().backends().items()
        if (wanted in manifest.formats if wanted is not None else not manifest.formats)
    ]
    usual = [name for name, interprets in fitting if not interprets]  # others are asked for by name
    if wanted is None:
        exporters = host().exporters()
        apart = {name for name, one in exporters.items() if one.apart and not one.fixed}
        others = [
            name for name, one in host().backends().items() if apart.intersection(one.formats)
        ]
        usual = [name for name in (*usual, *others) if _installed(name)] or usual
    if usual:
        return usual[0]
    hint = f" To interpret it: --backend {fitting[0][0]}." if fitting else ""
    raise BackendError(
        f"{source.model} holds {wanted or 'a checkpoint'}; no installed plugin runs that as it is. "
        f"Install one that does; `perfuse backends` lists the installed ones.{hint}"
    )


def _installed(backend: str) -> bool:
    return not missing_modules(host().backends()[backend].requires)


def target_of(placement: Placement, spec: PipelineSpec, component: str) -> Target:
    """The target of a component; another entry of a component runs where that component does."""
    described = spec.components[component]
    return placement[described.entry_of if described.entry_of is not None else component]


def torch_device(target: Target) -> str | None:
    """The torch device that a target's modules are on; ``None`` for an engine that has none.

    Raises:
        BackendError: the target's engine is not installed.
    """
    if host().backends()[target.backend].formats:
        return None
    return target.device or host().devices(target.backend)[0].name


def check_placement(source: Source, spec: PipelineSpec, placement: Placement) -> None:
    """Check a placement before any work is done.

    Raises:
        InputError: a target is for an unknown component.
        BackendError: a backend is unknown, its engine is not installed, or it does not load the
            format of an exported folder.
    """
    unknown = set(placement.components) - set(spec.components)
    if unknown:
        raise InputError(
            f"A target was given for {', '.join(sorted(unknown))}; this pipeline has "
            f"{', '.join(spec.components)}. Give it for one of these."
        )
    for name in dict.fromkeys(target_of(placement, spec, n).backend for n in spec.components):
        host().backend(name)
        if source.format is not None:
            _check_format(source, name)


def _check_format(source: Source, backend: str) -> None:
    """Raise ``BackendError`` if a backend does not load the format of an exported folder."""
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
