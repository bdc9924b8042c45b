"""The manifest of the exporters. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import ExporterManifest, hookimpl

_INSTALL = "pip install 'perfuse[export]'"


@hookimpl
def perfuse_exporters() -> Sequence[ExporterManifest]:
    """ONNX and OpenVINO IR."""
    return (
        ExporterManifest(
            format="onnx",
            impl="perfuse_exporters.onnx:OnnxExporter",
            requires=("torch", "transformers", "onnx", "onnxscript"),
            install=_INSTALL,
            summary="ONNX, with weights beside the graph",
        ),
        ExporterManifest(
            format="openvino",
            impl="perfuse_exporters.openvino:OpenVinoExporter",
            requires=("torch", "transformers", "openvino"),
            install="pip install 'perfuse[torch,openvino]'",
            summary="OpenVINO IR",
        ),
    )
