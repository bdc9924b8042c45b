"""Every error that perfuse raises on purpose.

Each message says what was asked, what was found and what to do.

    PerfuseError
    ├── InputError              an argument of the call cannot be used
    ├── ConfigError             perfuse.toml or an environment variable is wrong
    ├── CheckpointError         the checkpoint cannot be read
    │   ├── NotNativeError          it is of a pipeline that perfuse has no models of its own for
    │   └── WeightsError        its tensors are missing, unexpected, misshapen or damaged
    ├── ArtifactError           the exported folder cannot be read
    ├── ExportError             a component could not be captured or lowered
    │   └── UnwritableError         what was made of it could not be written
    ├── PluginError             a plugin breaks the contract
    ├── BackendError            a backend cannot be used
    │   ├── BackendNotFoundError    no plugin offers it
    │   ├── EngineMissingError      its engine is not installed
    │   ├── DeviceNotFoundError     its engine does not list the device
    │   ├── UnsupportedError        it says that it cannot do this
    │   └── ExecutionError          the engine failed while running
    └── NonFiniteError          a result holds NaN or infinity
"""

__all__ = [
    "ArtifactError",
    "BackendError",
    "BackendNotFoundError",
    "CheckpointError",
    "ConfigError",
    "DeviceNotFoundError",
    "EngineMissingError",
    "ExecutionError",
    "ExportError",
    "InputError",
    "NonFiniteError",
    "NotNativeError",
    "PerfuseError",
    "PluginError",
    "UnsupportedError",
    "UnwritableError",
    "WeightsError",
]


class PerfuseError(Exception):
    """The root of the tree: catch it to catch every error that perfuse raises on purpose."""


class InputError(PerfuseError, ValueError):
    """An argument cannot be used: zero steps, a height the model cannot take, an unknown name."""


class ConfigError(PerfuseError, ValueError):
    """A setting in ``perfuse.toml`` or in the environment is wrong."""


class CheckpointError(PerfuseError):
    """A checkpoint cannot be read: a missing folder, bad JSON, an unknown class."""


class NotNativeError(CheckpointError):
    """A checkpoint names a pipeline class that perfuse itself does not have; Diffusers may."""


class WeightsError(CheckpointError):
    """The tensors of a component do not fit it, or their file is damaged."""


class ArtifactError(PerfuseError):
    """An exported folder cannot be read, or was made for something else."""


class ExportError(PerfuseError):
    """A component could not be captured or lowered."""


class UnwritableError(ExportError):
    """What was made of a component could not be written: no space, no permission."""


class PluginError(PerfuseError):
    """A plugin breaks the contract."""


class BackendError(PerfuseError):
    """A backend cannot be used."""


class BackendNotFoundError(BackendError):
    """No installed plugin offers a backend of this name."""


class EngineMissingError(BackendError):
    """The backend is known, but its engine is not installed."""


class DeviceNotFoundError(BackendError):
    """The engine does not list the device that was asked for."""


class UnsupportedError(BackendError):
    """The backend declares that it cannot do what was asked."""


class ExecutionError(BackendError):
    """The engine failed while it ran."""


class NonFiniteError(PerfuseError):
    """A result holds NaN or infinity."""
