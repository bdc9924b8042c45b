"""One diffusion pipeline, through any hardware, and proof that it is still the same pipeline.

>>> from perfuse import DiffusionPipeline
>>> pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")  # the bundled `shapes` model
>>> pipe("a red circle", num_inference_steps=2, seed=0).images[0].size
(64, 64)

Importing perfuse imports neither torch nor an engine; each name below is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfuse.architectures import Architecture as Architecture
    from perfuse.artifact import Artifact as Artifact
    from perfuse.backend import Backend as Backend
    from perfuse.backend import Component as Component
    from perfuse.backend import Device as Device
    from perfuse.backend import ExecutionReport as ExecutionReport
    from perfuse.backend import Exporter as Exporter
    from perfuse.backend import Placement as Placement
    from perfuse.backend import Program as Program
    from perfuse.backend import Request as Request
    from perfuse.backend import Support as Support
    from perfuse.backend import SupportLevel as SupportLevel
    from perfuse.backend import Target as Target
    from perfuse.checkpoint import Checkpoint as Checkpoint
    from perfuse.errors import PerfuseError as PerfuseError
    from perfuse.export import exported as exported
    from perfuse.guidance import Guidance as Guidance
    from perfuse.hooks import BackendManifest as BackendManifest
    from perfuse.hooks import ExporterManifest as ExporterManifest
    from perfuse.hooks import PipelineManifest as PipelineManifest
    from perfuse.hooks import ReaderManifest as ReaderManifest
    from perfuse.hooks import TransformManifest as TransformManifest
    from perfuse.hooks import hookimpl as hookimpl
    from perfuse.noise import NoiseSource as NoiseSource
    from perfuse.pipeline import DiffusionPipeline as DiffusionPipeline
    from perfuse.pipeline import PipelineOutput as PipelineOutput
    from perfuse.readers import Reader as Reader
    from perfuse.schedulers import DDIMScheduler as DDIMScheduler
    from perfuse.schedulers import DDPMScheduler as DDPMScheduler
    from perfuse.schedulers import DPMSolverMultistepScheduler as DPMSolverMultistepScheduler
    from perfuse.schedulers import (
        EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler,
    )
    from perfuse.schedulers import EulerDiscreteScheduler as EulerDiscreteScheduler
    from perfuse.schedulers import (
        FlowMatchEulerDiscreteScheduler as FlowMatchEulerDiscreteScheduler,
    )
    from perfuse.schedulers import LCMScheduler as LCMScheduler
    from perfuse.schedulers import PNDMScheduler as PNDMScheduler
    from perfuse.schedulers import UniPCMultistepScheduler as UniPCMultistepScheduler
    from perfuse.spec import ComponentSpec as ComponentSpec
    from perfuse.spec import LatentSpec as LatentSpec
    from perfuse.spec import PipelineSpec as PipelineSpec
    from perfuse.spec import Signature as Signature
    from perfuse.spec import TensorSpec as TensorSpec
    from perfuse.steps import Choice as Choice
    from perfuse.steps import Event as Event
    from perfuse.steps import Loop as Loop
    from perfuse.steps import Step as Step
    from perfuse.steps import Task as Task
    from perfuse.store import ArtifactStore as ArtifactStore
    from perfuse.tokenizer import Tokenizer as Tokenizer
    from perfuse.transforms import Transform as Transform

_HOME = {
    "architectures": ("Architecture",),
    "artifact": ("Artifact",),
    "backend": (
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
    "checkpoint": ("Checkpoint",),
    "errors": ("PerfuseError",),
    "export": ("exported",),
    "guidance": ("Guidance",),
    "hooks": (
        "BackendManifest",
        "ExporterManifest",
        "PipelineManifest",
        "ReaderManifest",
        "TransformManifest",
        "hookimpl",
    ),
    "noise": ("NoiseSource",),
    "pipeline": ("DiffusionPipeline", "PipelineOutput"),
    "readers": ("Reader",),
    "schedulers": (
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "LCMScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    ),
    "spec": ("ComponentSpec", "LatentSpec", "PipelineSpec", "Signature", "TensorSpec"),
    "steps": ("Choice", "Event", "Loop", "Step", "Task"),
    "store": ("ArtifactStore",),
    "tokenizer": ("Tokenizer",),
    "transforms": ("Transform",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'perfuse' has no attribute {name!r}")
    value = getattr(import_module(f"perfuse.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
