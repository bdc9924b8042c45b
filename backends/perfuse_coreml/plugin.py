"""The manifest of the Core ML backend. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, hookimpl


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """Core ML."""
    return (
        BackendManifest(
            name="coreml",
            impl="perfuse_coreml.backend:CoreML",
            formats=("coreml",),
            requires=("coremltools",),
            install="pip install 'perfuse[coreml]'",
            platforms=("darwin",),
            limits="perfuse_coreml.limits:LIMITS",
            summary="Core ML on Apple's CPUs, GPUs and Neural Engine",
        ),
    )
