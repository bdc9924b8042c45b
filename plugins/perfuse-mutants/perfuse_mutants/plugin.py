"""The manifests of the mutants. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, hookimpl
from perfuse_mutants.catalogue import CATALOGUE


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """Every mutant."""
    return [
        BackendManifest(
            name=entry.name,
            impl=entry.impl,
            requires=("torch", "transformers"),
            install="pip install 'perfuse[torch]'",
            summary=f"wrong on purpose: {entry.why}",
        )
        for entry in CATALOGUE
    ]
