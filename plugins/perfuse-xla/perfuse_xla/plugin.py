"""The manifest of the backend. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse import BackendManifest, hookimpl


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """JAX's devices."""
    return (
        BackendManifest(
            name="xla",
            impl="perfuse_xla.backend:Xla",
            formats=("stablehlo",),
            requires=("jax", "flatbuffers"),
            install="pip install perfuse-xla",
            limits="perfuse_xla.limits:LIMITS",
            summary="XLA, on the devices of JAX: this CPU; GPUs and TPUs where JAX has them",
        ),
    )
