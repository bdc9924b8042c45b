"""The manifest of the OpenVINO backend. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, hookimpl


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """OpenVINO."""
    return (
        BackendManifest(
            name="openvino",
            impl="perfuse_openvino.backend:OpenVino",
            formats=("openvino",),
            requires=("openvino",),
            install="pip install 'perfuse[openvino]'",
            limits="perfuse_openvino.limits:LIMITS",
            summary="OpenVINO on CPUs, Intel GPUs and NPUs",
        ),
    )
