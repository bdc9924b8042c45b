"""The manifest of the exporters. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import ExporterManifest, ReaderManifest, TransformManifest, hookimpl

_INSTALL = "pip install 'perfuse[export]'"
#: Where a pipeline in Apple's layout is: in the folder itself, or in one of a Hub repository.
APPLE_PLACES = (".", "packages", "*/packages", "Resources", "compiled", "*/compiled")
#: The denoisers that say so.
APPLE_UNETS = (
    "*_unet.mlpackage",
    "*_unet_chunk1.mlpackage",
    "Unet.mlmodelc",
    "UnetChunk1.mlmodelc",
)


@hookimpl
def perfuse_exporters() -> Sequence[ExporterManifest]:
    """ONNX, OpenVINO IR, Core ML, StableHLO, Neuron."""
    return (
        ExporterManifest(
            format="onnx",
            impl="perfuse_exporters.onnx.exporter:OnnxExporter",
            requires=("torch", "transformers", "onnx", "onnxscript"),
            install=_INSTALL,
            summary="ONNX, with weights beside the graph",
            apart=True,
        ),
        ExporterManifest(
            format="openvino",
            impl="perfuse_exporters.openvino.exporter:OpenVinoExporter",
            requires=("torch", "transformers", "openvino"),
            install="pip install 'perfuse[torch,openvino]'",
            summary="OpenVINO IR",
            apart=True,
        ),
        ExporterManifest(
            format="coreml",
            impl="perfuse_exporters.coreml.exporter:CoreMLExporter",
            requires=("torch", "transformers", "coremltools"),
            install="pip install 'perfuse[coreml]'",
            summary="Core ML programs, on any system",
            apart=True,
            fixed=True,
        ),
        ExporterManifest(
            format="stablehlo",
            impl="perfuse_exporters.stablehlo.exporter:StableHloExporter",
            requires=("torch", "transformers", "jax", "flatbuffers"),
            install="pip install 'perfuse[stablehlo]'",
            summary="StableHLO, for XLA's devices",
            apart=True,
            fixed=True,
        ),
        ExporterManifest(
            format="neuron",
            impl="perfuse_exporters.neuron.exporter:NeuronExporter",
            requires=("torch", "transformers", "torch_neuronx"),
            install="pip install torch-neuronx neuronx-cc "
            "--extra-index-url https://pip.repos.neuron.amazonaws.com",
            summary="AWS Neuron, on an instance with its SDK",
        ),
    )


@hookimpl
def perfuse_transforms() -> Sequence[TransformManifest]:
    """Attention as Apple's Neural Engine takes it."""
    requires = ("torch",)
    return (
        TransformManifest(
            name="split_einsum",
            impl="perfuse_exporters.coreml.split_einsum:SplitEinsum",
            requires=requires,
            summary="channels first, one head at a time, for the Neural Engine",
        ),
        TransformManifest(
            name="split_einsum_v2",
            impl="perfuse_exporters.coreml.split_einsum:SplitEinsumV2",
            requires=requires,
            summary="split_einsum with queries in chunks",
        ),
    )


@hookimpl
def perfuse_readers() -> Sequence[ReaderManifest]:
    """Folders of Core ML models with Apple's names."""
    return (
        ReaderManifest(
            name="apple",
            impl="perfuse_exporters.coreml.apple_reader:AppleReader",
            patterns=tuple(f"{place}/{unet}" for place in APPLE_PLACES for unet in APPLE_UNETS),
            requires=("coremltools",),
            install="pip install 'perfuse[coreml]'",
            summary="Stable Diffusion for Core ML, as Apple's converter writes it",
        ),
    )
