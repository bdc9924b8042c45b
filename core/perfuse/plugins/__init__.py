"""Plugins: finding them, reading their manifests, and reporting broken ones without failing."""

from perfuse.contract.hooks import (
    API_VERSION,
    BackendManifest,
    ExporterManifest,
    PipelineManifest,
    ReaderManifest,
    SourceManifest,
    TransformManifest,
    hookimpl,
)
from perfuse.plugins.allowance import Allowance
from perfuse.plugins.availability import missing_modules
from perfuse.plugins.host import PluginHost, host
from perfuse.plugins.importing import resolve, said
from perfuse.plugins.installed import PluginRow

__all__ = [
    "API_VERSION",
    "Allowance",
    "BackendManifest",
    "ExporterManifest",
    "PipelineManifest",
    "PluginHost",
    "PluginRow",
    "ReaderManifest",
    "SourceManifest",
    "TransformManifest",
    "hookimpl",
    "host",
    "missing_modules",
    "resolve",
    "said",
]
