"""Whether a backend can be used here, by what is installed; nothing of it is imported."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence

from perfuse.contract.hooks import BackendManifest

__all__ = ["missing_modules", "not_installed", "standing"]

_SYSTEMS = {"darwin": "macOS", "linux": "Linux", "win32": "Windows"}


def standing(manifest: BackendManifest) -> tuple[str, str, str]:
    """State, reason and remedy of a backend, by what is installed; imports nothing."""
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
    """Those modules that are not installed. Nothing is imported but the packages they are in."""
    return [name for name in names if not _is_installed(name)]


def not_installed(missing: Sequence[str]) -> str:
    """Says of modules that they are not installed."""
    return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False
    except Exception:  # noqa: BLE001 - what is wrong with it is told where it is used
        return True


def _has_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
