"""The manifests of the Neuron backend and of its reader. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, ReaderManifest, hookimpl


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """AWS Neuron."""
    return (
        BackendManifest(
            name="neuron",
            impl="perfuse_neuron.backend:Neuron",
            formats=("neuron",),
            requires=("torch_neuronx",),
            install="pip install torch-neuronx neuronx-cc "
            "--extra-index-url https://pip.repos.neuron.amazonaws.com",
            limits="perfuse_neuron.limits:LIMITS",
            summary="AWS Inferentia and Trainium",
        ),
    )


@hookimpl
def perfuse_readers() -> Sequence[ReaderManifest]:
    """What optimum-neuron wrote."""
    return (
        ReaderManifest(
            name="optimum-neuron",
            impl="perfuse_neuron.reader:OptimumNeuronReader",
            patterns=("*/model.neuron",),
            indexed=True,
            summary="folders that optimum-neuron compiled",
        ),
    )
