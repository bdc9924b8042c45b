"""The manifest of the torch backend. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, hookimpl


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """PyTorch."""
    return (
        BackendManifest(
            name="torch",
            impl="perfuse_torch.backend:Torch",
            requires=("torch", "transformers"),
            install="pip install 'perfuse[torch]'",
            limits="perfuse_torch.limits:LIMITS",
            summary="the reference: PyTorch on CPU, CUDA, MPS, XPU or HPU",
        ),
    )
