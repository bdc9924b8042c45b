"""One diffusion pipeline, through any hardware, and proof that it is still the same pipeline.

>>> from perfuse import DiffusionPipeline
>>> pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")  # the bundled `shapes` model
>>> pipe("a red circle", num_inference_steps=2, seed=0).images[0].size
(64, 64)

Importing perfuse imports neither torch nor an engine; each name below is loaded on first use, and so
is each scheduler: ``from perfuse import EulerDiscreteScheduler``. A type checker sees such a class
when it is imported from its own file: ``from perfuse.schedulers.euler import ...``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfuse.arrays.noise import NoiseSource as NoiseSource
    from perfuse.contract.backend import Backend as Backend
    from perfuse.contract.backend import Component as Component
    from perfuse.contract.backend import Device as Device
    from perfuse.contract.backend import ExecutionReport as ExecutionReport
    from perfuse.contract.backend import Exporter as Exporter
    from perfuse.contract.backend import Placement as Placement
    from perfuse.contract.backend import Program as Program
    from perfuse.contract.backend import Request as Request
    from perfuse.contract.backend import Support as Support
    from perfuse.contract.backend import SupportLevel as SupportLevel
    from perfuse.contract.backend import Target as Target
    from perfuse.contract.hooks import BackendManifest as BackendManifest
    from perfuse.contract.hooks import ExporterManifest as ExporterManifest
    from perfuse.contract.hooks import PipelineManifest as PipelineManifest
    from perfuse.contract.hooks import ReaderManifest as ReaderManifest
    from perfuse.contract.hooks import TransformManifest as TransformManifest
    from perfuse.contract.hooks import hookimpl as hookimpl
    from perfuse.contract.spec import ComponentSpec as ComponentSpec
    from perfuse.contract.spec import LatentSpec as LatentSpec
    from perfuse.contract.spec import PipelineSpec as PipelineSpec
    from perfuse.contract.spec import Signature as Signature
    from perfuse.contract.spec import TensorSpec as TensorSpec
    from perfuse.errors import PerfuseError as PerfuseError
    from perfuse.models.architectures import Architecture as Architecture
    from perfuse.run.export import exported as exported
    from perfuse.run.pipeline import DiffusionPipeline as DiffusionPipeline
    from perfuse.run.pipeline import PipelineOutput as PipelineOutput
    from perfuse.run.transforms import Transform as Transform
    from perfuse.sources.artifact import Artifact as Artifact
    from perfuse.sources.checkpoint import Checkpoint as Checkpoint
    from perfuse.sources.readers import Reader as Reader
    from perfuse.sources.store import ArtifactStore as ArtifactStore
    from perfuse.sources.tokenizer import Tokenizer as Tokenizer
    from perfuse.tasks.guidance import Guidance as Guidance
    from perfuse.tasks.steps import Choice as Choice
    from perfuse.tasks.steps import Event as Event
    from perfuse.tasks.steps import Loop as Loop
    from perfuse.tasks.steps import Step as Step
    from perfuse.tasks.steps import Task as Task

_HOME = {
    "models.architectures": ("Architecture",),
    "sources.artifact": ("Artifact",),
    "contract.backend": (
        "Backend",
        "Component",
        "Device",
        "ExecutionReport",
        "Exporter",
        "Placement",
        "Program",
        "Request",
        "Support",
        "SupportLevel",
        "Target",
    ),
    "sources.checkpoint": ("Checkpoint",),
    "errors": ("PerfuseError",),
    "run.export": ("exported",),
    "tasks.guidance": ("Guidance",),
    "contract.hooks": (
        "BackendManifest",
        "ExporterManifest",
        "PipelineManifest",
        "ReaderManifest",
        "TransformManifest",
        "hookimpl",
    ),
    "arrays.noise": ("NoiseSource",),
    "run.pipeline": ("DiffusionPipeline", "PipelineOutput"),
    "sources.readers": ("Reader",),
    "contract.spec": ("ComponentSpec", "LatentSpec", "PipelineSpec", "Signature", "TensorSpec"),
    "tasks.steps": ("Choice", "Event", "Loop", "Step", "Task"),
    "sources.store": ("ArtifactStore",),
    "sources.tokenizer": ("Tokenizer",),
    "run.transforms": ("Transform",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__version__ = "0.1.0"


def _schedulers() -> list[str]:
    """The scheduler classes: whatever files the room has, none of them imported."""
    return list(import_module("perfuse.schedulers").SCHEDULERS)


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted((*_MODULE_OF, *_schedulers()))
    if name in _MODULE_OF:
        value = getattr(import_module(f"perfuse.{_MODULE_OF[name]}"), name)
    elif name.endswith("Scheduler") and name in _schedulers():
        value = getattr(import_module("perfuse.schedulers"), name)
    else:
        raise AttributeError(f"module 'perfuse' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*_MODULE_OF, *_schedulers()))
