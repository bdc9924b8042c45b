"""Calling an exporter: what its result depends on, what it may be asked for, how it fails."""

import warnings
from collections.abc import Callable
from typing import TypeVar

from perfuse.contract.component import Component
from perfuse.contract.exporter import Exporter
from perfuse.contract.options import read_options
from perfuse.errors import ExportError, UnwritableError
from perfuse.plugins.host import host
from perfuse.plugins.importing import guarded
from perfuse.sources.manifest import tool_versions
from perfuse.sources.plain import to_plain

__all__ = ["lowered", "settings", "tools"]

_T = TypeVar("_T")


def tools(format: str) -> dict[str, str]:
    """The versions of all packages that can change what an exporter writes, without imports."""
    manifest = host().exporters().get(format)
    if manifest is None:
        return tool_versions(("perfuse",))
    row = host().brought_by(format, "perfuse_exporters")
    plugin = () if row is None else (row.distribution,)
    return tool_versions(tuple(dict.fromkeys(("perfuse", *plugin, *manifest.requires))))


def settings(component: Component, format: str) -> dict[str, object]:
    """What an exporter's result depends on, besides the component, its weights and the tools."""
    calibration = component.calibration
    return {
        "precision": component.precision,
        "storage": component.storage,
        **({} if calibration is None else {"calibration": to_plain(calibration)}),
        "static": dict(component.static),
        "sizes": [dict(size) for size in component.sizes],
        "options": dict(component.options),
        "format": format,
    }


def lowered(component: Component, format: str, write: Callable[[Exporter], _T]) -> _T:
    """The result of ``write(exporter)``.

    Raises:
        InputError: an option is unknown.
        ExportError: the exporter does not know the storage, or failed.
        UnwritableError: it could not write.
    """
    exporter = host().exporter(format)
    read_options(component.options, exporter.options, of=f"The {format} exporter")
    if component.storage and component.storage not in exporter.storages:
        raise ExportError(
            f"{component.name} was to be exported to {format} with its weights stored as "
            f"{component.storage}; this exporter stores them as "
            f"{', '.join(exporter.storages) or 'the precision alone'}."
        )
    with (
        guarded(
            lambda why: ExportError(
                f"{component.name} was to be exported to {format}, and the exporter is at fault: "
                f"{why}. Use another format, or tell its authors."
            )
        ),
        warnings.catch_warnings(),
    ):
        # Users cannot act on deprecations inside the exporters' libraries.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return write(exporter)
        except OSError as exc:
            raise UnwritableError(
                f"{component.name} was to be exported to {format}; the system said: "
                f"{exc.strerror or exc}. Nothing was written. Free space or choose another folder."
            ) from exc
