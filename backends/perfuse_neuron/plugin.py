"""The manifest of the Neuron backend. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, hookimpl


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
