"""The manifests of the backend and of the exporter. Imports nothing heavy."""

from collections.abc import Sequence

from perfuse.plugins import BackendManifest, ExporterManifest, hookimpl

_INSTALL = "pip install perfuse-executorch"


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """ExecuTorch's runtime."""
    return (
        BackendManifest(
            name="executorch",
            impl="perfuse_executorch.backend:ExecuTorch",
            formats=("executorch",),
            requires=("executorch", "torch"),
            install=_INSTALL,
            summary="ExecuTorch on the CPU, with XNNPACK's kernels",
        ),
    )


@hookimpl
def perfuse_exporters() -> Sequence[ExporterManifest]:
    """Its files, ``.pte``."""
    return (
        ExporterManifest(
            format="executorch",
            impl="perfuse_executorch.exporter:ExecuTorchExporter",
            # The versions of all of these are part of the key under which an export is kept.
            requires=("perfuse_executorch", "executorch", "torch", "transformers"),
            install=_INSTALL,
            summary="ExecuTorch, lowered to XNNPACK, for one size",
            apart=True,
            fixed=True,
        ),
    )
