"""The manifests: what perfuse reads to list the plugin. Imports neither torch nor the device."""

from collections.abc import Sequence

from perfuse import BackendManifest, ExporterManifest, hookimpl

_REQUIRES = ("torch", "transformers")
_INSTALL = "pip install perfuse-openreg"


@hookimpl
def perfuse_backends() -> Sequence[BackendManifest]:
    """The backend, by the name of its class: it is imported when somebody asks for it."""
    return (
        BackendManifest(
            name="openreg",
            impl="perfuse_openreg.backend:OpenReg",
            formats=("openreg",),
            requires=_REQUIRES,
            install=_INSTALL,
            summary="a simulated accelerator, to test and to learn from",
        ),
    )


@hookimpl
def perfuse_exporters() -> Sequence[ExporterManifest]:
    """The exporter of the format that the device loads."""
    return (
        ExporterManifest(
            format="openreg",
            impl="perfuse_openreg.exporter:OpenRegExporter",
            # A new version of any of these makes perfuse export anew, the plugin's own too.
            requires=(*_REQUIRES, "safetensors", "perfuse_openreg"),
            install=_INSTALL,
            summary="the simulated accelerator's programs, each for one size",
        ),
    )
