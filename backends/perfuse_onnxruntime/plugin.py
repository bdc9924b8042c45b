"""The manifest of the ONNX Runtime backend. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, hookimpl

#: The builds that are distributions of their own; each brings the module ``onnxruntime``.
_BUILDS = (
    "onnxruntime",
    "onnxruntime-directml",
    "onnxruntime-gpu",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "ort-nightly",
    "ort-nightly-gpu",
)


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """ONNX Runtime."""
    return (
        BackendManifest(
            name="onnxruntime",
            impl="perfuse_onnxruntime.backend:OnnxRuntime",
            formats=("onnx",),
            requires=("onnxruntime",),
            conflicts=_BUILDS,
            install="pip install 'perfuse[onnxruntime]'",
            limits="perfuse_onnxruntime.limits:LIMITS",
            summary="ONNX Runtime: the CPU, and the devices of the installed build",
        ),
    )
