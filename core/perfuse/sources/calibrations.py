"""Files of ``perfuse calibrate``: what was measured of a model's components, by their names."""

from collections.abc import Mapping
from pathlib import Path

from perfuse.contract.quantized import Calibration
from perfuse.errors import InputError
from perfuse.sources.files import read_json, user_path, write_json
from perfuse.sources.plain import from_plain, to_plain

__all__ = ["read_calibrations", "write_calibrations"]

_VERSION = 1


def write_calibrations(found: Mapping[str, Calibration], path: Path) -> None:
    """Write what was measured of components.

    Raises:
        InputError: the file cannot be written.
    """
    plain = {name: to_plain(one) for name, one in found.items()}
    write_json(path, {"version": _VERSION, "components": plain}, error=InputError)


def read_calibrations(path: str) -> dict[str, Calibration]:
    """What was measured of components, by their names.

    Raises:
        InputError: the file cannot be read.
    """
    remedy = "Measure again: perfuse calibrate."
    try:
        data = read_json(user_path(path), error=InputError, remedy=remedy)
        if data["version"] != _VERSION:
            raise ValueError(f"it is of version {data['version']!r}")
        return {n: from_plain(Calibration, one) for n, one in data["components"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise InputError(f"{path} is no file of perfuse calibrate: {exc!r}. {remedy}") from exc
