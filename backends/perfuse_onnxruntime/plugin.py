"""The manifest of the ONNX Runtime backend. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, hookimpl


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """ONNX Runtime."""
    return (
        BackendManifest(
            name="onnxruntime",
            impl="perfuse_onnxruntime.backend:OnnxRuntime",
            formats=("onnx",),
            requires=("onnxruntime",),
            install="pip install 'perfuse[onnxruntime]'",
            summary="ONNX Runtime: the CPU, and the devices of the installed build",
        ),
    )
