"""Whether a backend can be used, judged by what is installed, without importing it."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence

from perfuse.contract.hooks import BackendManifest

__all__ = ["availability", "missing_modules", "not_installed"]

_SYSTEMS = {"darwin": "macOS", "linux": "Linux", "win32": "Windows"}


def availability(manifest: BackendManifest) -> tuple[str, str, str]:
    """State, reason and remedy of a backend, by what is installed, without importing it."""
    if manifest.platforms and sys.platform not in manifest.platforms:
        systems = " or ".join(_SYSTEMS.get(name, name) for name in manifest.platforms)
        here = _SYSTEMS.get(sys.platform, sys.platform)
        return "unavailable", f"its engine runs on {systems} alone, and this is {here}", ""
    if missing := missing_modules(manifest.requires):
        install = manifest.install or "pip install " + " ".join(missing)
        return "not installed", not_installed(missing), install
    if len(clash := [name for name in manifest.conflicts if _has_distribution(name)]) > 1:
        return (
            "conflict",
            f"{' and '.join(clash)} are installed, which overwrite each other's files",
            f"pip uninstall {' '.join(clash)}, then install the one that you want",
        )
    return "available", "", ""


def missing_modules(names: Sequence[str]) -> list[str]:
    """The modules that are not installed. Imports only the parent packages of dotted names."""
    return [name for name in names if not _is_installed(name)]


def not_installed(missing: Sequence[str]) -> str:
    """A sentence part: which modules are not installed."""
    return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not installed
        return False
    except Exception:  # noqa: BLE001 - it is installed; using it will report what is wrong
        return True


def _has_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
