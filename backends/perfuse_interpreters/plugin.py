"""The manifests of the interpreters: programs of engines whose hardware is elsewhere.

What they compute is *interpreted*, and says so in every report. Imports nothing heavy.
"""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, hookimpl


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """Core ML programs and Neuron's, computed on any machine."""
    return (
        BackendManifest(
            name="coreml-interpreter",
            impl="perfuse_interpreters.mil.backend:CoreMLInterpreter",
            formats=("coreml",),
            requires=("torch", "coremltools"),
            install="pip install 'perfuse[coreml]'",
            interprets="coreml",
            summary="Core ML programs, operation by operation in PyTorch; slow, and exact",
        ),
        BackendManifest(
            name="neuron-interpreter",
            impl="perfuse_interpreters.neuron:NeuronInterpreter",
            formats=("stablehlo",),
            requires=("jax", "flatbuffers"),
            install="pip install 'perfuse[stablehlo]'",
            interprets="neuron",
            summary="what Neuron's compiler is given, on XLA's CPU client",
        ),
    )
